"""What a managed server is to the runner, whatever it was started as, and how its readiness is checked.

`command` and `container` implement it; `starting` and `runner` use it. `Ended` goes into error messages: its words are
part of what users see.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import psutil

from pytest_llem.errors import JsonValue
from pytest_llem.servers.spec import LOOPBACK

ANSWER_S = 5.0
"""Timeout of one readiness request. Chosen: a healthy server answers within milliseconds, a loading one may stall."""

LOADING = 503
"""HTTP 503 Service Unavailable (RFC 9110, 15.6.4)."""

WITHOUT_HEALTH = (404, 405, 501)
"""HTTP status codes of servers that have no `/health`."""

LOG_TAIL_BYTES = 65536
"""Chosen: far more than the last lines of a traceback need, and read within a millisecond."""


@dataclass(frozen=True)
class Ended:
    """How a server ended: `code` is its exit code, negative for a signal, `None` where it is unknown.

    `reason` replaces the sentence about the code where more is known, and `fix` is what the user can do about it.
    """

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
    Where there is no `/health`, `/v1/models` must be good. The key in the variable `api_key_env` is sent along.
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
        return self._good(models) if health in WITHOUT_HEALTH else models is not None and models != LOADING

    def _good(self, status: int | None) -> bool:
        return status is not None and 200 <= status < 300

    def _status(self, path: str) -> int | None:
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=ANSWER_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = connection.getresponse()
            answer.read()
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


def log_tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a server's log; empty when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
