"""Progress of a run on a cluster for the live status: cycles pending, running and done, in all and per node.

The runner and the session's prefetch count here; the process that owns the terminal reads the file.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json
from pytest_llem.runners.announcement import ANNOUNCEMENTS

FILE = "ray.json"


class Progress:
    """Counts cycles, and tells the process that owns the terminal through the run's directory. Threads may share it."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / ANNOUNCEMENTS / FILE
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
