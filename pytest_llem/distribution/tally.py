"""The count at the end of a run: every selected item was reported, or the run fails and says which were not."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest

LOST = (
    "selected, and never reported: the pytest process that ran it, or its report, was lost\n"
    "fix: look above for an internal error or a crashed worker"
)


class Tally:
    """Registered in the process that reports. An item that was lost becomes a failed one, so that all reports have it.

    A run that was stopped (`-x`, Ctrl-C, `--sw`) ends elsewhere: what it did not come to is not lost.
    """

    def __init__(self) -> None:
        self._selected: dict[str, None] = {}
        self._reported: set[str] = set()
        self._lost: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take in what this process selected."""
        self.selected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Take in what a worker selected: the same as the others."""
        self.selected(ids)

    def selected(self, ids: Sequence[str]) -> None:
        """Take in the node ids of items that will run."""
        self._selected.update(dict.fromkeys(ids))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count an item when its test ran, or could not because its setup failed or was skipped."""
        if report.when != "teardown" and (report.when != "setup" or not report.passed):
            self._reported.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Compare when all is done, and report what was lost."""
        try:
            result = yield
        except (AssertionError, RuntimeError):  # xdist's own, after a worker's internal error or without any worker
            self._report_lost(session)
            raise
        if not (session.config.option.collectonly or session.shouldstop or session.shouldfail):
            self._report_lost(session)
        return result

    def _report_lost(self, session: pytest.Session) -> None:
        self._lost = [nodeid for nodeid in self._selected if nodeid not in self._reported]
        for nodeid in self._lost:
            session.config.hook.pytest_runtest_logreport(report=_lost(nodeid))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many were lost."""
        if self._lost:
            terminalreporter.section("llem count", red=True)
            terminalreporter.write_line(
                f"{len(self._lost)} of {len(self._selected)} selected items were never reported; they count as failed"
            )


def _lost(nodeid: str) -> pytest.TestReport:
    path = nodeid.split("::")[0]
    return pytest.TestReport(
        nodeid=nodeid,
        location=(path, None, nodeid.partition("::")[2] or path),
        keywords={},
        outcome="failed",
        longrepr=LOST,
        when="call",
    )
