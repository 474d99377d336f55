"""Handles a worker of pytest-xdist that died: its item fails with artifacts, and its worker processes are ended.

`start.py` registers `Crashes` in the controller. The store keeps the outcome, so no other worker measures the cycle.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.containers.identity import start_ticks
from pytest_llem.errors import StoreError, WorkerCrashedError
from pytest_llem.machine.leases import end_leftovers
from pytest_llem.results.layout import MANIFEST, CycleKey
from pytest_llem.results.manifest import StudyPlan, read_manifest
from pytest_llem.results.state import read_state
from pytest_llem.runners.announcement import announced
from pytest_llem.session.items import message, properties

if TYPE_CHECKING:
    from pytest_llem.results.outcome import Outcome
    from pytest_llem.session.session import LlemSession


DYING_S = 5.0
"""Longest wait for a worker's process to disappear. Chosen: its channel closes milliseconds before."""

POLL_S = 0.02
"""Pause between two looks. Chosen: short beside starting a replacement worker."""

FIX = (
    "the last lines of the worker's output may say why; look for the out-of-memory killer (dmesg), for os._exit in a "
    "plugin, and for a job limit"
)


class Crashes:
    """Reports what a crashed worker was running, in the controller."""

    def __init__(self, config: pytest.Config, session: LlemSession) -> None:
        self._config = config
        self._session = session
        self._teardowns: dict[str, pytest.TestReport] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Turn xdist's report of a crashed item into one like a failed cycle's, with the artifacts that it names."""
        run_dir = self._session.run_dir
        if not (run_dir / MANIFEST).exists():
            return
        node: Any = vars(report)["node"]
        worker = str(node.gateway.id)
        outcomes = record_crash(self._session, crashitem, worker)
        report.when = "call"  # xdist leaves it open, and JUnit would take it for an error of the setup
        if outcomes:
            messages = "\n".join(message(outcome) for outcome in outcomes)
            report.longrepr = f"worker {worker!r} of xdist crashed while running {crashitem!r}\n{messages}"
            report.user_properties[:] = properties(outcomes[0], self._config.rootpath)
            self._teardowns[crashitem] = _teardown_of(report, node)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Follow a crashed item's report with the end that never came: JUnit takes an item's properties from there."""
        if report.when == "call" and report.nodeid in self._teardowns:
            self._config.hook.pytest_runtest_logreport(report=self._teardowns.pop(report.nodeid))


def _teardown_of(report: pytest.TestReport, node: object) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=report.nodeid,
        location=report.location,
        keywords={},
        outcome="passed",
        longrepr=None,
        when="teardown",
        user_properties=report.user_properties,
        node=node,
    )


def record_crash(session: LlemSession, nodeid: str, worker: str) -> list[Outcome]:
    """Record what a dead worker was measuring, and its item, as crashed; the outcomes of those cycles."""
    keys: dict[CycleKey, None] = {}
    pid = None
    for announcement in announced(session.run_dir):
        if announcement.worker == worker:
            pid = announcement.pid
            _wait_for_end(pid)
            state = read_state(announcement.events.parent)
            keys |= {state.key: None} if state is not None else {}
            announcement.path.unlink(missing_ok=True)
    end_leftovers()
    manifest = read_manifest(session.run_dir / MANIFEST)
    keys |= dict.fromkeys(_own_cycle(nodeid, manifest.studies, session.config.rootpath))
    outcomes = []
    for key in keys:
        error = WorkerCrashedError(
            f"{key}: worker {worker} of xdist, which measured it, died",
            fix=FIX,
            details={"worker": worker, "pid": pid, "nodeid": nodeid},
        )
        try:
            outcomes.append(session.results.store.abandon(key, error))
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
