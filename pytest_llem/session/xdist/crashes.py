"""A worker of pytest-xdist that died: its item fails with an artifact, and what it was measuring with is ended."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
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

POLL_S = 0.02

FIX = (
    "the last lines of the worker's output may say why; look for the out-of-memory killer (dmesg), for os._exit in a "
    "plugin, and for a job limit"
)


class Crashes:
    """Registered in the controller of xdist's workers."""

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
            said = "\n".join(message(outcome) for outcome in outcomes)
            report.longrepr = f"worker {worker!r} of xdist crashed while running {crashitem!r}\n{said}"
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
    """Record the end of what a dead worker was measuring, and of its item; the outcomes of the cycles concerned."""
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
            outcomes.append(session.store.abandon(key, error))
        except StoreError:
            continue  # somebody else has it in hand
    return outcomes


def _wait_for_end(pid: int) -> None:
    """A worker's channel closes shortly before its process is gone."""
    deadline = time.monotonic() + DYING_S
    while start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _own_cycle(nodeid: str, plans: Iterable[StudyPlan], rootpath: Path) -> Iterator[CycleKey]:
    """The cycle that an item of a study file is about; nothing for gates and users' tests."""
    found = re.fullmatch(r"(?P<path>.+)::test_experiment\[(?P<id>.+)-c(?P<cycle>\d+)\]", nodeid)
    if found is None:
        return
    for plan in plans:
        if plan.path is not None and Path(plan.path) == rootpath / found["path"]:
            hashes = [one.config_hash for one in plan.cycles if one.experiment_id == found["id"]]
            if hashes:
                yield CycleKey(plan.name, found["id"], hashes[0], int(found["cycle"]))


Data = dict[str, Any]

Carried = Generator[None, "Data | None", "Data | None"]


class ReportSerialisation:
    """Registered in a worker of xdist that has met a study: a report that cannot be carried fails, and says why."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(self, report: pytest.CollectReport | pytest.TestReport) -> Carried:
        """Take out what cannot be carried, and fail the report for it; once per item."""
        data = yield
        if data is None or _can_be_carried(data):
            return data
        taken_out, rest = _without_the_rest(data)
        if report.nodeid in self._failed:
            return rest
        self._failed.add(report.nodeid)
        said = str(report.longrepr) + "\n\n" if report.failed else ""
        return {
            **rest,
            "outcome": "failed",
            "longrepr": f"{said}{report.nodeid}: its report cannot be carried from worker to controller: "
            f"{'; '.join(taken_out)}\nfix: use plain str, int, float and bool there: float(value) for a numpy number",
        }


def _can_be_carried(value: object) -> bool:
    import execnet

    try:
        execnet.dumps(value)
    except execnet.DumpError:
        return False
    return True


def _without_the_rest(data: Mapping[str, Any]) -> tuple[list[str], Data]:
    """What was taken out, in words, and what is left."""
    taken_out: list[str] = []
    rest: Data = {}
    for name, value in data.items():
        if _can_be_carried(value):
            rest[name] = value
        elif name == "user_properties":
            rest[name] = [entry for entry in value if _can_be_carried(entry)]
            taken_out += [
                f"user_properties[{entry[0]!r}] is a {_type(entry[1])}" for entry in value if not _can_be_carried(entry)
            ]
        else:
            rest[name] = [] if isinstance(value, list) else None
            taken_out.append(f"{name} is or holds a {_type(value)}")
    return taken_out, rest


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
