"""What a started server is to the runner, whatever it is started as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pytest_llem.errors import JsonValue


@dataclass(frozen=True)
class Ended:
    """How a server ended: `code` is its exit code, negative for a signal, `None` where nobody can say.

    `said` says more where more is known, and `fix` what to do about it.
    """

    code: int | None
    said: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        if self.said is not None:
            return self.said
        if self.code is None:
            return "it is gone, and nobody saw how"
        if self.code < 0:
            return f"it was killed by signal {-self.code}"
        return f"it ended with exit code {self.code}"


class Server(Protocol):
    """A server that was started, and may be starting, ready or gone."""

    log: Path
    started_as: Literal["command", "container"]

    @property
    def pid(self) -> int | None:
        """The root of its process tree, as this machine sees it; `None` where unknown."""

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """What a result should say about it: its command, its image."""

    def ended(self) -> Ended | None:
        """How it ended; `None` while it runs. Never waits."""

    def serves(self, port: int) -> bool:
        """Whether it is this very server that listens at a port, as far as this can be known."""

    def stop(self, grace_s: float) -> None:
        """End it and all that it started: asked first, killed after `grace_s` seconds. Safe to call twice."""


def log_tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a server's log, from at most its last 64 KiB; empty when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 65536))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
