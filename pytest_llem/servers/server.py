"""What a managed server is to the runner, how its readiness is checked, and a server that is a command of this machine.

`starting` and `runner` use it; `container` implements the other kind. `worker.lifeline.serve` is the other side of
`CommandServer`'s socket: change both together.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from pytest_llem.errors import JsonValue, ServerStartError
from pytest_llem.job.redaction import redact
from pytest_llem.servers.spec import LOOPBACK, Launch
from pytest_llem.worker import lifeline

ANSWER_S = 5.0
"""Timeout of one readiness request. Chosen: a healthy server answers within milliseconds, a loading one may stall."""

LOADING = 503
"""HTTP 503 Service Unavailable (RFC 9110, 15.6.4)."""

WITHOUT_HEALTH = (404, 405, 501)
"""HTTP status codes of servers that have no `/health`."""

WANTS_KEY = (401, 403)
"""HTTP status codes of a server that is there, and refuses the key or its absence (RFC 9110, 15.5.2 and 15.5.4)."""

START_S = 30.0
"""How long the lifeline may take to start. Chosen: a bare interpreter starts within a second on a busy machine."""

LAST_S = 10.0
"""How long killed processes may take to end. Chosen: the kernel may take seconds to free a large model's memory."""


@dataclass(frozen=True)
class Ended:
    """How a server ended: exit code (negative: signal, `None`: unknown), `reason` if more is known, user's `fix`."""

    code: int | None
    reason: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return self.reason
        if self.code is None:
            return "the process disappeared; its exit status is unknown"
        if self.code < 0:
            return f"it was killed by signal {-self.code}"
        return f"it ended with exit code {self.code}"


class Server(Protocol):
    """A server that was started: it may be loading, ready or gone."""

    log: Path
    started_as: Literal["command", "container"]

    @property
    def pid(self) -> int | None:
        """Root of its process tree in this machine's pid namespace; `None` where unknown."""

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """What the result records of it: its command, its image."""

    def ended(self) -> Ended | None:
        """How it ended; `None` while it runs. Never waits."""

    def serves(self, port: int) -> bool:
        """Whether this server itself listens at `port`; true where that cannot be checked."""

    def stop(self, grace_s: float) -> None:
        """End it and all its processes: SIGTERM first, SIGKILL after `grace_s` seconds. Safe to call twice."""


Begin = Callable[[int, Path], Server]
"""Starts a server for a port, with its log at a path."""

Tell = Callable[[str], None]


@dataclass
class Readiness:
    """Asks a server at a port of this machine whether it is ready; `last` is its latest answer, in words.

    With a `path` the server is ready when that is answered with 2xx. Without one it is ready when `/health` is good and
    `/v1/models` is answered, whatever the status (some servers fail there) except 503, which says that it is loading.
    Where there is no `/health`, `/v1/models` must be good, or want another key. That in `api_key_env` is sent along.
    """

    port: int
    path: str | None = None
    api_key_env: str | None = None
    last: str = field(default="nothing listens at its port", init=False)

    def asked(self) -> bool:
        """Ask once; takes a few seconds at most."""
        if self.path is not None:
            return self._good(self._status(self.path))
        health = self._status("/health")
        if health is None or not (self._good(health) or health in WITHOUT_HEALTH):
            return False
        models = self._status("/v1/models")
        if health in WITHOUT_HEALTH:
            return self._good(models) or models in WANTS_KEY
        return models is not None and models != LOADING

    def _good(self, status: int | None) -> bool:
        return status is not None and 200 <= status < 300

    def _status(self, path: str) -> int | None:
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=ANSWER_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = connection.getresponse()
            # No more than the server has sent at once: its answer may have no end.
            answer.read1()
        except TimeoutError:
            self.last = f"{path} was not answered within {ANSWER_S:g} s"
        except ConnectionRefusedError:
            self.last = "nothing listens at its port"
        except (OSError, http.client.HTTPException) as problem:
            self.last = f"{path}: {type(problem).__name__}: {problem}"
        else:
            self.last = f"{path} was answered with HTTP {answer.status}"
            return answer.status
        finally:
            connection.close()
        return None


def free_port() -> int:
    """A TCP port of loopback at which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listens_below(pid: int, port: int) -> bool:
    """Whether a process of the tree below `pid` listens at a TCP port; true where this user may not see that."""
    try:
        root = psutil.Process(pid)
        tree = (root, *root.children(recursive=True))
    except psutil.NoSuchProcess:
        return False
    for process in tree:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            continue
        if any(entry.status == psutil.CONN_LISTEN and entry.laddr.port == port for entry in connections):
            return True
    return False


class CommandServer:
    """A process tree below a lifeline, which ends the tree when this process ends, by whatever cause.

    It sees exactly the devices of `environment`, and inherits `descriptors`, so that a lease lasts as long as it lives.
    """

    started_as: Literal["command", "container"] = "command"

    def __init__(
        self, launch: Launch, log: Path, environment: Mapping[str, str], descriptors: Sequence[int] = ()
    ) -> None:
        """Start it. Raises `ServerStartError` when there is no such program, or it may not be run."""
        self.log = log
        self._words = launch.words
        self._ended: Ended | None = None
        self._unread = b""
        ours, theirs = socket.socketpair()
        self._channel = ours
        with theirs, log.open("ab") as stream:
            shown = redact(shlex.join(self._words))
            stream.write(f"$ {shown}\n".encode())
            stream.flush()
            inherited = ",".join(str(number) for number in descriptors)
            self._process = subprocess.Popen(
                lifeline.command("serve", str(theirs.fileno()), inherited, *launch.words),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=(theirs.fileno(), *descriptors),
                start_new_session=True,
            )
        try:
            first = self._message(START_S)
        except BaseException:
            self.stop(0.0)
            raise
        if first is None or "failed" in first:
            self.stop(0.0)
            reason = first["failed"] if first is not None else "its parent process did not start"
            raise ServerStartError(
                f"the server cannot be started: {reason}",
                fix="correct openai.command: a program of this environment's PATH, or a path",
                details={"command": [redact(word) for word in self._words]},
            )

    @property
    def pid(self) -> int | None:
        """The lifeline, below which all of the server's processes are."""
        return self._process.pid

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """The command, with everything filled in."""
        return {"command": [redact(word) for word in self._words]}

    def ended(self) -> Ended | None:
        """See `Server.ended`."""
        if self._ended is None:
            last = self._message(0.0)
            if last is not None and "code" in last:
                self._ended = Ended(int(last["code"]))
            elif self._process.poll() is not None:
                self._ended = Ended(None, "it was killed together with its parent process")
        return self._ended

    def serves(self, port: int) -> bool:
        """See `Server.serves`."""
        return listens_below(self._process.pid, port)

    def stop(self, grace_s: float) -> None:
        """See `Server.stop`."""
        try:
            with contextlib.suppress(OSError):
                self._channel.sendall(f"{grace_s}".encode())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s + LAST_S)
        finally:
            # When a second Ctrl-C cuts the wait short, hanging up is what ends the server soon.
            self.ended()
            self._channel.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(LAST_S)

    def _message(self, timeout_s: float) -> dict[str, Any] | None:
        """The lifeline's next message; `None` when none comes in time, or the lifeline is gone."""
        while b"\n" not in self._unread:
            try:
                self._channel.settimeout(timeout_s)
                data = self._channel.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
