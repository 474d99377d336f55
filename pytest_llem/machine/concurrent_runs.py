"""Who else measured on this machine during a cycle: other workers of the run, and other runs of any user."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_llem.machine.lease_files import lease_dir, leases_are_off, read_facts, try_lock
from pytest_llem.machine.lease_queue import deciding

WORKER_COUNT_VARIABLE = "PYTEST_XDIST_WORKER_COUNT"
CLOCK_STEP_NS = 20_000_000
"""A file's time of change comes from a clock that the kernel advances a few hundred times a second."""


class ConcurrentRuns:
    """Counts the pytest processes that may work on this machine between its making and `count`.

    All xdist workers of this run count, since they derive results and judge while they hold no lease, and so does every
    other run with a lease at some time between: a lease file is locked while its device is in use, and written when
    that is taken. Where there are no leases, only this run's workers are known.
    """

    def __init__(self, run_id: str | None) -> None:
        self._run_id = run_id
        self._since_ns = time.time_ns() - CLOCK_STEP_NS
        self._others = self._seen()

    def count(self) -> int:
        """How many there were, this process included."""
        workers = int(os.environ.get(WORKER_COUNT_VARIABLE, "1"))
        return workers + len(self._others | self._seen())

    def _seen(self) -> set[tuple[object, object]]:
        if leases_are_off():
            return set()
        with deciding():
            return set(self._others_in(lease_dir()))

    def _others_in(self, directory: Path) -> Iterator[tuple[object, object]]:
        for path in directory.glob("*.lock"):
            facts = read_facts(path)
            run, owner = facts.get("run"), facts.get("owner")
            mine = owner == os.getpid() if run is None else run == self._run_id
            if facts and not mine and _used_since(path, self._since_ns):
                yield run, owner


def _used_since(path: Path, since_ns: int) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_mtime_ns >= since_ns or not try_lock(descriptor)
    finally:
        os.close(descriptor)
