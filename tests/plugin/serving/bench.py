"""A serving runner with a client in place of a worker, and a way to find whatever it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.job.setting import Dtype
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.protocol import OnEvent, Runner
from pytest_llem.servers.runner import ServingRunner

SERVER = Path(__file__).parent / "scripted_server.py"
GONE_S = 120.0


@dataclass
class Client(Runner):
    """In place of a worker: asks for completions, with an event for each, and writes down how it went."""

    spec: RunnerSpec = field(default_factory=lambda: RunnerSpec("local", "default"))
    requests: int = 3
    patient: bool = False

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        self.hand_over(job, job_dir)
        url = f"{job.config.settings['base_url']}/completions"
        try:
            for _ in range(self.requests):
                body = json.dumps({"prompt": "a b", "max_tokens": 2}).encode()
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=30) as answer:
                    json.load(answer)
                on_event({"event": "progress"})
        except OSError as problem:
            deadline = time.monotonic() + GONE_S
            while self.patient and time.monotonic() < deadline:
                time.sleep(0.05)
                on_event({"event": "heartbeat"})
            job_dir.write_error(LlemError(f"the client was cut off: {problem}"))
        else:
            job_dir.measurement.write_text("{}")
        return RunReport("local", "default", "process", facts={"client": "ran"})

    def close(self) -> None:
        """Nothing is kept."""


def job_of(cycle: int = 1, *faults: str, dtype: Dtype = "float32", **settings: JsonValue) -> Job:
    command: list[JsonValue] = [sys.executable, str(SERVER), "--model", "{model}", "--port", "{port}"]
    config = ExperimentConfig(
        model="builtin:tiny-llama",
        engine="openai",
        dtype=dtype,
        weights="real",
        workload=WorkloadSettings("synthetic", prompts=2, input_tokens=8, output_tokens=4, seed=0),
        decoding=Decoding(),
        measurement=MeasurementSettings(min_duration_s=0.05),
        settings={
            "command": command,
            "server_args": ["--dtype", "{dtype}", *faults],
            "ready_timeout_s": 60,
            **settings,
        },
    )
    return Job(
        "run", "study", "one", "0" * 16, config, cycle, 1, DeviceSet("cpu"), MeterSettings(), Deadlines(timeout_s=60)
    )


@dataclass
class Bench:
    """A serving runner with its client, in a directory of its own."""

    path: Path
    client: Client = field(default_factory=Client)
    docker: Mapping[str, JsonValue] = field(default_factory=dict)
    said: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runner = ServingRunner(self.client, self.path, self.docker, self.said.append)
        self._count = 0

    def run(self, job: Job) -> tuple[JobDir, Mapping[str, Any]]:
        """Run a cycle as `runners.measure_here` would: a server that cannot serve it is stopped first."""
        self._count += 1
        job_dir = JobDir(self.path / f"job-{self._count}")
        job_dir.path.mkdir(exist_ok=True)
        if not self.runner.can_serve(job):
            self.runner.unload()
        report = self.runner.run(job, job_dir, lambda event: None)
        server: Any = report.facts.get("server", {})
        return job_dir, server

    def log(self, number: int) -> str:
        return (self.path / "servers" / f"study-{number}.log").read_text()


def left(path: Path) -> list[int]:
    """Processes that were started for a test in this directory: all of them have it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("LLEM_TEST_MARK") == str(path)
        except psutil.Error:
            continue
        if marked and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def end_all(path: Path) -> None:
    """Kill what a failing test has left."""
    for pid in left(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def gone(path: Path) -> bool:
    deadline = time.monotonic() + GONE_S
    while left(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left(path)


def error_of(job_dir: JobDir) -> dict[str, Any]:
    assert not job_dir.measurement.exists()
    return dict(read_json(job_dir.error))
