"""A simulated GPU that a process of its own sets by the package's code, to be killed at it.

`tests/benchmarks/device_put_back.py` kills a thousand times, tests/unit/machine/test_put_back.py once at each point.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pytest_llem.job.config import DeviceSettings, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.gpu_setting import SettingName
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.report import RunnerSpec
from pytest_llem.machine.devices import Demand, gpu_uuids
from pytest_llem.machine.gpu_settings.change import settings_made
from pytest_llem.machine.leases import LeaseRequest, take_lease
from pytest_llem.runners.local import LocalRunner
from pytest_llem.runners.measure_here import CycleRequest, HeldDevices, measure_here
from tests.simulated_nvml.simulation import PRIVILEGED, ROOT_VARIABLE, Gpu, Simulation

ROOT = Path(__file__).parents[1]
FAULTY = ROOT / "tests" / "plugin" / "faulty_engine"
IMAGE = "llem-test-base"
SETTINGS = DeviceSettings(power_limit_w=400.0, sm_clock_mhz=1410, memory_clock_mhz=1593, power_profile="llm_inference")
ASKED: dict[SettingName, float | str] = SETTINGS.gpu_settings
STUDY = """\
name: put-back
model: none
engine: faulty
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
device: {power_limit_w: 400, sm_clock_mhz: 1410, memory_clock_mhz: 1593, power_profile: llm_inference}
measurement: {min_duration_s: 60, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}}
execution: {cycles: 1, retries: 0}
"""
STARTS_S = 60.0
"""Chosen: far more than a pytest takes until it measures."""


class Board:
    """A simulated GPU that stands off its defaults, as somebody wanted it, and the process that will set it."""

    def __init__(self, directory: Path, library: Path) -> None:
        self.directory = directory
        self.simulation = Simulation(directory / "simulated-gpus", library)
        self.gpu: Gpu = self.simulation.gpus[0]
        self.gpu.offer_profiles(1, 6)
        self.gpu.power_limit_mw, self.gpu.requested_profiles[0] = 650_000, 1 << 1
        self.before = self.gpu.settings
        self.uuid = self.gpu.uuid.decode()
        path = os.pathsep.join((str(ROOT), str(FAULTY), os.environ.get("PYTHONPATH", "")))
        self.environment = {
            **os.environ,
            **self.simulation.environment(),
            "LLEM_LEASE_DIR": str(directory / "leases"),
            "LLEM_CALIBRATION_DIR": str(directory / "calibration"),
            "PYTHONPATH": path,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "-p llem -p xdist",
        }
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        self.record = directory / "leases" / f"settings-{self.uuid}.json"

    def through_sudo(self) -> None:
        """Let only a scripted sudo set the GPU."""
        self.gpu.permission = PRIVILEGED
        write_sudo(self.directory / "sudo-bin")
        self.environment["PATH"] = f"{self.directory / 'sudo-bin'}:{self.environment['PATH']}"

    def start(self, kind: str) -> subprocess.Popen[bytes]:
        """The process that sets it."""
        command = [sys.executable, "-m", "tests.set_board", kind]
        if kind.startswith("pytest"):
            (self.directory / "put-back.yaml").write_text(STUDY)
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "put-back.yaml", *kind.split()[1:]]
        log = (self.directory / "holder.log").open("wb")
        return subprocess.Popen(
            command, cwd=self.directory, env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )

    def wait_for(self, what: Callable[[], bool], holder: subprocess.Popen[bytes], limit_s: float = STARTS_S) -> None:
        """Until it is so, or the holder has ended."""
        deadline = time.monotonic() + limit_s
        while not what() and holder.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError((self.directory / "holder.log").read_text()[-2000:])
            time.sleep(0.0005)

    def is_set(self) -> bool:
        """Whether the last of the settings is made."""
        return bool(self.gpu.requested_profiles[0] == 1 << 6)

    def is_free(self) -> bool:
        """Whether the next run could have the GPU."""
        with contextlib.suppress(FileNotFoundError), (self.directory / "leases" / f"{self.uuid}.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Those that work on this GPU, with a word in their command."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("LLEM_LEASE_DIR") == self.environment["LLEM_LEASE_DIR"]
                if mine and process.pid != os.getpid() and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self, word: str) -> bool:
        """SIGKILL to those with a word in their command."""
        found = self.processes(word)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return bool(found)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This process's environment, for a next run in it."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def write_sudo(directory: Path, *, allows: bool = True) -> Path:
    """A `sudo` that lets the simulated NVML be set, and notes its arguments, or one that wants a password."""
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "sudo"
    refusal = "" if allows else 'echo "sudo: a password is required" >&2; exit 1\n'
    script.write_text(
        f'#!/bin/sh\necho "sudo $*" >> {directory}/calls\n{refusal}'
        f'[ "$1" = -n ] && shift\n[ "$1" = -l ] && exit 0\n{ROOT_VARIABLE}=1 exec "$@"\n'
    )
    script.chmod(0o755)
    return directory / "calls"


def hold(kind: str) -> None:
    """Set the GPU until a line comes from standard input, a container or a cycle ends, or this process is killed."""
    if kind == "cycle":
        _measure()
        return
    if kind == "node":
        from pytest_llem.cluster.node import own_directory

        own_directory()  # whose end kills all that this process has started
    (uuid,) = gpu_uuids()
    with (
        take_lease(DeviceSet("cuda", (uuid,)), timeout_s=STARTS_S) as lease,
        settings_made(ASKED, (uuid,), lease.descriptors, "a try"),
    ):
        if kind == "container":
            name = f"llem-put-back-{os.getpid()}"
            subprocess.run(["docker", "run", "--rm", "--network=none", f"--name={name}", IMAGE, "sleep", "60"])
        else:
            sys.stdin.readline()


def _measure() -> None:
    """A cycle of a minute by the local runner, with its fork server and worker."""
    (uuid,) = gpu_uuids()
    config = ExperimentConfig(
        model="none",
        engine="faulty",
        workload=WorkloadSettings(prompts=2, input_tokens=8, output_tokens=4),
        measurement=MeasurementSettings(min_duration_s=60.0),
        device=SETTINGS,
    )
    devices = DeviceSet("cuda", (uuid,))
    job = Job("run", "try", "try", "0", config, 1, 1, devices, MeterSettings("none"), Deadlines(120.0))
    request = CycleRequest(
        config, Demand.exactly(devices), LeaseRequest("a try"), lambda _: job, Path(), 10**9, cooldown=0.0
    )
    runner = LocalRunner(RunnerSpec("local", "study"), Path())
    try:
        measure_here(runner, HeldDevices(), request, JobDir(Path("job")))
    finally:
        runner.close()


if __name__ == "__main__":
    # A shell without job control starts what it sends to the background deaf to these.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    hold(sys.argv[1])
