"""The results of a run as one pytest process sees them: from the run's store, or measured now.

`LlemSession.results` imports it on first use, for fixtures, tests and reports, because it needs what only measuring
needs. The lock order must stay: the store's lock of a result, then the device lease, then the runner.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_llem.containers import remove_orphaned_containers
from pytest_llem.errors import JsonValue, LlemError, NotReleasedError, StoreError, WorkerCrashedError
from pytest_llem.job.files import writing
from pytest_llem.job.wire import encode
from pytest_llem.machine.leases import remove_orphans
from pytest_llem.machine.processes import start_ticks
from pytest_llem.results.attempts import abandon, get_or_measure
from pytest_llem.results.baselines import Baseline
from pytest_llem.results.confirming import confirmed, unconfirmed
from pytest_llem.results.gate_report import GateReport, write_gate
from pytest_llem.results.judging import judge_experiment, precise_after
from pytest_llem.results.layout import MANIFEST, CycleKey
from pytest_llem.results.manifest import read_manifest
from pytest_llem.results.rescored import scored_now
from pytest_llem.results.resume import EarlierRuns, Reuse
from pytest_llem.results.searched import EVIDENCE, tells_of_load
from pytest_llem.results.state import TERMINAL, Outcome, StateName, read_state
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import (
    MetricSummary,
    summarise_metrics,
)
from pytest_llem.runners.announcement import announced
from pytest_llem.session.conclusion import Conclusion, conclude
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.measuring import Measurer
from pytest_llem.session.prefetch import Prefetch, begin_prefetch
from pytest_llem.session.racing import Races
from pytest_llem.session.run import RunIdentity, RunOptions
from pytest_llem.session.run_plan import cycle_of_item, write_plan
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.session.searching import SearchedCycle, under_load

DYING_S = 5.0
"""Longest wait for a worker's process to disappear. Chosen: its channel closes milliseconds before."""

POLL_S = 0.02
"""Pause between two looks. Chosen: short beside starting a replacement worker."""

CRASH_FIX = (
    "the last lines of the worker's output may say why; look for the out-of-memory killer (dmesg), for os._exit in a "
    "plugin, and for a job limit"
)


class RunResults:
    """Answers for everything in this process that asks for results."""

    def __init__(self, run: RunIdentity, options: RunOptions, runner_plans: RunnerPlans) -> None:
        self._run = run
        self._options = options
        self._run_dir = options.out / run.id
        self._runner_plans = runner_plans
        self._prefetch: Prefetch | None = None
        self._last_searched: SearchedCycle | None = None
        self.lost_worker = False
        """Whether a worker of xdist died, and with it what it measured."""

    @cached_property
    def _measurer(self) -> Measurer:
        return Measurer(self._options, self._run.id, self._run_dir, self._runner_plans)

    @cached_property
    def store(self) -> RunStore:
        """The run's store; the first process that needs it creates its directory."""
        with writing(self._run.lock), FileLock(self._run.lock):
            exists = (self._run_dir / MANIFEST).exists()
            store = RunStore.open(self._run_dir) if exists else RunStore.create(self._options.out, self._run.id)
        if self._run.in_controller:
            self._run.lock.unlink(missing_ok=True)
        return store

    def get_or_measure(self, cycle: ExperimentCycle, *, retried: bool) -> Outcome:
        """The outcome of a cycle: from the store, or measured now; `retried` except for gates, which never retry."""
        if self._prefetch is not None:
            self._prefetch.wait(replace(cycle, step=None).key)
        return self._from_store(cycle, retried=retried)

    def _from_store(self, cycle: ExperimentCycle, *, retried: bool) -> Outcome:
        if cycle.experiment.search is None:
            return self._measured(cycle, retried=retried)
        known = self.store.outcome(cycle.key) if cycle.step is None else None
        if known is not None:
            return known
        searched = self._searched(cycle)
        with self._storing():
            searched.go_on(self.store, self._window, cycle.step)
            whole = searched.conclude(self.store)
        return whole if whole is not None and cycle.step is None else searched.windows[: cycle.step][-1].outcome

    def _searched(self, cycle: ExperimentCycle) -> SearchedCycle:
        """A search as far as this process has seen it come: the items of its windows follow one another."""
        searched = self._last_searched
        if searched is None or searched.cycle.key != replace(cycle, step=None).key:
            searched = self._last_searched = SearchedCycle.begin(cycle)
        return searched

    def _window(self, window: ExperimentCycle, load: float) -> Outcome:
        return self._measured(under_load(window, load), retried=True, load=load)

    def _measured(self, cycle: ExperimentCycle, *, retried: bool, load: float | None = None) -> Outcome:
        with self._storing():
            return get_or_measure(
                self.store,
                cycle.key,
                lambda attempt, job_dir: self._measurer.measure(cycle, attempt, job_dir),
                retries=cycle.study.execution.retries if retried else 0,
                reuse=(lambda: self._reusable(cycle, load)) if self._options.resume else None,
            )

    def answered_before(self, window: ExperimentCycle) -> tuple[str, Outcome | None] | None:
        """The answer of a search for which a window is not needed; windows before it that are absent are measured.

        Beside it the search's outcome where it was given up now, for windows whose own items were not selected.
        """
        if self._prefetch is not None:
            self._prefetch.wait(replace(window, step=None).key)
        searched, before = self._searched(window), (window.step or 1) - 1
        with self._storing():
            searched.go_on(self.store, self._window, before)
            if searched.answer is None or len(searched.windows) > before:
                return None
            known = self.store.outcome(searched.cycle.key) is not None
            whole = searched.conclude(self.store)
        return searched.answer, whole if searched.given_up and not known else None

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Make an `OSError` of the file system that holds the run a `WriteError`; others are no business of it."""
        try:
            yield
        except OSError as problem:
            inside = problem.filename is not None and Path(str(problem.filename)).is_relative_to(self._run_dir)
            if not inside and problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            with writing(Path(str(problem.filename)) if inside else self._run_dir):
                raise

    def _reusable(self, cycle: ExperimentCycle, load: float | None) -> Reuse:
        try:
            identity, *others = self._measurer.identities(cycle, self.store.environment)
        except LlemError as error:  # measuring meets the same obstacle, and explains it
            return Reuse(None, error.message)
        study, besides = cycle.study, EVIDENCE if load is not None else ()
        found = self._earlier_runs.find(cycle.key, identity, study.thresholds, others, study.percentiles, besides)
        found = scored_now(found, cycle.experiment.config.workload)
        if found.result is None or load is None or found.result.experiment.config == encode(cycle.experiment.config):
            return found
        return Reuse(None, f"its load was another than {load:.4g}")

    @cached_property
    def _earlier_runs(self) -> EarlierRuns:
        return EarlierRuns(self._options.out, self._run.id)

    def tells_of_load(self, window: ExperimentCycle, outcome: Outcome) -> bool:
        """Whether a window's outcome says of its load whether it is too much; false where none is searched."""
        search = window.experiment.search
        return search is not None and window.step is not None and tells_of_load(search, outcome)

    @cached_property
    def races(self) -> Races:
        """The races of the run's studies."""
        return Races(self._run_dir, lambda cycle: self.get_or_measure(cycle, retried=True), self.store.outcome)

    def precise_before(self, cycle: ExperimentCycle) -> int | None:
        """After how many cycles, before an optional one, `target_ci` is reached.

        Cycles that are absent are measured for it. `None` where the optional cycle is needed.
        """
        outcomes: list[Outcome] = []
        for number in range(1, cycle.cycle or 1):
            outcomes.append(self.get_or_measure(replace(cycle, cycle=number, step=None), retried=False))
            if precise_after(outcomes, cycle.study.execution):
                return number
        return None

    def judge(self, experiment: ExperimentCycle, baseline: Baseline | None) -> GateReport:
        """Judge an experiment into `gate.json`, measuring absent cycles. `StoreError` if the baseline lacks it."""
        outcomes = [self.get_or_measure(cycle, retried=False) for cycle in experiment.cycles()]
        directory = outcomes[0].directory.parent
        # What `compare` allows, and its alpha, are those of budgets too, for which no limit has to stand beside them.
        expect, compare = experiment.experiment.expect, experiment.experiment.gates.compare

        def judge(cycles: Sequence[Outcome]) -> GateReport:
            return judge_experiment(cycles, expect, compare, baseline, strict=self._options.strict)

        report = judge(outcomes)
        if report.status == "fail" and experiment.study.execution.confirm:
            write_gate(directory, unconfirmed(report))
            report = confirmed(report, outcomes, self._measured_once_more(experiment), judge)
        write_gate(directory, report)
        return report

    def _measured_once_more(self, experiment: ExperimentCycle) -> list[Outcome]:
        """The cycles that confirm a failed gate, up to the first that fails; no other item would retry these."""
        outcomes: list[Outcome] = []
        for cycle in experiment.once_more():
            if not outcomes and self.store.outcome(cycle.key) is None:
                with contextlib.suppress(NotReleasedError):  # the cycle finds what is left on the device, and says so
                    self.unload()  # what the planned cycles shared, these must not share
            outcomes.append(self.get_or_measure(cycle, retried=True))
            if outcomes[-1].result is None:
                break
        return outcomes

    def none_valid(self, cycles: Iterable[ExperimentCycle], ended: Sequence[StateName] = TERMINAL) -> bool:
        """Whether all of these cycles have ended, in one of these states, and none of them is valid."""
        states = [read_state(self.store.directory(cycle.key)) for cycle in cycles]
        return all(state is not None and state.state in ended and state.state != "valid" for state in states)

    def figures(self, experiment: ExperimentCycle) -> Mapping[str, MetricSummary]:
        """The experiment's metrics over its valid cycles, once all that its study asks for have ended; else empty.

        With `target_ci` that is the cycle after which it stops.
        """
        if experiment.study.optimize is not None:
            return {}  # a cycle cannot tell that it is the last one
        execution = experiment.study.execution
        last = execution.last_cycle
        keys = [replace(experiment, cycle=number, step=None).key for number in range(1, last + 1)]
        states = [read_state(self.store.directory(key)) for key in keys]
        ended = [key for key, state in zip(keys, states, strict=True) if state is not None and state.state in TERMINAL]
        if not {cycle.key for cycle in experiment.cycles()} <= {*ended}:
            return {}  # states are small: results are read once, after the last cycle
        outcomes = [outcome for key in ended if (outcome := self.store.outcome(key)) is not None]
        further = execution.target_ci is not None and len(ended) < last and not precise_after(outcomes, execution)
        if further and experiment.cycle is not None:
            return {}
        valid = [outcome.result for outcome in outcomes if outcome.valid and outcome.result is not None]
        return summarise_metrics(valid, self._options.baseline_dir)

    def prefetch(
        self, items: Sequence[pytest.Item], tell: Callable[[str], None], among: Mapping[str, Mapping[str, str | None]]
    ) -> None:
        """Start the cycles that the items need on runners that measure several at a time; items wait for theirs."""
        self._prefetch = begin_prefetch(items, self._measurer, self._from_store, self._run_dir, tell, among)

    def queue_in_order(self, cycles: Iterable[ExperimentCycle]) -> None:
        """Have this worker's cycles wait for devices in the order of the run, which several workers share."""
        names = [(cycle.study.name, cycle.id, cycle.cycle) for cycle in cycles]
        self._measurer.queue_positions = {name: position for position, name in enumerate(names)}

    def write_plan(self, cycles: Iterable[ExperimentCycle], facts: Mapping[str, JsonValue] | None) -> None:
        """Write what will run to the manifest."""
        write_plan(self.store.run_dir, self._run, cycles, facts)

    def conclude(self, *, interrupted: bool, stopped: bool) -> Conclusion:
        """Bring manifest and summaries up to date, and save the baseline asked for."""
        return conclude(self.store, self._options, interrupted=interrupted, stopped=stopped)

    def record_crash(self, nodeid: str, worker: str, rootpath: Path) -> list[Outcome]:
        """Record an item and what its dead xdist worker was measuring as crashed, so that none measures it again."""
        self.lost_worker = True
        keys: dict[CycleKey, None] = {}
        pid = None
        for announcement in announced(self._run_dir):
            if announcement.worker == worker:
                pid = announcement.pid
                _wait_for_end(pid)
                state = read_state(announcement.events.parent)
                keys |= {state.key: None} if state is not None else {}
                announcement.path.unlink(missing_ok=True)
        remove_orphans(remove_orphaned_containers)
        manifest = read_manifest(self._run_dir / MANIFEST)
        keys |= dict.fromkeys(cycle_of_item(nodeid, manifest.studies, rootpath))
        outcomes = []
        for key in keys:
            error = WorkerCrashedError(
                f"{key}: worker {worker} of xdist, which measured it, died",
                fix=CRASH_FIX,
                details={"worker": worker, "pid": pid, "nodeid": nodeid},
            )
            with contextlib.suppress(StoreError):  # another process is measuring it
                outcomes.append(abandon(self.store, key, error))
        return outcomes

    def unload(self) -> None:
        """Unload an engine that is kept loaded. Raises `NotReleasedError` when it leaves memory on its devices."""
        self._measurer.unload()

    def close(self) -> None:
        """Cancel prefetched cycles that are not done, and release the runners."""
        if self._prefetch is not None:
            self._prefetch.stop()
            self._measurer.interrupt()
            self._prefetch.join()
        if "_measurer" in self.__dict__:
            self._measurer.close()


def _wait_for_end(pid: int) -> None:
    """A worker's channel closes shortly before its process is gone."""
    deadline = time.monotonic() + DYING_S
    while start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(POLL_S)
