"""A worker that is alive and gives no sign of life is ended as hung."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from pytest_llem.job.config import (
    Decoding,
    ExperimentConfig,
    IdleSettings,
    MeasurementSettings,
    WarmupSettings,
    WorkloadSettings,
)
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.report import RunnerSpec
from pytest_llem.machine.lease_files import holder
from pytest_llem.machine.leases import take_lease
from pytest_llem.runners.local import LocalRunner, ResidentRunner

FAULTY = Path(__file__).parents[2] / "plugin" / "faulty_engine"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    """A cycle that would idle for long, and whose silence is noticed soon."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FAULTY), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    config = ExperimentConfig(
        model="none",
        engine="faulty",
        dtype=None,
        weights="real",
        workload=WorkloadSettings("synthetic", 1, 8, 4, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(0.05, WarmupSettings(max_repeats=1), IdleSettings(60.0)),
        settings={},
    )
    meter, deadlines = MeterSettings("estimate"), Deadlines(60.0, heartbeat_s=0.4, silence_s=5.0)
    return Job("run", "study", "one", "0" * 64, config, 1, 1, DeviceSet("cpu"), meter, deadlines)


@pytest.mark.parametrize("isolation", ["process", "experiment"])
def test_a_stopped_worker_is_ended_as_hung(job: Job, tmp_path: Path, isolation: str) -> None:
    spec, job_dir = RunnerSpec("local", "default"), JobDir(tmp_path / "job")
    runner = LocalRunner(spec, tmp_path) if isolation == "process" else ResidentRunner(spec, tmp_path, "experiment")
    stopped: list[int] = []

    def stop_when_idle(event: object) -> None:
        assert isinstance(event, dict)
        if (event["event"], event.get("name")) == ("phase", "idle"):
            # Heartbeats keep a worker alive that only waits: one more than `silence_s` of them, then none.
            threading.Timer(6.0, stop).start()

    def stop() -> None:
        pid = holder("cpu").pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    job_dir.write_job(job)
    with take_lease(job.devices, timeout_s=0) as lease:
        started = time.monotonic()
        runner.run(job, job_dir, stop_when_idle, lease)
        runner.close()

    error = read_json(job_dir.error)
    assert (error["category"], error["phase"]) == ("timeout", "idle")
    assert "no sign of life for 5 s" in str(error["message"])
    assert stopped
    assert time.monotonic() - started < 50.0
    assert not psutil.pid_exists(stopped[0]) or psutil.Process(stopped[0]).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("isolation", ["process", "experiment"])
@pytest.mark.parametrize("line", ["[" * 5000, "7"])
def test_a_worker_whose_events_cannot_be_read_is_ended(job: Job, tmp_path: Path, isolation: str, line: str) -> None:
    """It was a traceback of the JSON reader, and the worker lived on."""
    spec, job_dir = RunnerSpec("local", "default"), JobDir(tmp_path / "job")
    runner = LocalRunner(spec, tmp_path) if isolation == "process" else ResidentRunner(spec, tmp_path, "experiment")
    pids: list[int | None] = []

    def spoil_when_idle(event: object) -> None:
        assert isinstance(event, dict)
        if (event["event"], event.get("name")) == ("phase", "idle"):
            pids.append(holder("cpu").pid)
            with job_dir.events.open("ab") as stream:
                stream.write(line.encode(errors="surrogateescape") + b"\n")

    job_dir.write_job(job)
    with take_lease(job.devices, timeout_s=0) as lease:
        runner.run(job, job_dir, spoil_when_idle, lease)
        runner.close()

    error = read_json(job_dir.error)
    assert error["category"] == "worker_crashed"
    assert f"what the worker reports cannot be read: {job_dir.events}: " in str(error["message"])
    assert pids[0] is not None
    assert not psutil.pid_exists(pids[0]) or psutil.Process(pids[0]).status() == psutil.STATUS_ZOMBIE


def test_a_hung_worker_that_leaves_something_is_gone_before_the_next_starts(job: Job, tmp_path: Path) -> None:
    """Its end was told after the wait for it, and then taken for the answer to the next start: `KeyError: 'pid'`."""
    measurement = dataclasses.replace(job.config.measurement, idle=IdleSettings(0.05), min_duration_s=60.0)
    job = dataclasses.replace(
        job, config=dataclasses.replace(job.config, engine="odd", model="fork-twice.load", measurement=measurement)
    )
    runner = LocalRunner(RunnerSpec("local", "default"), tmp_path)

    def stop_when_loaded(event: object) -> None:
        assert isinstance(event, dict)
        pid = holder("cpu").pid
        if (event["event"], event.get("name")) == ("phase", "warmup") and pid is not None:
            os.kill(pid, signal.SIGSTOP)

    codes = []
    for cycle in (1, 2):
        job_dir = JobDir(tmp_path / f"job-{cycle}")
        with take_lease(job.devices, timeout_s=0) as lease:
            runner.run(job, job_dir, stop_when_loaded, lease)
        codes.append(read_json(job_dir.error)["exit_code"])
    runner.close()

    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
