"""Starts workers of this machine: forked from a preloaded server where that is safe, else as a new interpreter.

The local runners call it. A worker sees exactly the devices of its job, and inherits their lease.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llem.engines import engine_info
from pytest_llem.errors import WorkerError
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.process import ForkServer, SpawnedProcess, WorkerProcess
from pytest_llem.runners.settings_check import CHECK_MODULE


@dataclass(frozen=True)
class Started:
    """A worker that runs, how it was started, and why not otherwise."""

    process: WorkerProcess
    method: str
    notes: tuple[Note, ...] = ()


class WorkerStarter:
    """Starts workers, each in a session of its own; keeps one fork server per engine."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._servers: dict[str, ForkServer] = {}
        self._unsafe: dict[str, str] = {}

    def start(self, job: Job, job_dir: JobDir, lease: Lease | None) -> Started:
        """A worker for one job, which inherits the lease."""
        request = {"job_dir": str(job_dir.path.resolve()), "isolation": "process"}
        return self._start(job, job_dir.log, request, (str(job_dir.path),), None, lease)

    def start_resident(self, job: Job, log: Path, lease: Lease | None, isolation: str) -> tuple[Started, socket.socket]:
        """A worker for several jobs, of which `job` is the first, and the socket to talk to it."""
        with ExitStack() as cleanup:
            ours, theirs = socket.socketpair()
            cleanup.callback(ours.close)
            with theirs:
                arguments = (f"--isolation={isolation}", f"--resident={theirs.fileno()}")
                request = {"resident": True, "isolation": isolation}
                started = self._start(job, log, request, arguments, theirs, lease)
            cleanup.pop_all()
        return started, ours

    def start_check(self, engine: str, arguments: tuple[str, str], log: Path) -> WorkerProcess:
        """A process that compares settings with an engine's signatures: see `runners.settings_check.StartCheck`.

        Forked where cycles are, because importing the engine takes most of the time that a comparison does.
        """
        if engine_info(engine).preload:
            try:
                server = self._server(engine)
                if not server.busy:
                    return server.fork({"check": arguments, "environment": {}}, log)
            except (WorkerError, OSError) as error:
                self._unsafe.setdefault(engine, str(error))
        return SpawnedProcess((CHECK_MODULE, *arguments), log, {})

    def close(self) -> None:
        """End the fork servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _start(
        self,
        job: Job,
        log: Path,
        request: Mapping[str, Any],
        arguments: tuple[str, ...],
        control: socket.socket | None,
        lease: Lease | None,
    ) -> Started:
        environment = {**job.environment, **visible(job)}
        descriptors = (*((control.fileno(),) if control else ()), *(lease.descriptors if lease is not None else ()))
        engine = job.config.engine
        notes: tuple[Note, ...] = ()
        if engine_info(engine).preload:
            try:
                process = self._server(engine).fork({**request, "environment": environment}, log, descriptors)
                return Started(process, "forkserver")
            except (WorkerError, OSError) as error:
                self._unsafe.setdefault(engine, str(error))
                notes = (Note("start_method", f"started with spawn: {self._unsafe[engine]}"),)
        command = ("pytest_llem.worker", "--start-method=spawn", *arguments)
        return Started(SpawnedProcess(command, log, environment, descriptors), "spawn", notes)

    def _server(self, engine: str) -> ForkServer:
        if engine in self._unsafe:
            raise WorkerError(self._unsafe[engine])
        server = self._servers.get(engine)
        if server is None or not server.alive:
            server = self._servers[engine] = ForkServer(engine, self._log_dir / f"forkserver-{engine}.log")
        return server


def visible(job: Job) -> dict[str, str]:
    """The variables that show a worker exactly the devices of its job."""
    if job.devices.kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(job.devices.uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {"CUDA_VISIBLE_DEVICES": ""}
