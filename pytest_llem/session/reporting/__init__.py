"""What the process that owns the terminal shows and writes: live status, summary, GitHub's step summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import pytest

from pytest_llem.runners.announcement import ANNOUNCEMENTS
from pytest_llem.session.reporting.github import ACTIONS_VARIABLE, annotation, write_step_summary
from pytest_llem.session.reporting.html import HtmlReport, report_of
from pytest_llem.session.reporting.live import LiveStatus
from pytest_llem.session.reporting.table import saved_lines, summary_lines

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession


class Reporting:
    """Registered as a plugin in the process that reports: alone, or the controller of xdist's workers."""

    def __init__(self, config: pytest.Config, session: LlemSession) -> None:
        self._config = config
        self._session = session
        self._live: LiveStatus | None = None
        self._annotations: list[str] = []
        self._failing: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._report: HtmlReport | None = None
        # pytest captures file descriptor 1 while tests run: the live status needs the terminal itself.
        self._stream: IO[str] | None = None
        if sys.stdout is not None and not session.options.collect_only:
            self._stream = _terminal_stream()

    def pytest_report_header(self) -> list[str]:
        """Say which shards of the studies on the command line run; xdist's controller collects nothing itself."""
        return self._shards()

    def pytest_report_collectionfinish(self) -> list[str]:
        """Say what the user should know about the studies before they run."""
        studies = [] if self._session.options.collect_only else self._session.studies
        told = [f"llem: {notice}" for study in studies for notice in (*study.notices, *self._session.notices(study))]
        return [*self._shards(), *told]

    def _shards(self) -> list[str]:
        """A line for each study whose shard was not told yet; the plan of a dry run has it too."""
        if self._session.sharding is None or self._session.options.collect_only:
            return []
        new = [study for study in self._session.studies if study.name not in self._told]
        self._told.update(study.name for study in new)
        return [f"llem: {line}" for line in self._session.sharding.lines(new)]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Show live status while tests run."""
        self.start_live()
        try:
            return (yield)
        finally:
            self._stop_live()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """End the live status where it began in the middle of the loop."""
        self._stop_live()

    def start_live(self) -> None:
        """Show live status from now on; xdist's controller may learn of the first study when its loop runs already."""
        if self._stream is not None and self._live is None:
            isatty = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
            width = self._config.get_terminal_writer().fullwidth
            self._live = LiveStatus(self._session.run_dir, self._stream, terminal=isatty, width=width)
            self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        """Clear the status line before pytest names the next item."""
        self._clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Clear the status line before pytest reports an item, and remember failed gates."""
        self._clear()
        found = dict(report.user_properties)
        if report.failed and "llem_study" in found and os.environ.get(ACTIONS_VARIABLE):
            self._annotations.append(annotation(report.nodeid, report.longreprtext))
        if report.failed and "llem_verdict" in found:
            self._failing.add((str(found["llem_study"]), str(found["llem_experiment"])))

    def _clear(self) -> None:
        if self._live is not None:
            self._live.clear()

    def finish(self) -> bool:
        """Write the run's manifest and summaries, and the report that was asked for; whether that could be written."""
        run_dir = self._session.run_dir
        if (run_dir / "run.json").exists():
            self._session.conclude(self._failing)
            from pytest_llem.results.judging import read_gates

            write_step_summary(self._session.rows, read_gates(run_dir), run_dir)
            for leftover in (run_dir / ANNOUNCEMENTS).glob("*"):
                leftover.unlink(missing_ok=True)
        if self._session.options.html is not None and not self._session.options.collect_only:
            self._report = report_of(self._session, self._session.options.html)
        return self._report is None or self._report.written

    def _plan(self) -> list[str]:
        from pytest_llem.session.reporting.plan import plan_lines

        return plan_lines(self._session)

    def summary(self) -> None:
        """Print the plan of a dry run, or one row per experiment and where the artifacts are."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        if self._session.options.collect_only:
            lines = self._plan() if self._config.get_verbosity() >= 0 else []
            title = "llem plan"
        else:
            lines = summary_lines(
                self._session.rows, self._session.run_dir, self._config.get_terminal_writer().fullwidth
            )
            title = "llem results"
            if self._session.saved is not None:
                lines += saved_lines(self._session.saved)
            if self._report is not None:
                lines.append(self._report.line)
        for line in self._annotations:
            terminal.write_line(line)
        if lines:
            terminal.section(title)
            for line in lines:
                terminal.write_line(line)


def _terminal_stream() -> IO[str] | None:
    try:
        return os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None
