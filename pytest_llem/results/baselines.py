"""Baselines: per-cycle values of earlier runs with their conditions, small enough for git and readable in a diff.

The session saves and opens them, `judging` compares with them. `llem-baselines/NAME/<study>.json` is a published
format: fields may be added, never renamed. A run's directory or a results file can serve as a baseline too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pytest_llem.errors import JsonValue, SettingsError, StoreError
from pytest_llem.job.files import read_json, require_writable, slug, write_text
from pytest_llem.job.wire import encode, read_versioned
from pytest_llem.results.comparability import common_conditions, compared_settings
from pytest_llem.results.gate_report import BaselineNamed, RunOfBaseline
from pytest_llem.results.layout import MANIFEST, started_at
from pytest_llem.results.manifest import StudyPlan, manifests_at
from pytest_llem.results.metrics import METRICS, is_at_least, metrics_of
from pytest_llem.results.reading import MeasurementId, Results, measurement_id
from pytest_llem.results.repeatability import Repeatability, read_repeatability
from pytest_llem.results.saved_scores import read_scores, written_scores
from pytest_llem.results.schema import Result
from pytest_llem.results.state import now

BASELINE_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
MAX_RUNS = 10
"""Newest runs that a baseline keeps. Chosen: the spread between ten is well known, and the file stays small."""
HISTORY = "history:"
"""What a reference to a history begins with; its folder follows."""
DIGITS = 6
"""Significant digits of a value. Chosen: far below any sensor's error, and a short diff."""


@dataclass(frozen=True)
class BaselineRun:
    """One experiment in one run: values per cycle by metric, the conditions, and where it comes from.

    `measurements` are the ids of the cycles (`reading.MeasurementId`), `()` in older files; `run_id` is the run that
    measured them, or the one that was saved, where several did. `scores` are those of each question by cycle, as
    `saved_scores` writes them; empty where no answers were scored, and in older files.
    """

    run_id: str
    saved_at: str
    provenance: Mapping[str, JsonValue]
    conditions: Mapping[str, JsonValue]
    gain_uncertainty_rel: float | None
    values: Mapping[str, tuple[float, ...]]
    measurements: tuple[str, ...] = ()
    scores: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def scores_by_cycle(self) -> list[tuple[float, ...]]:
        """The score of each question in each cycle that has any. Raises `StoreError` where the file is broken."""
        return [*read_scores(self.scores).values()]

    @property
    def cycles(self) -> int:
        """How many cycles it holds."""
        return len(self.measurements) or max(map(len, self.values.values()), default=0)

    def shares(self, others: Iterable[MeasurementId]) -> list[MeasurementId]:
        """Those of the measurements of this experiment that it holds, by run where an older file does not say."""
        if not self.measurements:
            return [each for each in others if each.run == self.run_id]
        return [each for each in others if str(each) in self.measurements]

    def named(self) -> RunOfBaseline:
        """Which run this is; of one whose id does not tell when it began, when this experiment was measured."""
        git = self.provenance.get("git")
        facts = git if isinstance(git, Mapping) else {}
        commit, dirty, measured = facts.get("commit"), facts.get("dirty"), self.provenance.get("measured_at")
        return RunOfBaseline(
            self.run_id,
            started_at(self.run_id) or (measured if isinstance(measured, str) else None),
            commit if isinstance(commit, str) else None,
            dirty if isinstance(dirty, bool) else None,
        )


@dataclass(frozen=True)
class BaselineLevel:
    """Runs to hold a new one against; `equal` are all that a history has of equal work, those that failed as well."""

    runs: tuple[BaselineRun, ...]
    equal: tuple[BaselineRun, ...] = ()


@dataclass(frozen=True)
class BaselineExperiment:
    """One experiment of a baseline, its runs from old to new."""

    config_hash: str
    runs: tuple[BaselineRun, ...]
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    """The resolved settings by dotted path, so that a change of them can be named; empty in older files."""

    def levels(self, metric: str) -> Sequence[BaselineLevel]:
        """What a new run may be held against in a metric, the best first: of a saved baseline, all its runs."""
        del metric
        return [BaselineLevel(self.runs)]


@dataclass(frozen=True)
class BaselineFile:
    """`llem-baselines/NAME/<study>.json`."""

    study: str
    experiments: Mapping[str, BaselineExperiment] = field(default_factory=dict)
    schema_version: int = BASELINE_VERSION


@dataclass(frozen=True)
class Baseline:
    """The studies of a baseline by name. `source` is its name in messages."""

    source: str
    studies: Mapping[str, BaselineFile]
    repeatability: Mapping[str, Repeatability] = field(default_factory=dict)
    """By study: how much equal runs were measured to differ."""
    grows: ClassVar[bool] = False
    """Whether every run is added to it, so that what it does not know it will."""

    def find(
        self, study: str, experiment_id: str, config_hash: str, *, by_id: bool = False
    ) -> BaselineExperiment | None:
        """The experiment of this configuration, else this id, else `None`; `by_id`, the id goes first.

        Raises `StoreError` if the study is missing.
        """
        if study not in self.studies:
            raise StoreError(
                f"{self.source}: no baseline of study {study!r}",
                fix="save one with --llem-save-baseline=NAME, or name the run or the baseline that has it",
            )
        experiments = self.studies[study].experiments
        same = next((each for each in experiments.values() if each.config_hash == config_hash), None)
        named = experiments.get(experiment_id)
        return (named or same) if by_id else (same or named)

    def named(self, study: str, experiment_id: str, config_hash: str, *, by_id: bool = False) -> BaselineNamed:
        """This baseline and its runs of the experiment, for `gate.json`. Raises `StoreError` as `find` does."""
        found = self.find(study, experiment_id, config_hash, by_id=by_id)
        return BaselineNamed(self.source, tuple(run.named() for run in found.runs) if found is not None else ())


@dataclass(frozen=True)
class Saved:
    """The files written, the experiments saved by study and id, and those refused with the reason."""

    files: tuple[Path, ...]
    saved: tuple[tuple[str, str], ...]
    refused: Mapping[tuple[str, str], str]


def with_repeatability(baseline: Baseline, directory: Path | None) -> Baseline:
    """The baseline with what `directory` knows of how much equal runs of its studies differ."""
    if directory is None:
        return baseline
    measured = {study: read_repeatability(study, directory) for study in baseline.studies}
    return replace(baseline, repeatability={study: entry for study, entry in measured.items() if entry is not None})


def required_cycles(path: Path, results: Results) -> Results:
    """The results at `path` without cycles that `target_ci` added: they were measured because the others scattered."""
    last = {
        (manifest.run_id, plan.name): plan.required_cycles
        for manifest in manifests_at(path)
        for plan in manifest.studies
    }
    return results.where(lambda result: result.cycle <= (last.get((result.run_id, result.study)) or result.cycle))


def baseline_files(directory: Path) -> list[Path]:
    """The baseline files in a directory, which has none if it is a run's."""
    return [] if (directory / MANIFEST).exists() else sorted(directory.glob("*.json"))


def is_baseline(path: Path) -> bool:
    """Whether a JSON file is a baseline's: results, and what `llem aa` found, may lie in the same folder."""
    return isinstance(read_json(path).get("experiments"), dict)


def read_baseline(path: Path) -> BaselineFile:
    """Read a baseline file; `StoreError` when it is broken or of a newer version."""
    return read_versioned(BaselineFile, path, BASELINE_VERSION, "baseline")


def baseline_of(source: str, results: Results) -> Baseline:
    """Results as a baseline: their valid cycles, one baseline run per run, oldest first; each measurement once."""
    studies: dict[str, BaselineFile] = {}
    runs: dict[tuple[str, str, str], list[Result]] = {}
    for result in sorted(results.valid, key=lambda result: (result.run_id, result.cycle)):
        runs.setdefault((result.study, result.experiment.id, result.run_id), []).append(result)
    for (study, experiment_id, _), group in runs.items():
        earlier = studies.get(study, BaselineFile(study))
        studies[study], _ = _with_run(earlier, experiment_id, group)
    for result in results:
        studies.setdefault(result.study, BaselineFile(result.study))
    return Baseline(source, studies)


def baseline_run(results: Sequence[Result]) -> BaselineRun:
    """The valid cycles of one experiment in one run as a baseline run."""
    first = results[0]
    measured = {name: [metric.of(result) for result in results] for name, metric in metrics_of(results).items()}
    values = {
        name: tuple(float(f"{cell:.{DIGITS}g}") for cell in cells if cell is not None)
        for name, cells in measured.items()
        if None not in cells and not any(is_at_least(METRICS[name], result) for result in results)
    }
    measurements = [measurement_id(result) for result in results]
    sources = {each.run for each in measurements}
    return BaselineRun(
        run_id=sources.pop() if len(sources) == 1 else first.run_id,
        saved_at=now(),
        provenance={
            "measured_at": first.measured_from or first.created_at,
            **{fact: encode(first.environment.host.get(fact)) for fact in ("hostname", "git", "pytest_llem")},
            "fingerprint": first.environment.fingerprint,
        },
        conditions=common_conditions(results),
        gain_uncertainty_rel=first.energy.gain_uncertainty_rel,
        values=values,
        measurements=tuple(map(str, measurements)),
        scores=written_scores(
            {
                f"c{result.cycle}": result.quality.scores
                for result in results
                if result.quality and result.quality.scores
            }
        ),
    )


def require_saveable(name: str, directory: Path) -> None:
    """Raise `LlemError` where `save_baseline` could not add to the baseline `name`, before anything is measured for it.

    A name has letters, digits and `._-`; the directory can be written; what the baseline holds already can be read.
    """
    if name.startswith(HISTORY):
        raise SettingsError(
            f"{name!r}: a run is not saved to a history before it is judged",
            fix=f"leave it out, and add the run after it: llem history add RUN --to {name.removeprefix(HISTORY)}",
        )
    if slug(name) != name:
        raise SettingsError(f"{name!r} is no name for a baseline", fix=f"use letters, digits, . _ -: {slug(name)}")
    require_writable(directory / name)
    for path in baseline_files(directory / name):
        read_baseline(path)


def save_baseline(
    name: str,
    results: Iterable[Result],
    directory: Path,
    *,
    failing: Iterable[tuple[str, str]] = (),
    plans: Iterable[StudyPlan] = (),
    force: bool = False,
) -> Saved:
    """Add a run to the baseline `name`; only the experiments in `results` are touched, and the newest runs are kept.

    An experiment is refused, unless `force` is given, if a cycle is invalid, if it is in `failing` (study and id: a
    failed cycle or gate), or if it lacks cycles of the run's `plans`. Invalid cycles are never kept, nor are those
    beyond a plan's `required_cycles`: they were measured because the others scattered, and would bias a bound. Of runs
    that share measurements, because one reused those of the other, the one with most is kept, the newer if equal.
    Raises `LlemError` where `require_saveable` does.
    """
    require_saveable(name, directory)
    refused: dict[tuple[str, str], str] = {}
    touched: dict[str, BaselineFile] = {}
    saved: list[tuple[str, str]] = []
    bad = set(failing)
    by_study = {plan.name: plan for plan in plans}
    for (study, experiment_id), every in Results(tuple(results)).by_experiment().items():
        key = (study, experiment_id)
        plan = by_study.get(study, StudyPlan(study, None))
        last = plan.required_cycles
        group = every if last is None else every.where(lambda result, last=last: result.cycle <= last)  # type: ignore[misc]
        planned = {item.cycle for item in plan.cycles if item.experiment_id == experiment_id}
        missing = planned - {result.cycle for result in group}
        invalid = len(group) - len(group.valid)
        if not group.valid:
            refused[key] = "no valid cycle"
        elif invalid and not force:
            refused[key] = f"{invalid} of {len(group)} cycles invalid"
        elif key in bad and not force:
            refused[key] = "failed"
        elif missing and not force:
            refused[key] = f"{len(planned) - len(missing)} of {len(planned)} cycles"
        else:
            path = baseline_path(directory, name, study)
            earlier = touched.get(study) or (read_baseline(path) if path.exists() else BaselineFile(study))
            entry, larger = _with_run(earlier, experiment_id, group.valid.items)
            if larger is None:
                touched[study] = entry
                saved.append(key)
            else:
                refused[key] = (
                    f"run {larger.run_id} of the baseline holds the same measurements, {larger.cycles} in all"
                )
    files = {baseline_path(directory, name, study): entry for study, entry in touched.items()}
    for file, entry in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, render(entry))
    return Saved(tuple(files), tuple(saved), refused)


def baseline_path(directory: Path, name: str, study: str) -> Path:
    """The file of one study in a named baseline."""
    return directory / name / f"{slug(study)}.json"


def render(entry: BaselineFile) -> str:
    """The file's text: sorted, a line per fact, and each list of numbers on one line."""
    ordered = replace(entry, experiments=dict(sorted(entry.experiments.items())))
    text = json.dumps(encode(ordered), indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r",\s+", ", ", m.group(1)) + "]", text) + "\n"


def _with_run(
    entry: BaselineFile, experiment_id: str, results: Sequence[Result]
) -> tuple[BaselineFile, BaselineRun | None]:
    """The file with the experiment's valid `results` of one run added; or unchanged, and the larger run that it has."""
    earlier, run = entry.experiments.get(experiment_id), baseline_run(results)
    config_hash, measured = results[0].experiment.config_hash, [measurement_id(result) for result in results]
    # Runs of another configuration under the same id do not compare with this one.
    same = earlier.runs if earlier and earlier.config_hash == config_hash else ()
    sharing = [old for old in same if old.run_id == run.run_id or old.shares(measured)]
    larger = max((old for old in sharing if old.cycles > run.cycles), key=lambda old: old.cycles, default=None)
    if larger is not None:
        return entry, larger
    kept = [old for old in same if old not in sharing]
    updated = BaselineExperiment(config_hash, (*kept, run)[-MAX_RUNS:], compared_settings(results[0]))
    return replace(entry, experiments={**entry.experiments, experiment_id: updated}), None
