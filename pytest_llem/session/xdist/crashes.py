"""Records the end of what a crashed worker of pytest-xdist was measuring.

`RunResults` calls it in the controller. The store keeps the outcome, so no other worker measures the cycle.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.containers import remove_orphaned_containers
from pytest_llem.errors import StoreError, WorkerCrashedError
from pytest_llem.machine.leases import end_orphaned_workers
from pytest_llem.machine.orphaned_workers import start_ticks
from pytest_llem.results.attempts import abandon
from pytest_llem.results.layout import MANIFEST, CycleKey
from pytest_llem.results.manifest import StudyPlan, read_manifest
from pytest_llem.results.state import read_state
from pytest_llem.runners.announcement import announced

if TYPE_CHECKING:
    from pytest_llem.results.state import Outcome
    from pytest_llem.results.store import RunStore

DYING_S = 5.0
"""Longest wait for a worker's process to disappear. Chosen: its channel closes milliseconds before."""

POLL_S = 0.02
"""Pause between two looks. Chosen: short beside starting a replacement worker."""

FIX = (
    "the last lines of the worker's output may say why; look for the out-of-memory killer (dmesg), for os._exit in a "
    "plugin, and for a job limit"
)


def record_crash(store: RunStore, nodeid: str, worker: str, rootpath: Path) -> list[Outcome]:
    """Record what a dead worker was measuring, and its item, as crashed; the outcomes of those cycles."""
    keys: dict[CycleKey, None] = {}
    pid = None
    for announcement in announced(store.run_dir):
        if announcement.worker == worker:
            pid = announcement.pid
            _wait_for_end(pid)
            state = read_state(announcement.events.parent)
            keys |= {state.key: None} if state is not None else {}
            announcement.path.unlink(missing_ok=True)
    end_orphaned_workers(remove_orphaned_containers)
    manifest = read_manifest(store.run_dir / MANIFEST)
    keys |= dict.fromkeys(_own_cycle(nodeid, manifest.studies, rootpath))
    outcomes = []
    for key in keys:
        error = WorkerCrashedError(
            f"{key}: worker {worker} of xdist, which measured it, died",
            fix=FIX,
            details={"worker": worker, "pid": pid, "nodeid": nodeid},
        )
        try:
            outcomes.append(abandon(store, key, error))
        except StoreError:
            continue  # another process is measuring it
    return outcomes


def _wait_for_end(pid: int) -> None:
    """A worker's channel closes shortly before its process is gone."""
    deadline = time.monotonic() + DYING_S
    while start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _own_cycle(nodeid: str, plans: Iterable[StudyPlan], rootpath: Path) -> Iterator[CycleKey]:
    """The cycle that an item of a study file is about; nothing for gates and users' tests."""
    match = re.fullmatch(r"(?P<path>.+)::test_experiment\[(?P<id>.+)-c(?P<cycle>\d+)\]", nodeid)
    if match is None:
        return
    for plan in plans:
        if plan.path is not None and Path(plan.path) == rootpath / match["path"]:
            hashes = [cycle.config_hash for cycle in plan.cycles if cycle.experiment_id == match["id"]]
            if hashes:
                yield CycleKey(plan.name, match["id"], hashes[0], int(match["cycle"]))
