"""What the process that reports adds for studies: scheduling, the count of items, and what crashed workers leave."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_llem.session.stash import REPORTING, TALLY
from pytest_llem.session.xdist.scheduling import is_distributed, settle_scheduling

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession


def distribute(config: pytest.Config, session: LlemSession) -> None:
    """Set up the process that reports, before its items run. `pytest.UsageError` for a scheduling that does not fit."""
    settle_scheduling(config)
    config.stash[TALLY] = ItemCount()
    config.pluginmanager.register(config.stash[TALLY], "llem-tally")
    if is_distributed(config):
        from pytest_llem.session.xdist.crashes import Crashes
        from pytest_llem.session.xdist.workers import Header

        config.pluginmanager.register(Crashes(config, session), "llem-crashes")
        config.pluginmanager.register(Header(config, session), "llem-workers")


def begin_late(config: pytest.Config, ids: Sequence[str]) -> None:
    """Begin in xdist's controller, whose loop runs already, for studies that its workers met while they collected."""
    from pytest_llem.session.start import begin

    begin(config)
    config.stash[TALLY].selected(ids)
    config.stash[REPORTING].start_live()


LOST = (
    "selected, and never reported: the pytest process that ran it, or its report, was lost\n"
    "fix: look above for an internal error or a crashed worker"
)

COMPLETE = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERNAL_ERROR)
"""Exit codes of runs that came to their end, as far as xdist could: it ends by itself when a worker breaks."""


class ItemCount:
    """Registered in the process that reports. An item that was lost becomes a failed one, so that all reports have it.

    A run that was stopped (`-x`, Ctrl-C, `--sw`) ends elsewhere: what it did not come to is not lost.
    """

    def __init__(self) -> None:
        self._selected: dict[str, None] = {}
        self._reported: set[str] = set()
        self._lost: list[str] = []
        self._stopped = False

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
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Remember that somebody asked the run to end, whatever exit code they gave."""
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
            session.config.hook.pytest_runtest_logreport(report=_lost(nodeid))
        if self._lost and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

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
