"""Opens what `llem compare` and the report compare: runs, folders of runs, result files and saved baselines.

`compare` holds one side against others. A side must be the same whichever of these it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.baseline_reference import saved_baseline
from pytest_llem.results.baselines import Baseline, BaselineExperiment, BaselineRun, baseline_of, required_cycles
from pytest_llem.results.comparability import differences
from pytest_llem.results.measured_cycles import MeasuredCycles, cycles_of, saved_cycles
from pytest_llem.results.metrics import Metric
from pytest_llem.results.reading import MeasurementId, Results, load, load_rows
from pytest_llem.results.whole_runs import by_whole_run


@dataclass(frozen=True)
class ComparedExperiment:
    """One experiment of a side: its valid cycles by run, oldest first, and what became of the others."""

    config_hash: str
    runs: tuple[MeasuredCycles, ...]
    lost: tuple[str, ...] = ()
    levels: Callable[[str], Sequence[tuple[MeasuredCycles, ...]]] | None = None

    def held_against(self, measure: Metric, now: MeasuredCycles | None) -> tuple[MeasuredCycles, ...]:
        """Its runs that a new one is held against in a metric: of a history, those of the level with its conditions."""
        levels = self.levels(measure.name) if self.levels is not None else [self.runs]
        for runs in levels if now is not None else ():
            if now is not None and any(not differences(run.conditions, now.conditions, measure, 0.0) for run in runs):
                return runs
        return levels[0]

    @property
    def measurements(self) -> frozenset[MeasurementId]:
        """Which measurements it holds, in all its runs."""
        return frozenset().union(*(run.measurements for run in self.runs))


@dataclass(frozen=True)
class ComparedSide:
    """What is compared: its experiments by study and id, and where they come from."""

    name: str
    experiments: Mapping[tuple[str, str], ComparedExperiment]
    source: Results | Baseline

    @cached_property
    def baseline(self) -> Baseline:
        """The same as gates judge by it."""
        return self.source if isinstance(self.source, Baseline) else baseline_of(self.name, self.source)

    @cached_property
    def _by_hash(self) -> dict[tuple[str, str], ComparedExperiment]:
        return {(study, each.config_hash): each for (study, _), each in reversed([*self.experiments.items()])}

    @property
    def measurements(self) -> frozenset[MeasurementId]:
        """Which measurements it holds."""
        return frozenset().union(*(each.measurements for each in self.experiments.values()))

    def find(self, study: str, experiment_id: str, config_hash: str, *, by_id: bool) -> ComparedExperiment | None:
        """The experiment of this configuration, else this id, else `None`; `by_id`, the id goes first."""
        if isinstance(self.source, Baseline) and self.source.grows:  # it lists those of its newest run alone
            known = self.source.find(study, experiment_id, config_hash, by_id=by_id)
            return _saved(study, known) if known is not None else None
        same, named = self._by_hash.get((study, config_hash)), self.experiments.get((study, experiment_id))
        return (named or same) if by_id else (same or named)

    def independent(self, other: ComparedSide) -> bool:
        """Whether an experiment that both have was measured in a run of this side that shares nothing with the other.

        Also where they have none in common.
        """
        both = [
            any(not run.shares(each.measurements) for run in known.runs)
            for (study, experiment_id), each in other.experiments.items()
            if each.runs and (known := self.find(study, experiment_id, each.config_hash, by_id=False)) and known.runs
        ]
        return any(both) or not both


def side_of(name: str, results: Results) -> ComparedSide:
    """Results as a side."""
    experiments = {}
    for key, group in results.by_experiment().items():
        runs = [cycles_of(group.valid.of_run(run).items) for run in sorted({result.run_id for result in group.valid})]
        lost = tuple(f"c{result.cycle} invalid" for result in group if not result.validity.valid)
        valid = tuple(run for run in runs if run is not None)
        experiments[key] = ComparedExperiment(group[0].experiment.config_hash, valid, lost)
    return ComparedSide(name, experiments, results)


def open_side(reference: str, directory: Path) -> ComparedSide:
    """The side that `reference` names, all its runs together: a saved baseline of `directory`, or a path.

    Raises `StoreError` where it is neither.
    """
    saved = saved_baseline(reference, directory)
    if saved is not None:
        return _saved_side(reference, saved)
    path = _existing(reference, directory)
    return side_of(reference, required_cycles(path, load(path)))


def open_runs(reference: str, directory: Path) -> list[ComparedSide]:
    """The same, a side for each of its runs, shards joined."""
    saved = saved_baseline(reference, directory)
    if saved is not None:
        whole = _saved_side(reference, saved)
        runs = dict.fromkeys(run.run for each in whole.experiments.values() for run in each.runs)
        return [_of_run(whole, run) for run in sorted(runs)]
    path = _existing(reference, directory)
    return [side_of(run, rows) for run, rows in by_whole_run(path, required_cycles(path, load_rows(path)))]


def _saved_side(name: str, saved: Baseline) -> ComparedSide:
    experiments = {
        (study, experiment_id): _saved(study, each)
        for study, file in saved.studies.items()
        for experiment_id, each in file.experiments.items()
    }
    return ComparedSide(name, experiments, saved)


def _saved(study: str, each: BaselineExperiment) -> ComparedExperiment:
    def cycles(runs: Sequence[BaselineRun]) -> tuple[MeasuredCycles, ...]:
        return tuple(saved_cycles(study, each, run) for run in runs)

    return ComparedExperiment(
        each.config_hash, cycles(each.runs), levels=lambda name: [cycles(level.runs) for level in each.levels(name)]
    )


def _of_run(whole: ComparedSide, run: str) -> ComparedSide:
    experiments = {}
    for key, each in whole.experiments.items():
        if found := tuple(cycles for cycles in each.runs if cycles.run == run):
            experiments[key] = ComparedExperiment(each.config_hash, found)
    return ComparedSide(f"{run} of {whole.name}", experiments, whole.source)


def _existing(reference: str, directory: Path) -> Path:
    path = Path(reference)
    if path.exists():
        return path
    names = sorted(each.name for each in directory.iterdir() if each.is_dir()) if directory.is_dir() else []
    there = f"saved baselines in {directory}: {', '.join(names)}" if names else f"{directory} has no saved baselines"
    raise StoreError(
        f"{reference}: neither a path nor a saved baseline",
        fix=f"name a run's directory, a results folder, a result.json or a saved baseline; {there}",
    )
