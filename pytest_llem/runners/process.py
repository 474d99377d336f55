"""Worker processes of this machine: forked from a preloaded server where that is safe, else new interpreters.

The local runners start and end them; `settings_check`, `watch` and `servers.starting` use parts. Both kinds must lead a
session of their own, be killed with all that they started, see just their job's devices, and inherit its lease.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_llem.engines import engine_info
from pytest_llem.errors import WorkerError
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note
from pytest_llem.machine.leases import Lease
from pytest_llem.worker.channel import receive, send
from pytest_llem.worker.forkserver import kill_group

CHECK_MODULE = "pytest_llem.engines.signatures"
"""The program that compares settings with an engine's signatures."""

KILL_GRACE_S = 5.0
"""Chosen: an engine that handles SIGTERM closes within seconds."""

START_DEADLINE_S = 300.0
"""Chosen: importing torch and vLLM from a cold network disk takes minutes."""


class WorkerProcess(Protocol):
    """A running worker. Its process id is also that of its process group."""

    @property
    def pid(self) -> int:
        """The process id."""

    def wait(self, timeout_s: float) -> int | None:
        """The exit code once the process is gone (negative: minus the signal), or `None` after `timeout_s`."""


class SpawnedProcess:
    """`python -m MODULE ARGUMENTS`, with standard output and error in `log`; it inherits `descriptors`."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], descriptors: Sequence[int] = ()
    ) -> None:
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=tuple(descriptors),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self, timeout_s: float) -> int | None:
        """See `WorkerProcess.wait`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


class ForkServer:
    """The client of `worker.forkserver`: starts it on first use and forks one worker at a time."""

    def __init__(self, engine: str, log: Path) -> None:
        """Start the server. Raises `WorkerError` with the reason when it cannot serve."""
        self._channel, theirs = socket.socketpair()
        with theirs, log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest_llem.worker.forkserver", str(theirs.fileno()), engine],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._child: ForkedProcess | None = None
        self._channel.settimeout(START_DEADLINE_S)
        try:
            first, _ = receive(self._channel)
        except TimeoutError:
            first = {"problem": f"the imports took more than {START_DEADLINE_S:.0f} s"}
        if first is None or "problem" in first:
            self.close()
            reason = first["problem"] if first else "the server died during its imports"
            raise WorkerError(f"no fork server for {engine}: {reason}", details={"engine": engine})

    @property
    def alive(self) -> bool:
        """Whether the server can fork another worker."""
        return self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether the worker that it forked last still runs."""
        return self._child is not None and self._child.wait(0.0) is None

    def fork(self, request: Mapping[str, Any], log: Path, descriptors: Sequence[int] = ()) -> ForkedProcess:
        """Fork a worker: see `worker.forkserver` for requests and the descriptors that follow the log's."""
        with log.open("ab") as stream:
            send(self._channel, dict(request), (stream.fileno(), *descriptors))
        answer, _ = receive(self._channel)
        if answer is None:
            raise WorkerError("the fork server died")
        self._child = ForkedProcess(int(answer["pid"]), self._channel)
        return self._child

    def close(self) -> None:
        """Let the server end: it does when its socket closes."""
        self._channel.close()
        try:
            self._process.wait(KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForkedProcess:
    """A worker that the fork server forked; its end is reported over the server's socket."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        self._code: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """See `WorkerProcess.wait`."""
        if self._code is None:
            readable, _, _ = select.select([self._channel], [], [], timeout_s)
            if readable:
                answer, _ = receive(self._channel)
                if answer is None:  # the server died, and its child may live on
                    kill_group(self.pid)
                self._code = os.waitstatus_to_exitcode(answer["status"]) if answer else -signal.SIGKILL
        return self._code


def end(process: WorkerProcess, grace_s: float = KILL_GRACE_S) -> int | None:
    """End a worker and everything in its process group: SIGTERM, then SIGKILL after `grace_s` seconds."""
    kill_group(process.pid, signal.SIGTERM)
    try:
        code = process.wait(grace_s)
    finally:
        # Also when a second Ctrl-C cuts the wait short.
        kill_group(process.pid, signal.SIGKILL)
    return code if code is not None else process.wait(grace_s)


def oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since boot; `None` where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


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
        """A `settings_check.StartCheck`, forked where cycles are: importing the engine takes most of its time."""
        server = self._servers.get(engine)
        busy = server is not None and server.busy
        forked = None if busy else self._fork(engine, {"check": arguments, "environment": {}}, log)
        return forked or SpawnedProcess((CHECK_MODULE, *arguments), log, {})

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
        forked = self._fork(engine, {**request, "environment": environment}, log, descriptors)
        if forked is not None:
            return Started(forked, "forkserver")
        reason = self._unsafe.get(engine)
        command = ("pytest_llem.worker", "--start-method=spawn", *arguments)
        notes = (Note("start_method", f"started with spawn: {reason}"),) if reason is not None else ()
        return Started(SpawnedProcess(command, log, environment, descriptors), "spawn", notes)

    def _fork(
        self, engine: str, request: Mapping[str, Any], log: Path, descriptors: Sequence[int] = ()
    ) -> ForkedProcess | None:
        """A child of the engine's fork server; `None` where it has none, or has failed once (`_unsafe`)."""
        if not engine_info(engine).preload or engine in self._unsafe:
            return None
        try:
            server = self._servers.get(engine)
            if server is None or not server.alive:
                server = self._servers[engine] = ForkServer(engine, self._log_dir / f"forkserver-{engine}.log")
            return server.fork(request, log, descriptors)
        except (WorkerError, OSError) as error:
            self._unsafe[engine] = str(error)
            return None


def visible(job: Job) -> dict[str, str]:
    """The variables that show a worker exactly the devices of its job."""
    if job.devices.kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(job.devices.uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {"CUDA_VISIBLE_DEVICES": ""}
