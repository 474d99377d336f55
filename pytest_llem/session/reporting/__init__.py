"""What the process that reports prints and writes: live status, summaries, annotations, and the HTML report.

`start` makes `Reporting` where the terminal is: alone, or in xdist's controller. Its text is for people and may change.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from pytest_llem.errors import DeviceError, LlemError, visible
from pytest_llem.job.files import noted, reason
from pytest_llem.results.layout import MANIFEST
from pytest_llem.results.manifest import read_manifest
from pytest_llem.runners.announcement import ANNOUNCEMENTS
from pytest_llem.servers.plan import server_notice
from pytest_llem.session.reporting import github
from pytest_llem.session.reporting.forecast import Forecast, planned_cycles
from pytest_llem.session.reporting.live import LiveStatus
from pytest_llem.session.reporting.summary import Line, resume_lines, saved_lines, short_path, summary_lines
from pytest_llem.session.reporting.verdicts import is_whole, note_in_junit, shorten, verdict_lines
from pytest_llem.session.xdist.scheduling import is_distributed, worker_count
from pytest_llem.session.xdist.workers import worker_limit

if TYPE_CHECKING:
    from pytest_llem.session.conclusion import Conclusion
    from pytest_llem.session.run import RunOptions
    from pytest_llem.session.session import LlemSession


class Reporting:
    """Prints and writes what the user sees of a run."""

    def __init__(self, config: pytest.Config, session: LlemSession) -> None:
        self._config = config
        self._session = session
        self._live: LiveStatus | None = None
        self._of_studies: list[pytest.TestReport] = []
        self._wrong_studies: list[pytest.CollectReport] = []
        self._verdicts: list[Line] = []
        self._stopped = False
        self._shards_printed: set[str] = set()
        self._conclusion: Conclusion | None = None
        self._html_line: str | None = None
        self._measured = False
        self._problems: list[str] = []
        # pytest captures file descriptor 1 while tests run: the live status needs the terminal itself.
        self._stream: IO[str] | None = None
        if sys.stdout is not None and not session.options.collect_only:
            self._stream = _terminal_stream()

    def pytest_report_header(self) -> list[str]:
        """Print the shards, and xdist's workers with the reason; here, as its controller collects nothing."""
        return [*self._shards(), *self._workers()]

    def pytest_report_collectionfinish(self) -> list[str]:
        """Print what the user should know about the studies before they run."""
        lines: list[str] = []
        for study in [] if self._session.options.collect_only else self._session.studies:
            runners = [note.message for note in self._session.runner_plans.plan(study).notices]
            skipped = self._session.skip_notices(study)
            told = (*study.notices, *runners, server_notice(study), self._session.order_notice(study), *skipped)
            lines += [f"llem: {text}" for text in told if text is not None]
        lines += [f"llem: {text}" for text in (self._session.device_notice(),) if text is not None]
        return [*self._shards(), *map(visible, lines)]

    def _shards(self) -> list[str]:
        """A line for each study whose shard was not printed yet; the plan of a dry run has it too."""
        shard = self._session.options.shard
        if shard is None or self._session.options.collect_only:
            return []
        new = [study for study in self._session.studies if study.name not in self._shards_printed]
        self._shards_printed.update(study.name for study in new)
        return [f"llem: {line}" for line in shard.lines(new)]

    def _workers(self) -> list[str]:
        """A line on the workers of xdist; it says so where there are more of them than devices."""
        if not is_distributed(self._config) or not self._session.studies:
            return []
        try:
            limit = worker_limit(self._session.studies)
        except DeviceError:
            return []  # each item says so
        workers = worker_count(self._config)
        count = f"llem: {workers} worker{'s' * (workers > 1)}"
        orders = (self._session.order_notice(study, workers=limit.workers) for study in self._session.studies)
        told = [f"llem: {text}" for text in (*orders, self._session.device_notice()) if text is not None]
        if workers > limit.workers:
            return [f"{count}, of which {limit.workers} can measure at a time, the others wait: {limit}", *told]
        return [f"{count}: {limit}", *told]

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
        """End the live status where it started in the middle of the loop."""
        self._stop_live()

    def start_live(self) -> None:
        """Show live status from now on; xdist's controller may learn of the first study when its loop runs already."""
        shown = self._config.pluginmanager.has_plugin("terminalreporter")  # not with `-p no:terminal`
        if self._stream is not None and self._live is None and shown:
            isatty = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
            width = self._config.get_terminal_writer().fullwidth
            self._live = LiveStatus(
                self._session.run_dir, self._stream, terminal=isatty, width=width, forecast=self._forecast
            )
            self._live.start()

    def _forecast(self) -> Forecast | None:
        """How far the run is, once its plan is written."""
        run_dir = self._session.run_dir
        plans = read_manifest(run_dir / MANIFEST).studies if (run_dir / MANIFEST).exists() else ()
        cycles, known = planned_cycles(plans, self._session.studies, run_dir)
        races = any(plan.optimize is not None for plan in plans)
        return Forecast(cycles, known=known, at_most=races) if cycles else None

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        """Clear the status line before pytest names the next item."""
        self._clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Clear the status line before pytest reports an item; keep what a study's items did not pass."""
        self._clear()
        properties = dict(report.user_properties)
        if "llem_study" in properties:
            self._measured = True
            if self._live is not None and "llem_artifact" in properties:
                self._live.ended(self._config.rootpath / str(properties["llem_artifact"]))
            if not report.passed:
                self._of_studies.append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep the studies that could not be collected."""
        if report.failed and report.nodeid.endswith((".yaml", ".yml")):
            self._wrong_studies.append(report)

    def _clear(self) -> None:
        if self._live is not None:
            self._live.clear()

    def lost(self, problem: OSError) -> None:
        """Take note that another report could not be written; a broken JUnit file is worse than none."""
        name = problem.filename
        junit = getattr(self._config.option, "xmlpath", None)
        if junit and Path(junit).is_file() and not is_whole(Path(junit)):
            name = junit
            Path(junit).unlink(missing_ok=True)
        self._problems.append(f"{name or 'a report of another plugin'}: cannot be written: {reason(problem)}")

    def finish(self, *, interrupted: bool, stopped: bool) -> bool:
        """Write the run's manifest, summaries and HTML report. `False` where any of these could not be written.

        `stopped` is whether the run ended before its last item, for whatever reason.
        """
        self._stopped = stopped
        run_dir, options = self._session.run_dir, self._session.options
        with noted(self._problems):
            self._conclude(run_dir, interrupted=interrupted)
        written = True
        if options.html is not None and not options.collect_only:
            written, self._html_line = _write_html(run_dir, options.html, options)
        return written and not self._problems

    def _conclude(self, run_dir: Path, *, interrupted: bool) -> None:
        if not (run_dir / MANIFEST).exists():
            if self._measured:
                self._problems.append(f"{run_dir}: gone, and with it what this run measured")
            return
        ended = self._conclusion = self._session.results.conclude(interrupted=interrupted, stopped=self._stopped)
        self._problems += ended.problems
        self._verdicts = verdict_lines(ended.gates, ended.findings, self._session.studies)
        shorten(self._of_studies, ended.gates)
        for announcement in (run_dir / ANNOUNCEMENTS).glob("*"):
            announcement.unlink(missing_ok=True)
        verdicts = [line.text for line in self._verdicts]
        found = ended.optima, ended.carried, ended.races
        github.write_step_summary(ended.rows, ended.plans, ended.gates, verdicts, run_dir, *found)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Say in one line that nothing can be printed any more, where pytest would add its traceback to that."""
        if isinstance(excinfo.value, OSError) and not _can_print():
            capture = self._config.pluginmanager.get_plugin("capturemanager")
            if capture is not None:
                with contextlib.suppress(OSError):
                    capture.stop_global_capturing()  # it would bring the old output back
            # As pytest does for a broken pipe: what is still in the buffer must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stderr.write(
                f"llem: standard output cannot be written: {excinfo.value.strerror}; the run ends here, and what it "
                f"measured is in {self._session.run_dir}\nfix: make room, or write the output somewhere else\n"
            )

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self) -> None:
        """Print the plan of a dry run, or one row per experiment and where the artifacts are."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        gates = self._conclusion.gates if self._conclusion else ()
        findings = self._conclusion.findings if self._conclusion else ()
        junit = getattr(self._config.option, "xmlpath", None)
        if junit:
            with noted(self._problems):
                note_in_junit(Path(junit), gates, findings)
        title, lines = "llem results", self._results()
        if self._session.options.collect_only:
            title, lines = "llem plan", []
            if self._config.get_verbosity() >= 0:
                from pytest_llem.session.reporting.plan import plan_lines  # needs what `-q` does not

                lines = [*map(Line, plan_lines(self._session))]
        if os.environ.get(github.ACTIONS_VARIABLE):
            root = self._config.rootpath
            for line in (
                *github.wrong_studies(self._wrong_studies, root),
                *github.workflow_commands(self._of_studies, gates, findings, self._session.studies, root),
            ):
                terminal.write_line(line)
        if lines:
            terminal.section(title)
            for text, colour in lines:
                terminal.write_line(visible(text), **({} if colour is None else {colour: True}))

    def _results(self) -> list[Line]:
        lines: list[Line] = []
        ended = self._conclusion
        if ended is not None:
            width = self._config.get_terminal_writer().fullwidth
            found = ended.searches, ended.optima, ended.carried, ended.races
            lines += summary_lines(ended.rows, ended.plans, self._session.run_dir, width, *found)
            lines += self._verdicts
            lines += map(Line, ended.registered)
            if ended.saved is not None:
                lines += map(Line, saved_lines(ended.saved))
        if self._html_line is not None:
            lines.append(Line(self._html_line))
        problems = [problem.partition("\nfix: ") for problem in dict.fromkeys(self._problems)]
        fixes = dict.fromkeys(fix for _, _, fix in problems if fix)
        lines += [Line(f"llem: {message}", "red") for message, _, _ in problems]
        lines += [Line(f"fix: {fix}") for fix in fixes]
        if ended is not None and (self._stopped or self._session.results.lost_worker):
            racing = any(race.needed for race in ended.races)
            lines += resume_lines(ended.left, ended.planned, self._session.run.command, more=racing)
        return lines


def _can_print() -> bool:
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _write_html(run_dir: Path, out: Path, options: RunOptions) -> tuple[bool, str]:
    """Write the report of a run that has ended. Whether that was possible, and a line that says where, or why not."""
    from pytest_llem.results.report.page import write_report

    if not list(run_dir.glob("*/*/c*")):
        return False, "--llem-html: no report, because nothing was measured"
    try:
        write_report([run_dir], out, baseline=options.baseline, baseline_dir=options.baseline_dir)
    except LlemError as error:
        return False, f"--llem-html: {error}"
    return True, f"report: {short_path(out)}"


def _terminal_stream() -> IO[str] | None:
    try:
        return os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None
