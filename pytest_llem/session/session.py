"""What one pytest process has before it measures: the run, its settings, its studies, and the runners that they use.

`session/start.py` makes it, `llem_session` gives it to tests, and collection, reporting and `xdist` use it. Its imports
must stay light: workers of xdist collect thousands of items with it and get loaded studies from the controller.
"""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import DeviceError, LlemError
from pytest_llem.job.gpu_setting import SETTING_NAMES
from pytest_llem.job.job import AMD_NOT_VERIFIED
from pytest_llem.machine.device_checks import Place, experiments_beyond
from pytest_llem.machine.devices import KIND, asked_kind, visible_of
from pytest_llem.runners import RUNNERS
from pytest_llem.session.experiment_cycle import ExperimentCycle, experiment_cycle_of, study_answered
from pytest_llem.session.run import RunIdentity, RunOptions, run_identity, study_files
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.session.xdist.workers import worker_limit
from pytest_llem.study.balanced import balance
from pytest_llem.study.experiments import Relocator

if TYPE_CHECKING:
    from pytest_llem.results.baselines import Baseline
    from pytest_llem.session.run_results import RunResults
    from pytest_llem.study import Experiment, Study

SKIPS = 4
"""Reasons of skips that a run names before it begins. Chosen: each holds for many experiments; `-rs` has all."""


class LlemSession:
    """The studies of this process, and its way to their results."""

    def __init__(self, config: pytest.Config, run: RunIdentity, options: RunOptions) -> None:
        self.config = config
        self.run = run
        self.options = options
        self.run_dir = options.out / run.id
        self.runner_plans = RunnerPlans(options)
        self._studies: dict[Path, Study] = {}
        self._beyond: dict[Path, Mapping[str, str]] = {}
        self._selected: dict[tuple[str, str], dict[int, ExperimentCycle]] = {}
        self._among: dict[str, Mapping[str, str | None]] = {}

    @classmethod
    def from_handover(cls, config: pytest.Config, handover: bytes) -> LlemSession:
        """The session of an xdist worker, from its controller's `handover`."""
        options, studies = pickle.loads(handover)  # bytes from the process that started this one
        session = cls(config, run_identity(config), options)
        session._studies.update((study.path, study) for study in studies)
        return session

    @cached_property
    def handover(self) -> bytes:
        """The settings and the loaded studies, for xdist's workers: see `from_handover`."""
        if self.options.shard is not None:
            for study in self.studies:
                self.options.shard.split(study)  # kept in the shard, so that workers need not estimate
        studies = [replace(study, locate=Relocator(study.path)) for study in self.studies]
        return pickle.dumps((self.options, studies))

    @cached_property
    def results(self) -> RunResults:
        """The results of the run."""
        from pytest_llem.session.run_results import RunResults

        return RunResults(self.run, self.options, self.runner_plans)

    @cached_property
    def baseline(self) -> Baseline | None:
        """The baseline to gate against. Raises `StoreError` when the reference names nothing."""
        if self.options.baseline is None:
            return None
        from pytest_llem.results.baseline_reference import open_baseline

        return open_baseline(self.options.baseline, self.options.baseline_dir)

    @property
    def studies(self) -> list[Study]:
        """The studies loaded so far, in the order in which they were met."""
        return list(self._studies.values())

    def study(self, path: Path) -> Study:
        """Load a study, once. Raises `StudyError` when it is wrong, or when another study of the run has its name.

        A link is the file that it leads to, however it was named.
        """
        path = path.resolve()
        if path not in self._studies:
            from pytest_llem.session.options import load_for_run

            option = self.config.getoption
            asked = option("dist", "no") != "no" or bool(option("numprocesses", None))
            distributed = asked or self.run.worker is not None
            self._studies[path] = load_for_run(
                path, self.options, self.studies, self.runner_plans, distributed=distributed
            )
        return self._studies[path]

    def auto_workers(self) -> int:
        """The answer to `-n auto`, by the studies that load. `pytest.UsageError` where devices cannot be counted."""
        for path in study_files(self.config, (*self.config.getoption("llem_study"), *self.config.args)):
            with contextlib.suppress(LlemError):
                self.study(path)
        try:
            return worker_limit(self.studies).workers
        except DeviceError as error:
            raise pytest.UsageError(f"-n auto: {error}") from None

    def require_engines(self, study: Study) -> None:
        """Raise `LlemError`, before anything runs, for an engine that cannot be imported where it would run."""
        if not self.options.collect_only and not self.options.skip_preflight:
            self.runner_plans.require(study)

    def beyond(self, study: Study) -> Mapping[str, str]:
        """Experiments that are not for this run's devices, each with the reason.

        In a dry run those alone that ask for another kind than `--llem-device`: the machine is not looked at.
        """
        if study.path not in self._beyond:
            kind = self.options.only_device
            found = {
                experiment.id: f"device.kind {asked}, and this run is for --llem-device={kind}"
                for experiment in (study.experiments if kind is not None else ())
                if (asked := asked_kind(experiment)) != kind
            }
            if not (self.options.collect_only or self.options.skip_preflight):
                specs = self.runner_plans.plan(study).specs
                place = Place(
                    self.options.meter_of(study),
                    here=[engine for engine, spec in specs.items() if spec.name == "local"],
                    elsewhere=[engine for engine, spec in specs.items() if RUNNERS[spec.name].distributed],
                    kind=kind,
                )
                left = [experiment for experiment in study.experiments if experiment.id not in found]
                found |= experiments_beyond(replace(study, experiments=left), place)
                found |= self._refused_settings(study, place, found)
            self._beyond[study.path] = found
        return self._beyond[study.path]

    def skip_notices(self, study: Study) -> list[str]:
        """Why experiments are not for this run's devices, a line per reason: pytest says it with `-rs` alone."""
        total = len(study.experiments)
        reasons = Counter(self._beyond.get(study.path, {}).values())
        return [
            f"study {study.name}: {count} of {total} experiments skipped: {why}"
            for why, count in reasons.most_common(SKIPS)
        ]

    def order_notice(self, study: Study, *, workers: int = 1) -> str | None:
        """What a balanced order balances here; `None` for other orders, and a single experiment."""
        if study.execution.order != "balanced":
            return None
        shard = self.options.shard
        count = len(study.experiments if shard is None else shard.split(study).part(shard.index))
        told = balance(count, study.execution.cycles) if count else ""
        specs = self.runner_plans.plan(study).specs.values()
        if told and (workers > 1 or any(RUNNERS[spec.name].distributed for spec in specs)):
            told += "; that is over all devices together: on each of several, what follows what is as it comes"
        return f"study {study.name}: order: balanced: {told}" if told else None

    def _refused_settings(self, study: Study, place: Place, out: Collection[str]) -> dict[str, str]:
        """Of the experiments that are not `out`, those whose settings of GPUs cannot be made, with the reason."""
        paths = [f"device.{name}" for name in SETTING_NAMES]
        if not any(each.flat_settings.get(path) is not None for each in study.distinct(*paths) for path in paths):
            return {}
        from pytest_llem.machine.gpu_settings.checks import refused_settings  # needs what only measuring needs

        left = [experiment for experiment in study.experiments if experiment.id not in out]
        return refused_settings(replace(study, experiments=left), place)

    def device_notice(self) -> str | None:
        """What is to be known of the devices that the studies would run on here."""
        if self.options.collect_only:
            return None
        kinds = {asked_kind(experiment) for study in self.studies for experiment in study.distinct(KIND)}
        with contextlib.suppress(DeviceError):  # each item says so
            if any(visible_of(kind)[0] == "rocm" for kind in kinds):
                return AMD_NOT_VERIFIED
        return None

    def gated(self, experiment: Experiment) -> bool:
        """Whether a budget or a comparison applies to an experiment; without a baseline nothing is compared."""
        return bool(experiment.expect) or (experiment.compare is not None and self.options.baseline is not None)

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Write down what will run, from the process that reports or from the first worker that has collected."""
        cycles = [cycle for item in items if (cycle := experiment_cycle_of(item)) is not None]
        for cycle in cycles:
            if cycle.cycle is not None:
                self._selected.setdefault((cycle.study.name, cycle.experiment.id), {})[cycle.cycle] = replace(
                    cycle, step=None
                )
        if not self.options.collect_only:
            for study in self.studies:
                if study.optimize is not None:
                    self._among[study.name] = self._racing(study, cycles)
                    self.results.races.begin(study, self._among[study.name])
        if cycles and self.run.worker is not None:
            self.results.queue_in_order(cycles)
        if cycles and not self.options.collect_only:
            shard = self.options.shard
            facts = shard.facts(self.studies) if shard is not None else None
            self.results.write_plan(cycles, facts)
        asked = {cycle.study.name for cycle in cycles} | {each.name for each in map(study_answered, items) if each}
        for study in self.studies:
            if study.name in self._among and study.name in asked:  # so that a run that ends at once has its race in it
                self.results.races.look(study)

    def _racing(self, study: Study, cycles: Sequence[ExperimentCycle]) -> Mapping[str, str | None]:
        """The experiments of a study that race: those selected, each with the reason where this run cannot measure it.

        Where none is selected but the answer, and where pytest selects what failed last time, all of them race: what
        has not failed is no worse a setting.
        """
        beyond = self.beyond(study)
        selected = {cycle.experiment.id for cycle in cycles if cycle.study.name == study.name}
        if not selected or any(self.config.getoption(name, False) for name in ("lf", "stepwise")):
            selected = {each.id for each in study.experiments}
        return {each.id: beyond.get(each.id) for each in study.experiments if each.id in selected}

    def none_valid(self, cycle: ExperimentCycle) -> bool:
        """Whether an experiment's selected cycles have all ended, and none is valid: then the last of them fails.

        Where none is selected, whatever measured them fails: a gate that runs alone, or a test of all results. So does
        the gate of a search, whose windows do not fail where no load was low enough.
        """
        selected = self._selected.get((cycle.study.name, cycle.experiment.id), {})
        if selected and cycle.cycle is None and cycle.experiment.search is None:
            return False
        return self.results.none_valid(selected.values() or cycle.cycles())

    def prefetch(self, items: Sequence[pytest.Item], tell: Callable[[str], None]) -> None:
        """Start what the items need of a runner that measures several cycles at a time; nothing in a dry run."""
        if items and not self.options.collect_only:
            self.results.prefetch(items, tell, self._among)

    def unload(self) -> None:
        """Unload an engine that was kept loaded. Raises `NotReleasedError` when it leaves memory on its devices."""
        if "results" in self.__dict__:
            self.results.unload()

    def close(self) -> None:
        """Release the runners."""
        if "results" in self.__dict__:
            self.results.close()
