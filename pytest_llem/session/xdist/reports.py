"""Keeps the report of every item from being lost: unsent ones, uncounted ones, and those of crashed workers.

`start` registers `ItemCount` in the process that reports, `Crashes` in xdist's controller and `ReportSerialisation` in
its workers. No selected item may end without a report: xdist alone drops what it cannot send, and exits with 0.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import pytest

from pytest_llem.results.layout import MANIFEST
from pytest_llem.session.session import LlemSession
from pytest_llem.session.study_tests import message, properties

LOST = (
    "selected, and never reported: the pytest process that ran it, or its report, was lost\n"
    "fix: look above for an internal error or a crashed worker"
)

COMPLETE = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERNAL_ERROR)
"""Exit codes of runs that were not stopped; xdist ends with an internal error when a worker breaks."""


class ItemCount:
    """Makes an item that was selected and never reported a failed one, in all reports, unless the run was stopped."""

    def __init__(self) -> None:
        self._selected: dict[str, None] = {}
        self._reported: set[str] = set()
        self._lost: list[str] = []
        self._stopped = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count what this process selected."""
        self.selected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Count what a worker selected: the same in all."""
        self.selected(ids)

    def selected(self, ids: Sequence[str]) -> None:
        """Count items that will run, by node id."""
        self._selected.update(dict.fromkeys(ids))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count an item when its test ran, or could not because its setup failed or was skipped."""
        if report.when != "teardown" and (report.when != "setup" or not report.passed):
            self._reported.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Remember that something asked the run to end, whatever the exit code."""
        try:
            return (yield)
        except pytest.exit.Exception:
            self._stopped = True
            raise

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare when all is done, and report what was lost before other plugins write their reports."""
        stopped = self._stopped or session.shouldstop or session.shouldfail or session.config.option.collectonly
        if stopped or session.exitstatus not in COMPLETE:
            return
        self._lost = [nodeid for nodeid in self._selected if nodeid not in self._reported]
        for nodeid in self._lost:
            path, _, name = nodeid.partition("::")
            location = (path, None, name or path)
            report = pytest.TestReport(nodeid, location, {}, "failed", longrepr=LOST, when="call")
            session.config.hook.pytest_runtest_logreport(report=report)
        if self._lost and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many were lost."""
        if self._lost:
            terminalreporter.section("llem count", red=True)
            terminalreporter.write_line(
                f"{len(self._lost)} of {len(self._selected)} selected items were never reported; they count as failed"
            )


Data = dict[str, Any]


class ReportSerialisation:
    """Fails a report that a worker of xdist cannot send to its controller, and says why."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> Generator[None, Data | None, Data | None]:
        """Remove what cannot be sent, and fail the report for it; once per item."""
        data = yield
        if data is None or _can_be_sent(data):
            return data
        removed, rest = _sendable(data)
        if report.nodeid in self._failed:
            return rest
        self._failed.add(report.nodeid)
        before = str(report.longrepr) + "\n\n" if report.failed else ""
        return {
            **rest,
            "outcome": "failed",
            "longrepr": f"{before}{report.nodeid}: its report cannot be carried from worker to controller: "
            f"{'; '.join(removed)}\nfix: use plain str, int, float and bool there: float(value) for a numpy number",
        }


def _can_be_sent(value: object) -> bool:
    import execnet

    try:
        execnet.dumps(value)
    except execnet.DumpError:
        return False
    return True


def _sendable(data: Mapping[str, Any]) -> tuple[list[str], Data]:
    """Sentences on what was removed, and what is left."""
    removed: list[str] = []
    rest: Data = {}
    for name, value in data.items():
        if _can_be_sent(value):
            rest[name] = value
        elif name == "user_properties":
            rest[name] = [entry for entry in value if _can_be_sent(entry)]
            removed += [
                f"user_properties[{entry[0]!r}] is a {_type(entry[1])}" for entry in value if not _can_be_sent(entry)
            ]
        else:
            rest[name] = [] if isinstance(value, list) else None
            removed.append(f"{name} is or holds a {_type(value)}")
    return removed, rest


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


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
        outcomes = self._session.results.record_crash(crashitem, worker, self._config.rootpath)
        report.when = "call"  # xdist leaves it open, and JUnit would take it for an error of the setup
        if outcomes:
            messages = "\n".join(message(outcome) for outcome in outcomes)
            report.longrepr = f"worker {worker!r} of xdist crashed while running {crashitem!r}\n{messages}"
            report.user_properties[:] = properties(outcomes[0], self._config.rootpath)
            teardown = pytest.TestReport(crashitem, report.location, {}, "passed", None, "teardown", node=node)
            teardown.user_properties = report.user_properties
            self._teardowns[crashitem] = teardown

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Follow a crashed item's report with the end that never came: JUnit takes an item's properties from there."""
        if report.when == "call" and report.nodeid in self._teardowns:
            self._config.hook.pytest_runtest_logreport(report=self._teardowns.pop(report.nodeid))
