"""The parent's side of the sampler process: starts it, queries it, stops it.

Meters and calibration use it. The sampler must never outlive its parent, so both sides guard against that.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest_llem
from pytest_llem.energy.calibration import DIRECTORY_VARIABLE
from pytest_llem.energy.rapl_source import Domain
from pytest_llem.energy.readings import GpuFacts
from pytest_llem.errors import MeterError

READY_TIMEOUT_S = 30.0
"""Chosen: initialising NVML on a machine with many GPUs and no persistence mode takes seconds per GPU."""

STOP_TIMEOUT_S = 5.0
"""Chosen: far above one round of sensor reads; a sampler that takes longer hangs in a driver call."""

KNOWN_TIMEOUT_NS = 1_500_000_000
"""Chosen: three periods of the slowest counter in tests/benchmarks/energy_accuracy.py (500 ms)."""

KNOWN_POLL_S = 0.01
"""Chosen: a tenth of a usual counter period, so that waiting costs little CPU and little time."""

# `-S` keeps site-packages' start-up hooks out, so the parent's own module path is handed over instead.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from pytest_llem.energy import sampler; " + (
    "sys.exit(sampler.main(sys.argv[1]))"
)


class SamplerProcess:
    """A running sampler. It ends with this process in any case: its input closes, and the kernel kills it.

    Start it from a thread that lives as long as the measurement, because the kernel ties it to the thread (prctl(2)).
    """

    def __init__(
        self,
        path: Path,
        gpus: Sequence[str] | None,
        rapl: Sequence[Domain] = (),
        *,
        library: str = "nvml",
        beside: Sequence[str] = (),
        server_pid: int | None = None,
        follow_server: bool = False,
        calibration_dir: Path | None = None,
    ) -> None:
        """Start sampling into `path`. Raises `MeterError` when a sensor cannot be opened or the process does not
        answer.

        `gpus` are UUIDs, empty for all visible ones, `None` for no GPU; `library` (`nvml` or `amdsmi`) reads them, and
        those `beside` them, which are not leased. The process tree of `server_pid` counts as measured, like that of
        this process; with `follow_server` the GPUs that hold one of its processes take the place of `gpus`, if there
        are any, and the processes of all others are listed too. `calibration_dir` is read in place of the usual one.
        """
        spec = {
            "parent_pid": os.getpid(),
            "server_pid": server_pid,
            "library": library,
            "path": str(path),
            "gpus": None if gpus is None else list(gpus),
            "beside": list(beside),
            "follow_pid": server_pid if follow_server else None,
            "rapl": [list(domain) for domain in rapl],
        }
        directory = {} if calibration_dir is None else {DIRECTORY_VARIABLE: str(calibration_dir)}
        package_root = str(Path(pytest_llem.__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _BOOT, json.dumps(spec), json.dumps([package_root, *sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **directory},
        )
        self.gpus = tuple(GpuFacts(**facts) for facts in self._receive(READY_TIMEOUT_S)["gpus"])

    @property
    def pid(self) -> int:
        """The sampler's process id."""
        return self._process.pid

    def power_w(self) -> float | None:
        """The latest power summed over the sensors; `None` where none was read or the sampler is gone."""
        try:
            power_w: float | None = self._ask("power")["power_w"]
        except MeterError:
            return None
        return power_w

    def wait_until_known(self, t_ns: int) -> bool:
        """Wait until the readings of every sensor reach beyond a time; false if one does not within the timeout."""
        while True:
            try:
                known_ns: float | None = self._ask("known")["known_until_ns"]
            except MeterError:
                return False
            if known_ns is None or known_ns >= t_ns:
                return True
            if time.monotonic_ns() > t_ns + KNOWN_TIMEOUT_NS:
                return False
            time.sleep(KNOWN_POLL_S)

    def cpu_time_s(self) -> float | None:
        """CPU seconds that the sampler has used, which the result states as its cost."""
        try:
            return time.clock_gettime((~self._process.pid << 3) | 2)
        except OSError:
            return None

    def stop(self) -> str | None:
        """Stop sampling and wait for the process; returns what went wrong, or `None`."""
        problem: str | None = None
        try:
            if self._process.poll() is None:
                self._ask("stop", STOP_TIMEOUT_S)
        except MeterError as error:
            problem = error.message
        self._close()
        return problem

    def _ask(self, command: str, timeout_s: float = STOP_TIMEOUT_S) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._gone() from None
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self._process.kill()
            self._close()
            raise MeterError(
                f"the energy sampler did not answer within {timeout_s:.0f} s",
                fix="run `llem doctor`; an NVML call may hang because of the driver (see `dmesg`)",
            )
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self._close()
            raise MeterError(answer["error"], fix=answer["fix"])
        return answer

    def _gone(self) -> MeterError:
        self._close()
        return MeterError(
            f"the energy sampler ended unexpectedly (exit code {self._process.returncode})",
            fix="its last words are in worker.log",
            details={"exit_code": self._process.returncode},
        )

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
