"""The sampler process: reads GPU and CPU energy sensors beside the measured process, never inside it.

`sampler_client` starts it with a JSON specification as its one argument. It answers each line on standard input with
one JSON line on standard output, and ends with that input, with its parent, or on `stop`. It must start fast: no
dataclasses, statistics or argparse here or in what it imports (tests/unit/energy/test_sampler_start.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from math import inf
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from pytest_llem.energy.rapl_source import Domain, RaplSource
from pytest_llem.energy.readings import SampleWriter, SensorError, Source

PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""

PR_SET_TIMERSLACK = 29
"""linux/prctl.h."""

TIMER_SLACK_NS = 1000
"""Chosen: the default of 50 us (prctl(2)) would widen every bracket by as much."""

PRIORITY = -10
"""Chosen: halfway to the highest (-20, setpriority(2)): above user processes, below what keeps the machine running."""

CLOCK_PERIOD_NS = 1_000_000_000
"""Chosen: the jump of the clock that a suspended machine leaves stays, so it is seen however rarely it is read."""


class ClockSource(Source):
    """Records how far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC, which jumps when the machine was suspended."""

    known_until_ns = inf

    def poll(self, writer: SampleWriter) -> None:
        """Compare the two clocks."""
        now = time.monotonic_ns()
        self.due_ns = now + CLOCK_PERIOD_NS
        writer.event(now, "clock", ahead_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now)


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; exit at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)


def run(sources: list[Source], writer: SampleWriter, commands: IO[bytes], parent_pid: int) -> None:
    """Poll every source when it is due and answer commands in between, until told to stop or orphaned."""
    while os.getppid() == parent_pid:
        wait_s = max(0.0, (min(source.due_ns for source in sources) - time.monotonic_ns()) / 1e9)
        if select.select([commands], [], [], wait_s)[0]:
            line = commands.readline()
            if not line or line.strip() == b"stop":
                break
            known_ns = min(source.known_until_ns for source in sources)
            powers = [source.power_w for source in sources if source.counted and source.power_w is not None]
            _answer(power_w=sum(powers) if powers else None, known_until_ns=None if known_ns == inf else known_ns)
        now = time.monotonic_ns()
        for source in sources:
            if source.due_ns <= now:
                source.poll(writer)
    for source in sources:
        source.finish(writer)


def main(specification: str) -> int:
    """Run with the JSON that `sampler_client` passes; the first answer says whether the sensors could be opened."""
    # Ctrl-C is sent to the whole group: the parent decides when sampling ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = json.loads(specification)
    parent_pid = int(spec["parent_pid"])
    end_with_parent(parent_pid)
    # A late read widens a bracket, and reading takes about 1 % of a core.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    writer = SampleWriter(Path(spec["path"]))
    sources: list[Source] = [ClockSource()]
    gpus = []
    if spec["gpus"] is not None:
        spare_pynvml_an_import()
        owners = [pid for pid in (parent_pid, spec["server_pid"]) if pid is not None]
        try:
            library = import_module(f"pytest_llem.energy.{spec['library']}_source")
            opened = library.open_gpus(spec["gpus"], owners, spec["beside"], spec["follow_pid"])
        except SensorError as problem:
            _answer(error=problem.message, fix=problem.fix)
            return 1
        for source, facts in opened:
            sources.append(source)
            if facts is not None:
                source.counted = facts.leased
                gpus.append(facts._asdict())
    for domain in spec["rapl"]:
        rapl = RaplSource(Domain(*domain))
        rapl.counted = spec["gpus"] is None
        sources.append(rapl)
    for source in sources:
        source.poll(writer)
    _answer(gpus=gpus)
    commands = open(0, "rb", buffering=0)  # noqa: SIM115 (standard input, unbuffered for select)
    run(sources, writer, commands, parent_pid)
    writer.close()
    _answer(stopped=True)
    return 0


def spare_pynvml_an_import() -> None:
    """Put a lazy stand-in for `ctypes.util`, which `pynvml` uses on Windows only: it doubles the import time."""
    stand_in = ModuleType("ctypes.util")

    def find_library(name: str) -> str | None:
        del sys.modules["ctypes.util"]
        from ctypes.util import find_library as real

        return real(name)

    stand_in.find_library = find_library  # type: ignore[attr-defined]
    sys.modules.setdefault("ctypes.util", stand_in)


def _answer(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
