"""Starts a server for a cycle and waits until it is ready.

`runner` calls `begin_server` and `start_server`. Whatever goes wrong must leave no process and no container behind, on
every way out; a port that is taken meanwhile leads to another attempt.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.engines.openai.settings import OpenAISettings
from pytest_llem.errors import JsonValue, ServerNotReadyError, ServerStartError
from pytest_llem.job.files import log_tail, slug
from pytest_llem.job.job import Job, ServerProcess
from pytest_llem.job.redaction import redact, redact_file
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.process import visible
from pytest_llem.servers.server import Begin, CommandServer, Ended, Readiness, Server, Tell, free_port
from pytest_llem.servers.spec import LOOPBACK, ServerSpec
from pytest_llem.worker.pinning import pinned

PORTS_TRIED = 3
"""Chosen: another process takes a port between its choice and its use about never, three times running not at all."""

DYING_S = 2.0
"""How long a server that no longer answers may take to be seen dead. Chosen: a killed process is reaped in less."""

POLL_S = 0.2
"""Chosen: small beside the seconds that loading takes, and few lines in an access log."""

LOGS = "servers"
"""Directory of the servers' logs within a run."""

_PORT_TAKEN = re.compile(
    r"address (is )?already in use|errno 98|EADDRINUSE|could not bind|couldn't bind", re.IGNORECASE
)


@dataclass
class ReadyServer:
    """A server that is ready: `id` names it within the run, `cycles` counts the cycles that were begun on it."""

    id: str
    spec: ServerSpec
    server: Server
    readiness: Readiness
    process: ServerProcess
    cycles: int = 0

    @property
    def base_url(self) -> str:
        """Where clients find it."""
        return f"http://{LOOPBACK}:{self.readiness.port}/v1"

    def still_there(self) -> bool:
        """Whether it still answers, asked between cycles; waits a moment for one that is dying to be dead."""
        if self.readiness.asked():
            return self.server.ended() is None
        deadline = time.monotonic() + DYING_S
        while self.server.ended() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return False

    def facts(self, run_dir: Path, *, reused: bool) -> dict[str, JsonValue]:
        """For the result's `runner.facts`."""
        return {
            "id": self.id,
            "started_as": self.server.started_as,
            "reused": reused,
            "cycle": self.cycles,
            "ready_s": self.process.ready_s,
            "log": os.path.relpath(self.server.log, run_dir),
            **self.server.facts,
        }

    def stop(self, grace_s: float) -> None:
        """End it, and remove secrets from its log."""
        try:
            self.server.stop(grace_s)
        finally:
            redact_file(self.server.log)


def begin_server(spec: ServerSpec, job: Job, docker: Mapping[str, JsonValue], lease: Lease | None, tell: Tell) -> Begin:
    """Prepare model and image; return how to start it at a port. Raises `ModelNotFoundError`, `DockerError`."""
    descriptors = lease.descriptors if lease is not None else ()
    if spec.image is not None:
        from pytest_llem.servers.container import begin_container

        return begin_container(spec, job, docker, tell, descriptors)
    model = spec.model_location()
    environment = {**job.environment, **visible(job)}

    def begin(port: int, log: Path) -> Server:
        with pinned(job.config.device):
            server = CommandServer(spec.filled(model, LOOPBACK, port), log, environment, descriptors)
        if lease is not None and server.pid is not None:
            lease.occupied_by(pid=server.pid)
        return server

    return begin


def start_server(
    spec: ServerSpec, begin: Begin, logs: Path, name: str, settings: OpenAISettings, tell: Tell
) -> ReadyServer:
    """Start a server and wait until it is ready; its log lies in `logs` under `name` and a number.

    Nothing of it is left after `ServerStartError` (it ended), `ServerNotReadyError` (not in time) or an interruption.
    """
    for attempt in range(1, PORTS_TRIED + 1):
        log = new_log(logs, name)
        port = free_port()
        started_ns = time.monotonic_ns()
        readiness = Readiness(port, settings.ready_path, settings.api_key_env)
        server = begin(port, log)
        try:
            problem = _wait(server, readiness, settings.ready_timeout_s, spec, tell)
        except BaseException:
            server.stop(0.0)
            redact_file(log)
            raise
        if problem is None:
            ready_s = (time.monotonic_ns() - started_ns) / 1e9
            process = ServerProcess(server.pid, server.started_as, str(log), started_ns, ready_s)
            return ReadyServer(log.stem, spec, server, readiness, process)
        server.stop(0.0)
        redact_file(log)
        port_taken = any(_PORT_TAKEN.search(line) for line in log_tail(log, 50))
        if attempt == PORTS_TRIED or not port_taken:
            raise _died_early(spec, problem, log)
        tell(f"port {port} was taken meanwhile: starting {spec.name} at another")
    raise AssertionError("the last attempt returned or raised")


def _wait(server: Server, readiness: Readiness, timeout_s: float, spec: ServerSpec, tell: Tell) -> Ended | None:
    """Wait until the server is ready (`None`) or has ended (how)."""
    begun = time.monotonic()
    tell(f"waiting for {spec.name} to be ready")
    while True:
        ended = server.ended()
        if ended is not None:
            return ended
        # Another process may have taken the port in between and answer there
        if readiness.asked() and server.serves(readiness.port):
            return None
        if time.monotonic() - begun >= timeout_s:
            server.stop(0.0)
            raise _not_ready(spec, server.log, timeout_s, readiness)
        time.sleep(POLL_S)


def new_log(directory: Path, name: str) -> Path:
    """A new, empty log file with a number that no other server of this run has."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = directory / f"{slug(name)}-{number}.log"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def redacted_tail(log: Path) -> list[JsonValue]:
    """The last lines of a server's log, redacted, for an error."""
    return [redact(line) for line in log_tail(log)]


def _died_early(spec: ServerSpec, how: Ended, log: Path) -> ServerStartError:
    tail = redacted_tail(log)
    last = f": {tail[-1]}" if len(tail) > 1 else ""
    return ServerStartError(
        f"the server {spec.name} ended before it was ready: {how}{last}",
        fix=how.fix or f"read its log, {log}",
        details={"exit_code": how.code, "log": str(log), "log_tail": tail},
    )


def _not_ready(spec: ServerSpec, log: Path, timeout_s: float, readiness: Readiness) -> ServerNotReadyError:
    return ServerNotReadyError(
        f"the server {spec.name} was not ready within {timeout_s:g} s (openai.ready_timeout_s) and was killed: "
        f"{readiness.last}",
        fix=f"read its log, {log}; raise openai.ready_timeout_s, or name what it answers in openai.ready_path",
        details={"log": str(log), "log_tail": redacted_tail(log), "ready_timeout_s": timeout_s},
    )
