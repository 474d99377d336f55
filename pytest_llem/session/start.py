"""Sets a pytest process up for studies, and holds the hooks that only such a process needs.

`plugin.py` calls it when the command line names a study or a test asks for a result, and to check options; a plain run
must not import it, for its cost. Hooks only hand over to classes of their own.
"""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.job.files import require_room
from pytest_llem.session.collection import (
    add_words,
    builtin_studies,
    collect_builtin,
    collect_study,
    deselect,
    let_reach_network,
    parametrize,
    restore_order,
    take_in_studies,
)
from pytest_llem.session.run import STUDY_PLUGIN, named, run_identity, study_files, without_garbage_collection
from pytest_llem.session.session import LlemSession
from pytest_llem.session.study_tests import outcome_for, skip_unless_raced, usable
from pytest_llem.session.xdist.reports import Crashes, ItemCount, ReportSerialisation
from pytest_llem.session.xdist.scheduling import choose_scheduling, is_distributed, refuse_in_worker

if TYPE_CHECKING:
    from pytest_llem.results.schema import Result
    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.session.reporting import Reporting

SESSION: pytest.StashKey[LlemSession] = pytest.StashKey()
"""The session is made before plugins are configured where `-n auto` asks for the number of workers."""


CYCLE_BYTES = 64 << 10
"""What a cycle's files and its share of the run's take on a disk, in blocks, without long series (docs/scale.md)."""

RUN_BYTES = 1 << 20
"""Chosen: the documents and locks of a run of few cycles take a tenth of it."""

CYCLE_FILES = 14
"""Files, locks and directories of a cycle (docs/scale.md)."""


class StudyPlugin:
    """The one plugin object of a process that has met a study. `reporting` and `item_count` in the controller only."""

    def __init__(self, config: pytest.Config, session: LlemSession) -> None:
        self.session = session
        self.reporting: Reporting | None = None
        self.item_count: ItemCount | None = None
        self._config = config
        self._collected: tuple[pytest.Item, ...] = ()

    def collect_study(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector:
        """The collector of a study file."""
        return collect_study(file_path, parent, self.session)

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise a test with a study's cycles or experiments."""
        parametrize(metafunc, self.session)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hand the settings and the loaded studies over to a worker of xdist."""
        node.workerinput["llem_handover"] = self.session.handover

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        """Collect studies without garbage collection."""
        with without_garbage_collection():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, Any]:
        """Collect the package's studies beside the paths of the command line."""
        report = yield
        if isinstance(collector, pytest.Session):
            report.result.extend(collect_builtin(collector, self.session))
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        """See the items before any other plugin changes them."""
        add_words(items)
        let_reach_network(self._config, items)
        self._collected = tuple(items)
        return (yield)

    def select(self, items: list[pytest.Item]) -> None:
        """Restore the studies' order, and leave out other shards and tests that were not asked for."""
        restore_order(items, self._collected)
        self._collected = ()
        options, config = self.session.options, self._config
        shard = options.shard
        if shard is not None:
            deselect(config, items, lambda cycle: cycle is not None and not shard.holds(cycle))
        asked = config.args_source is pytest.Config.ArgsSource.ARGS or config.option.keyword or config.option.markexpr
        if options.explicit and not asked:
            deselect(config, items, lambda _: True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write down what will run, if there is room for it."""
        self._require_room([item.nodeid for item in session.items])
        with self._named_out():
            self.session.collected(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Look for room in the controller, where the workers' items are known."""
        self._require_room(ids)

    def _require_room(self, ids: Sequence[str]) -> None:
        """Raise `pytest.UsageError` before anything is measured where the disk cannot hold the results of items."""
        options = self.session.options
        if self.reporting is None or options.collect_only or options.skip_preflight:
            return
        cycles = sum("::test_experiment[" in nodeid for nodeid in ids)
        with self._named_out():
            require_room(
                options.out, needed_bytes=RUN_BYTES + cycles * CYCLE_BYTES, needed_files=(cycles + 1) * CYCLE_FILES
            )

    def _named_out(self) -> AbstractContextManager[None]:
        return named(f"--llem-out={self.session.options.out}", "choose a directory that can be written")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Start what a cluster can measure before the items come to it."""
        if not session.testsfailed and not session.config.getoption("setuponly", False):
            self.session.prefetch(session.items, self._tell)

    def _tell(self, line: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(line)

    def results_for(self, item: pytest.Item, cycles: Sequence[ExperimentCycle]) -> list[Result]:
        """The results of cycles for a user's test; skips or fails it as `study_tests.usable` says."""
        for cycle in cycles:
            skip_unless_raced(item, self.session, cycle)
        outcomes = [outcome_for(item, self.session, cycle) for cycle in cycles]
        return [usable(outcome, item, self.session, cycle) for outcome, cycle in zip(outcomes, cycles, strict=True)]

    def cycles_of(self, experiment: ExperimentCycle) -> list[ExperimentCycle]:
        """All cycles of an experiment that its study asks for, or that a race over its settings needs."""
        return (
            experiment.cycles()
            if experiment.study.optimize is None
            else self.session.results.races.cycles_of(experiment)
        )

    def finish(self, session: pytest.Session) -> None:
        """Release the runners; in the controller, write the run's manifest and summaries."""
        self.session.close()
        shard = self.session.options.shard
        nothing = session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        if nothing and shard is not None and shard.is_empty(self.session.studies):
            session.exitstatus = pytest.ExitCode.OK  # the other shards have it all: an empty one has done its part
        interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED
        ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        stopped = not ended or bool(session.shouldstop or session.shouldfail)
        written = self.reporting is None or self.reporting.finish(interrupted=interrupted, stopped=stopped)
        if not written and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def started_late(self, ids: Sequence[str]) -> None:
        """Catch up in xdist's controller, whose loop runs already, when its workers met a study as they collected."""
        if self.item_count is not None and self.reporting is not None:
            self.item_count.selected(ids)
            self.reporting.start_live()


def start(config: pytest.Config) -> StudyPlugin:
    """Set this process up for studies: arguments, reports, signals. Called once.

    xdist's workers get what the controller has loaded; it starts after their collection when only markers name studies.
    """
    refuse_in_worker(config)
    handover = getattr(config, "workerinput", {}).get("llem_handover")
    session = validated_session(config) if handover is None else LlemSession.from_handover(config, handover)
    take_in_studies(config)
    plugin = StudyPlugin(config, session)
    register = config.pluginmanager.register
    # Registered before other plugins' cleanups, and so the last: what was left out of garbage collection comes back.
    config.add_cleanup(gc.unfreeze)
    if session.run.in_controller:
        _report(config, plugin)
    else:
        register(ReportSerialisation(), "llem-report-serialisation")
    if handover is None:
        _load_named_studies(config, session)
    register(plugin, STUDY_PLUGIN)
    _interrupt_on_sigterm()
    return plugin


def _report(config: pytest.Config, plugin: StudyPlugin) -> None:
    """Set up the process that reports. `pytest.UsageError` for a scheduling that does not fit."""
    from pytest_llem.session.reporting import Reporting

    session, register = plugin.session, config.pluginmanager.register
    has_junit = config.pluginmanager.has_plugin("junitxml")  # not with `-p no:junitxml`
    if has_junit and not session.options.collect_only and not config.option.xmlpath:
        config.option.xmlpath = str(session.run_dir / "junit.xml")
    choose_scheduling(config)
    plugin.reporting = Reporting(config, session)
    register(plugin.reporting, "llem-reporting")
    if not config.getoption("setuponly", False):  # then no item is run, and none reported
        plugin.item_count = ItemCount()
        register(plugin.item_count, "llem-item-count")
    if is_distributed(config):
        register(Crashes(config, session), "llem-crashes")


def validated_session(config: pytest.Config) -> LlemSession:
    """The session of this process, whose options make sense; made by the first call. Raises `pytest.UsageError`."""
    if SESSION not in config.stash:
        from pytest_llem.session.options import run_options

        session = LlemSession(config, run_identity(config), run_options(config))
        where = "--llem-baseline" if config.getoption("llem_baseline") else "llem_baseline"
        with named(f"{where}={session.options.baseline}", "name a saved baseline, a run's directory or a results file"):
            _ = session.baseline
        config.stash[SESSION] = session
    return config.stash[SESSION]


def _load_named_studies(config: pytest.Config, session: LlemSession) -> None:
    """Load the command line's studies; `pytest.UsageError` for their isolation, the rest is collection's to report."""
    for path in study_files(config, (*config.args, *builtin_studies(config))):
        try:
            session.study(path)
        except LlemError as error:
            if error.category == "isolation":
                raise pytest.UsageError(str(error)) from None


def _interrupt_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does: workers killed, results kept, pytest's exit code."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, interrupt)
