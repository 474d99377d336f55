"""Small files in a run's directory that say which cycles are being measured now.

`measuring`, `prefetch` and the cluster's runner write them; the process with the terminal reads them, for live status
and after a crash of an xdist worker. The keys are private to one run and may change.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import read_json, write_json

ANNOUNCEMENTS = ".live"
PROGRESS_FILE = "ray.json"
WORKER_VARIABLE = "PYTEST_XDIST_WORKER"
"""Set by pytest-xdist in its workers."""


class Announcement:
    """Announces, for the length of a `with` block, that this process measures a cycle."""

    def __init__(self, run_dir: Path, title: str, events: Path, attempt: int = 1) -> None:
        self._path = run_dir / ANNOUNCEMENTS / f"{os.getpid()}.json"
        self._title = title
        self._events = events
        self._attempt = attempt
        self._since = time.time()

    def __enter__(self) -> Announcement:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.say(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def say(self, waiting: str | None) -> None:
        """State what the cycle waits for; `None` once it runs."""
        write_json(
            self._path,
            {
                "title": self._title,
                "events": str(self._events),
                "attempt": self._attempt,
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


class Progress:
    """Counts the cycles of a run on a cluster: pending, running and done, in all and per node. Threads may share it."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / ANNOUNCEMENTS / PROGRESS_FILE
        self._lock = threading.Lock()
        self._since = time.time()
        self._outstanding = 0
        self._running: Counter[str] = Counter()
        self._done: Counter[str] = Counter()

    def outstanding(self, count: int) -> None:
        """So many more cycles are to be had (fewer, when negative): those that wait, and those that run."""
        with self._lock:
            self._outstanding += count
            self._tell()

    def running(self, node: str) -> None:
        """A cycle has begun on a node."""
        with self._lock:
            self._running[node] += 1
            self._tell()

    def done(self, node: str, *, again: bool = False) -> None:
        """A cycle has ended on a node; `again` when it was lost there and will be tried once more."""
        with self._lock:
            self._running[node] -= 1
            self._done[node] += not again
            self._tell()

    def text(self) -> str:
        """One line, busy nodes first."""
        nodes = sorted({*self._running, *self._done}, key=lambda node: (-self._running[node], node))
        each = "; ".join(f"{node} {self._running[node]} running, {self._done[node]} done" for node in nodes)
        running = self._running.total()
        total = f"{max(0, self._outstanding - running)} pending, {running} running, {self._done.total()} done"
        return f"{total} ({each})" if each else total

    def clear(self) -> None:
        """Nothing runs any more."""
        with self._lock:
            self._path.unlink(missing_ok=True)

    def _tell(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state: dict[str, JsonValue] = {
            "title": "ray",
            "events": str(self._path.with_suffix(".none")),
            "since": self._since,
            "waiting": None,
            "progress": self.text(),
        }
        # Each time: the last change of several may stand as long as a cycle takes.
        write_json(self._path, state, durable=False)


@cache
def progress_of(run_dir: Path) -> Progress:
    """The progress of a run: one for all its runners."""
    return Progress(run_dir)
