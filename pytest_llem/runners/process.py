"""Worker processes of this machine: forked from a preloaded server where that is safe, else new interpreters below one.

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
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_llem.engines import engine_info
from pytest_llem.errors import WorkerError
from pytest_llem.job.files import log_tail
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note
from pytest_llem.machine.amd_devices import HIDDEN, environment_of
from pytest_llem.machine.leases import Lease
from pytest_llem.worker.channel import receive, send
from pytest_llem.worker.forkserver import kill_group
from pytest_llem.worker.lifeline import MARKS, kill_marked

CHECK_MODULE = "pytest_llem.engines.signatures"
"""The program that compares settings with an engine's signatures."""

MARK = MARKS[1]
"""The variable by which all below a fork server are found, should it be killed."""

SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()
"""Keeps modules out of Python's path that only happen to lie in the current directory."""

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
    """`python -m MODULE ARGUMENTS`, with standard output and error in `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._process = _start(command, log)
        self.pid = self._process.pid

    def wait(self, timeout_s: float) -> int | None:
        """See `WorkerProcess.wait`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


class ForkServer:
    """The client of `worker.forkserver`: starts it on first use and forks one worker at a time."""

    def __init__(self, engine: str, log: Path, *, preload: bool) -> None:
        """Start the server. Raises `WorkerError` with the reason when it cannot serve."""
        self._mark = uuid.uuid4().hex
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = ("pytest_llem.worker.forkserver", str(theirs.fileno()), *((engine,) if preload else ()))
            self._process = _start(command, log, self._mark, (theirs.fileno(),))
        self._preload = preload
        self._child: ForkedProcess | None = None
        self._channel.settimeout(START_DEADLINE_S)
        try:
            first, _ = receive(self._channel)
        except TimeoutError:
            first = {"problem": f"the imports took more than {START_DEADLINE_S:.0f} s"}
        if first is None or "problem" in first:
            self.close()
            reason = first["problem"] if first else f"it died: {' '.join(log_tail(log, 1))}"
            fix = f"read {log}; a module in {Path.cwd()} that has the name of one of Python's would do this"
            raise WorkerError(f"no fork server for {engine}: {reason}", fix=fix, details={"engine": engine})

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
        environment = request["environment"] if self._preload else {**os.environ, **request["environment"]}
        with log.open("ab") as stream:
            send(self._channel, {**request, "environment": environment}, (stream.fileno(), *descriptors))
        answer, _ = receive(self._channel)
        if answer is None:
            raise WorkerError("the fork server died")
        self._child = ForkedProcess(int(answer["pid"]), self)
        return self._child

    def status(self, timeout_s: float) -> int | None:
        """How its child ended, as `waitpid` returns it, once that is known; nothing of the child is left then."""
        if not select.select([self._channel], [], [], timeout_s)[0]:
            return None
        answer, _ = receive(self._channel)
        if answer is not None:
            return int(answer["status"])
        # The server was killed, and the kernel kills its child: whoever else lives bears the mark.
        kill_marked(f"{MARK}={self._mark}")
        return signal.SIGKILL

    def close(self) -> None:
        """Let the server end: it does when its socket closes."""
        self._channel.close()
        try:
            self._process.wait(KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            kill_marked(f"{MARK}={self._mark}")


class ForkedProcess:
    """A worker that a fork server started, which reports its end."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """See `WorkerProcess.wait`."""
        if self._code is None:
            status = self._server.status(timeout_s)
            self._code = os.waitstatus_to_exitcode(status) if status is not None else None
        return self._code


def _start(
    command: Sequence[str], log: Path, mark: str | None = None, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """`python -m COMMAND` in a session of its own, with its output in `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, *SAFE_PATH, "-m", *command],
            env={**os.environ, **({MARK: mark} if mark else {})},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=tuple(descriptors),
            start_new_session=True,
        )


def end(process: WorkerProcess, grace_s: float = KILL_GRACE_S) -> int | None:
    """End a worker and all below it: SIGTERM, then SIGKILL after `grace_s` seconds, and wait until nothing is left."""
    kill_group(process.pid, signal.SIGTERM)
    try:
        code = process.wait(grace_s)
    finally:
        # Also when a second Ctrl-C cuts the wait short.
        kill_group(process.pid, signal.SIGKILL)
    return code if code is not None else process.wait(KILL_GRACE_S)


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
        return self._start(job, job_dir.log, request, None, lease)

    def start_resident(self, job: Job, log: Path, lease: Lease | None, isolation: str) -> tuple[Started, socket.socket]:
        """A worker for several jobs, of which `job` is the first, and the socket to talk to it."""
        with ExitStack() as cleanup:
            ours, theirs = socket.socketpair()
            cleanup.callback(ours.close)
            with theirs:
                started = self._start(job, log, {"resident": True, "isolation": isolation}, theirs, lease)
            cleanup.pop_all()
        return started, ours

    def start_check(self, engine: str, arguments: tuple[str, str], log: Path) -> WorkerProcess:
        """A `settings_check.StartCheck`, forked where cycles are: importing the engine takes most of its time."""
        server = self._servers.get(engine)
        if server is not None and server.busy:
            return SpawnedProcess((CHECK_MODULE, *arguments), log)
        return self._fork(engine, {"check": arguments, "environment": {}}, log).process

    def close(self) -> None:
        """End the fork servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _start(
        self, job: Job, log: Path, request: Mapping[str, Any], control: socket.socket | None, lease: Lease | None
    ) -> Started:
        environment = {**job.environment, **visible(job)}
        descriptors = (*((control.fileno(),) if control else ()), *(lease.descriptors if lease is not None else ()))
        return self._fork(job.config.engine, {**request, "environment": environment}, log, descriptors)

    def _fork(self, engine: str, request: Mapping[str, Any], log: Path, descriptors: Sequence[int] = ()) -> Started:
        """A worker of the engine's server; that preloads the engine, unless it is not known to, or once could not."""
        if engine_info(engine).preload and engine not in self._unsafe:
            try:
                return Started(self._server(engine, preload=True).fork(request, log, descriptors), "forkserver")
            except (WorkerError, OSError) as error:
                self._unsafe[engine] = str(error)
                self._end_server(engine)
        worker = self._server(engine, preload=False).fork(request, log, descriptors)
        reason = self._unsafe.get(engine)
        notes = (Note("start_method", f"started with spawn: {reason}"),) if reason is not None else ()
        return Started(worker, "spawn", notes)

    def _server(self, engine: str, *, preload: bool) -> ForkServer:
        server = self._servers.get(engine)
        if server is None or not server.alive or server.busy:
            self._end_server(engine)
            log = self._log_dir / f"forkserver-{engine}.log"
            server = self._servers[engine] = ForkServer(engine, log, preload=preload)
        return server

    def _end_server(self, engine: str) -> None:
        server = self._servers.pop(engine, None)
        if server is not None:
            server.close()


def visible(job: Job) -> dict[str, str]:
    """The variables that show a worker exactly the devices of its job."""
    if job.devices.kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(job.devices.uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if job.devices.kind == "rocm":
        return environment_of(job.devices.uuids)
    return HIDDEN
