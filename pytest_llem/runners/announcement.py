"""Small files in a run's directory that say which cycles are being measured now.

Written by whoever measures (a pytest process, a cluster's runner) and read by the process that owns the terminal. The
keys are private to one run and may change.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pytest_llem.errors import StoreError
from pytest_llem.job.files import read_json, write_json

ANNOUNCEMENTS = ".live"
WORKER_VARIABLE = "PYTEST_XDIST_WORKER"
"""Set by pytest-xdist in its workers."""


class Announcement:
    """Announces, for the length of a `with` block, that this process measures a cycle."""

    def __init__(self, run_dir: Path, title: str, events: Path) -> None:
        self._path = run_dir / ANNOUNCEMENTS / f"{os.getpid()}.json"
        self._title = title
        self._events = events
        self._since = time.time()

    def __enter__(self) -> Announcement:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.say(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)

    def say(self, waiting: str | None) -> None:
        """State what the cycle waits for; `None` once it runs."""
        write_json(
            self._path,
            {
                "title": self._title,
                "events": str(self._events),
                "since": self._since,
                "waiting": waiting,
                "pid": os.getpid(),
                "worker": os.environ.get(WORKER_VARIABLE),
            },
            durable=False,
        )


@dataclass(frozen=True)
class Announced:
    """An announcement of an xdist worker: its file, the worker's name and process, and the cycle's events."""

    path: Path
    worker: str
    pid: int
    events: Path


def announced(run_dir: Path) -> Iterator[Announced]:
    """The announcements of xdist workers that are still there."""
    for path in (run_dir / ANNOUNCEMENTS).glob("*.json"):
        with contextlib.suppress(StoreError):
            data = read_json(path)
            pid, worker = data.get("pid"), data.get("worker")
            if isinstance(pid, int) and isinstance(worker, str):
                yield Announced(path, worker, pid, Path(str(data["events"])))
