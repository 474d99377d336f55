"""A server started as a command of this machine, below a lifeline that outlives neither pytest nor the server.

`starting.begin_server` makes one. `worker.lifeline.serve` is the other side of its socket: change both together.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytest_llem.errors import JsonValue, ServerStartError
from pytest_llem.job.redaction import redact, secrets_of
from pytest_llem.servers.server import Ended, listens_below
from pytest_llem.servers.spec import Launch
from pytest_llem.worker import lifeline

START_S = 30.0
"""How long the lifeline may take to start. Chosen: a bare interpreter starts within a second on a busy machine."""

LAST_S = 10.0
"""How long killed processes may take to end. Chosen: the kernel may take seconds to free a large model's memory."""


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
            stream.write(f"$ {self._shown()}\n".encode())
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
        return {"command": [redact(word, secrets_of(os.environ).values()) for word in self._words]}

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

    def _shown(self) -> str:
        return redact(shlex.join(self._words), secrets_of(os.environ).values())

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
