"""Asking a server whether it is ready, and choosing the port that it answers at."""

from __future__ import annotations

import http.client
import os
import socket
from dataclasses import dataclass, field

import psutil

from pytest_llem.servers.spec import LOOPBACK

ANSWER_S = 5.0

POLL_S = 0.2

LOADING = 503

WITHOUT_HEALTH = (404, 405, 501)


def free_port() -> int:
    """A TCP port that nobody listens at, at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Readiness:
    """Asks a server at a port of this machine; `last` is what it said last, in words.

    Without a `path` of its own a server is ready when `/health` is good and `/v1/models` is answered, whatever the
    answer (some servers fail there), unless it says that the model is being loaded. Where there is no `/health`,
    `/v1/models` must be good. The key in the environment variable `api_key_env` is sent along.
    """

    port: int
    path: str | None = None
    api_key_env: str | None = None
    last: str = field(default="nothing listens at its port", init=False)

    def asked(self) -> bool:
        """Ask once; at most a few seconds."""
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


def listens_below(pid: int, port: int) -> bool:
    """Whether a process of the tree below `pid` listens at a TCP port; true where that may not be known."""
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
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
            return True
    return False
