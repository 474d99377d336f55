"""What one pytest process measures with: settings, studies, the run's store, runners and leases."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.session.experiment_cycle import ExperimentCycle, experiment_cycle_of
from pytest_llem.session.isolation import require_possible
from pytest_llem.session.items import properties, set_properties
from pytest_llem.session.options import RunOptions
from pytest_llem.session.sharding import Sharding
from pytest_llem.session.stash import RUN, RunIdentity
from pytest_llem.study.relocator import Relocator

if TYPE_CHECKING:
    from pytest_llem.job.report import RunnerSpec
    from pytest_llem.results.baselines import Baseline, Saved
    from pytest_llem.results.layout import CycleKey
    from pytest_llem.results.manifest import StudyPlan
    from pytest_llem.results.outcome import Outcome
    from pytest_llem.results.resume import EarlierRuns, Reuse
    from pytest_llem.results.store import RunStore
    from pytest_llem.results.summary import ExperimentSummary
    from pytest_llem.session.measuring import Measurer
    from pytest_llem.session.prefetch import Prefetch
    from pytest_llem.session.runner_plan import RunnerPlans
    from pytest_llem.study import Experiment, Study


DEFAULT_LIMIT = "5%"
"""What a baseline without any stated limit is held to, on the study's headline metric."""


class LlemSession:
    """Answers for every consumer of results in one pytest process."""

    def __init__(self, config: pytest.Config, run: RunIdentity, options: RunOptions) -> None:
        self.config = config
        self.run = run
        self.options = options
        self.run_dir = options.out / run.id
        self._studies: dict[Path, Study] = {}
        self._beyond: dict[Path, Mapping[str, str]] = {}
        self._store: RunStore | None = None
        self.sharding = Sharding(options.shard) if options.shard is not None else None
        self.rows: list[ExperimentSummary] = []
        self.saved: Saved | None = None
        self._ahead: Prefetch | None = None

    @classmethod
    def resettled(cls, config: pytest.Config, settled: bytes) -> LlemSession:
        """The session of an xdist worker, from what its controller's `settled` holds."""
        options, studies, sharding = pickle.loads(settled)  # bytes from the process that started this one
        session = cls(config, config.stash[RUN], options)
        session.sharding = sharding
        session._studies.update((study.path, study) for study in studies)
        return session

    @cached_property
    def settled(self) -> bytes:
        """The settings and the studies of the command line, for xdist's workers; see `resettled`."""
        if self.sharding is not None:
            for study in self.studies:
                self.sharding.split(study)
        studies = [replace(study, locate=Relocator(study.path)) for study in self.studies]
        return pickle.dumps((self.options, studies, self.sharding))

    @cached_property
    def _measurer(self) -> Measurer:
        from pytest_llem.session.measuring import Measurer

        measurer = Measurer(self.options, self.run.id, self.run_dir)
        measurer.placement = self._placement
        return measurer

    @cached_property
    def _placement(self) -> RunnerPlans:
        """Where engines run: asked while studies are collected, when nothing is measured yet."""
        from pytest_llem.session.runner_plan import RunnerPlans

        return RunnerPlans(self.options)

    @property
    def studies(self) -> list[Study]:
        """The studies loaded so far, in the order they were met."""
        return list(self._studies.values())

    def study(self, path: Path) -> Study:
        """Load a study, once; `StudyError` when it is wrong, or when another study of this run has its name."""
        if path not in self._studies:
            from pytest_llem.errors import StudyError
            from pytest_llem.servers.plan import require_possible_servers
            from pytest_llem.study import load_study

            overrides, execution = self.options.overrides, self.options.execution
            study = load_study(path, overrides=overrides, execution=execution)
            if self.options.baseline and not any(experiment.compare for experiment in study.experiments):
                limits = {study.execution.headline: DEFAULT_LIMIT}
                study = load_study(path, overrides=replace(overrides, fail_if=limits), execution=execution)
            for other in self._studies.values():
                if other.name == study.name:
                    raise StudyError(
                        f"{path}:1:1: another study of this run has the name {study.name!r}: {other.path}",
                        fix="give one of them another `name:`",
                    )
            require_possible(study, self)
            require_possible_servers(study, self)
            self._studies[path] = study
        return self._studies[path]

    def require_engines(self, study: Study) -> None:
        """Refuse a study, before anything runs, whose engine cannot be imported where it would run."""
        if self.options.collect_only or self.options.skip_preflight:
            return
        self._placement.require(study)

    def notices(self, study: Study) -> list[str]:
        """What the user should know about a study's runners, a sentence each."""
        from pytest_llem.servers.plan import server_notice

        starts = server_notice(study)
        found = [note.message for note in self._placement.plan(study).notices]
        return found if starts is None else [*found, starts]

    def beyond(self, study: Study) -> Mapping[str, str]:
        """Experiments of a study that this machine has too few devices for, with the reason; nothing in a dry run."""
        if self.options.collect_only or self.options.skip_preflight:
            return {}
        if study.path not in self._beyond:
            from pytest_llem.machine.preflight import experiments_beyond

            specs = self._placement.plan(study).specs
            elsewhere = [engine for engine, spec in specs.items() if spec.name == "ray"]
            self._beyond[study.path] = experiments_beyond(study, elsewhere)
        return self._beyond[study.path]

    def gated(self, experiment: Experiment) -> bool:
        """Whether a budget or a comparison applies to an experiment; without a baseline nothing is compared."""
        return bool(experiment.expect) or (experiment.compare is not None and self.options.baseline is not None)

    @cached_property
    def baseline(self) -> Baseline | None:
        """The baseline to gate against. `StoreError` when the reference names nothing."""
        if self.options.baseline is None:
            return None
        from pytest_llem.results.baselines import open_baseline

        return open_baseline(self.options.baseline, self.options.baseline_dir)

    @property
    def store(self) -> RunStore:
        """The run's store; its directory is made by the first process that needs it."""
        if self._store is None:
            from filelock import FileLock

            from pytest_llem.results.store import RunStore

            with FileLock(self.run.lock):
                exists = (self.run_dir / "run.json").exists()
                self._store = RunStore.open(self.run_dir) if exists else RunStore.create(self.options.out, self.run.id)
            if self.run.in_controller:
                self.run.lock.unlink(missing_ok=True)
        return self._store

    def runner_spec(self, engine: str, study: Study) -> RunnerSpec:
        """Where cycles of an engine run, and who said so."""
        return self._placement.spec(engine, study)

    def get_or_measure(self, point: ExperimentCycle, *, item: pytest.Item | None) -> Outcome:
        """The outcome of a cycle: from the store, or measured now by this process."""
        if self._ahead is not None:
            self._ahead.wait(point.key)
        # A gate or another consumer never retries: attempts belong to the cycle's own item.
        outcome = self._from_store(point, retried=item is not None)
        if item is not None:
            set_properties(item, properties(outcome, self.config.rootpath))
        return outcome

    def _from_store(self, point: ExperimentCycle, *, retried: bool) -> Outcome:
        return self.store.get_or_measure(
            point.key,
            lambda attempt, job_dir: self._measurer.measure(point, attempt, job_dir),
            retries=point.study.execution.retries if retried else 0,
            reuse=partial(self._reusable, point.key, point) if self.options.resume else None,
        )

    def prefetch(self, items: Sequence[pytest.Item]) -> None:
        """Begin what selected items need of a runner that runs many cycles at a time; items then wait for theirs."""
        if self.options.collect_only or not items:
            return
        from pytest_llem.session.prefetch import begun_ahead

        def say(line: str) -> None:
            terminal = items[0].config.pluginmanager.get_plugin("terminalreporter")
            if terminal is not None:
                terminal.write_line(line)

        self._ahead = begun_ahead(items, self._measurer, self._from_store, self.run_dir, say)

    def _reusable(self, key: CycleKey, point: ExperimentCycle) -> Reuse:
        from pytest_llem.results.resume import Reuse

        try:
            identity, *others = self._measurer.identities(point, self.store.environment)
        except LlemError as error:  # measuring meets the same obstacle, and explains it
            return Reuse(None, error.message)
        return self._earlier.find(key, identity, point.study.thresholds, others)

    @cached_property
    def _earlier(self) -> EarlierRuns:
        from pytest_llem.results.resume import EarlierRuns

        return EarlierRuns(self.options.out, self.run.id)

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Record the plan in the run's manifest, from the process that reports or from the first worker that comes."""
        points = [point for item in items if (point := experiment_cycle_of(item)) is not None]
        if points and self.run.worker is not None:
            cycles = [(point.study.name, point.experiment.id, point.cycle) for point in points]
            self._measurer.places = {cycle: place for place, cycle in enumerate(cycles)}
        if points and not self.options.collect_only and self._first_to_plan():
            from pytest_llem.results.manifest import rebuild_manifest
            from pytest_llem.session.collection import study_plans

            facts = self.sharding.facts(self.studies) if self.sharding is not None else None
            rebuild_manifest(self.store.run_dir, studies=study_plans(points), facts=facts)

    def _first_to_plan(self) -> bool:
        """Whether no other worker of the run has written the plan, which is the same in all."""
        from pytest_llem.results.store import LOCKS

        try:
            (self.store.run_dir / LOCKS / "planned").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def conclude(self, failing: Collection[tuple[str, str]] = ()) -> None:
        """Bring the run's manifest and summaries up to date, and save a baseline where one was asked for.

        `failing` names experiments (study and id) whose gates failed: they are no baseline.
        """
        from pytest_llem.results.manifest import rebuild_manifest
        from pytest_llem.results.summary import summarise, write_summary

        manifest = rebuild_manifest(self.run_dir, finished=True)
        keys = [item.key for item in manifest.items]
        self.rows = list(summarise(keys, self.store.outcome))
        write_summary(self.run_dir, self.rows)
        if self.options.save_baseline:
            outcomes = [outcome for key in keys if (outcome := self.store.outcome(key)) is not None]
            self.saved = self._save_baseline(outcomes, manifest.studies, failing)

    def _save_baseline(
        self, outcomes: Sequence[Outcome], plans: Sequence[StudyPlan], failing: Collection[tuple[str, str]]
    ) -> Saved:
        from pytest_llem.results.baselines import save_baseline

        unusable = {(outcome.key.study, outcome.key.experiment_id) for outcome in outcomes if outcome.result is None}
        return save_baseline(
            str(self.options.save_baseline),
            [outcome.result for outcome in outcomes if outcome.result is not None],
            self.options.baseline_dir,
            failing={*unusable, *failing},
            plans=plans,
        )

    def unload(self) -> None:
        """Unload an engine that was kept loaded. Raises `NotReleasedError` when it leaves something on its devices."""
        self._measurer.unload()

    def close(self) -> None:
        """Release the runners; what was begun ahead and is not needed any more is cancelled."""
        if self._ahead is not None:
            self._ahead.stop()
            self._measurer.interrupt()
            self._ahead.join()
        if "_measurer" in self.__dict__:
            self._measurer.close()
