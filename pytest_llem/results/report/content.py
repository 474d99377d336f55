"""Gathers the content of a report as plain rows: experiments, cycles, axes, power traces, problems.

`page` and `charts` call `gather_content`. Nothing else reads the rows: change them freely, with these two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.metric_names import HEADLINE
from pytest_llem.results.axes import StudyAxes, differing, joined
from pytest_llem.results.best import Contender, best
from pytest_llem.results.carry_over import CarryOver, carry_overs, mark
from pytest_llem.results.effects import meters
from pytest_llem.results.gate_report import GateReport, read_gates
from pytest_llem.results.layout import MANIFEST, runs_at
from pytest_llem.results.manifest import Manifest, ManifestItem, RunState, current_manifest, run_state
from pytest_llem.results.optimize_record import read_records
from pytest_llem.results.reading import Cell, Results, measurement_id, read_files, result_files
from pytest_llem.results.repeatability import BASELINES
from pytest_llem.results.report.answered import AnswersOf, answers_of
from pytest_llem.results.report.shown_race import ShownRace
from pytest_llem.results.report.traces import PowerTrace, power_traces
from pytest_llem.results.schema import Result
from pytest_llem.results.search_record import SearchRecord, read_searches
from pytest_llem.results.served import Served, served
from pytest_llem.results.summary import MetricSummary, summarise_metrics
from pytest_llem.results.terminal import ShowProgress, silent


@dataclass(frozen=True)
class ExperimentRow:
    """One experiment of one run, with `metrics` as in its summary.

    `total` counts the cycles that the run planned; where only some of its results are shown, those. `point` is its
    value on each axis, `None` where that has no effect; `slo` is `None` without one, and so are `search` for all but
    searches, and `answers` where none are scored.
    """

    key: str
    run: str
    study: str
    experiment: str
    engine: str
    model: str
    valid: int
    total: int
    metrics: Mapping[str, MetricSummary]
    phases: Mapping[str, float]
    idle_j: float | None
    net_j: float | None
    settings: Mapping[str, Cell]
    notes: tuple[str, ...]
    point: Mapping[str, JsonValue] = field(default_factory=dict)
    slo: Served | None = None
    search: SearchRecord | None = None
    answers: AnswersOf | None = None
    meter: str = ""
    """What its joules are of."""
    best: float | None = None
    """How probable it is that it is truly the best of its run's experiments in the study's headline."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run came: `ended` of its `planned` cycles by themselves, `valid` of those, and what became of it.

    `reused` counts the valid ones that another run of the report measured.
    """

    planned: int
    ended: int
    valid: int
    state: RunState
    reused: int = 0


@dataclass(frozen=True)
class Content:
    """The content of a report: `results` holds each measurement once, `rows` in every run that has it.

    `axes` has those of each study, with the points of all its runs. `manifests` are by the run's id, and so are
    `states`, of those that are shown whole.
    """

    results: Results
    rows: Results
    experiments: tuple[ExperimentRow, ...]
    axes: Mapping[str, StudyAxes]
    traces: Mapping[str, PowerTrace]
    left_out_traces: int
    problems: tuple[ManifestItem, ...]
    gates: Mapping[str, tuple[GateReport, ...]] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    states: Mapping[str, RunProgress] = field(default_factory=dict)
    carried: tuple[CarryOver, ...] = ()
    races: tuple[ShownRace, ...] = ()


def gather_content(
    paths: Sequence[Path], *, baseline_dir: Path = BASELINES, progress: ShowProgress = silent
) -> Content:
    """Read runs, folders of runs or files; `StoreError` when one of them holds nothing.

    A run of which nothing succeeded has no results, and problems to show. `progress` sees each file as it is read.
    """
    files = [file for path in paths for file in _result_files(path)]
    every = read_files(progress(files, "reading"))
    results = every.distinct()
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault(_key(result), []).append(result)
    settings = {id(result): row for result, row in zip(results, results.rows(), strict=True)}
    found = [(run, current_manifest(run)) for run in dict.fromkeys(run for path in paths for run in _runs(path))]
    runs = {manifest.run_id: run for run, manifest in found}  # not by folder: several may have the same name
    manifests = {manifest.run_id: manifest for _, manifest in found}
    traces, left_out = power_traces(results, runs)
    requested = {path.resolve() for path in paths}
    whole = [name for name, run in runs.items() if requested & {run.resolve(), run.parent.resolve()}]
    planned = Counter((name, item.study, item.experiment_id) for name in whole for item in manifests[name].items)
    # A cycle that a newer run reused is shown there alone.
    planned -= Counter(map(_key, every)) - Counter(map(_key, results))
    searched = {
        (name, each.study, each.experiment_id): each for name, run in runs.items() for each in read_searches(run)
    }
    rows = tuple(
        replace(
            _experiment(key, group, settings[id(group[0])], max(planned[key], len(group)), baseline_dir),
            search=searched.get(key),
            answers=answers_of(
                [(each, every.directories.get(measurement_id(each))) for each in group if each.validity.valid]
            ),
        )
        for key, group in groups.items()
    )
    ranked = _best(groups, manifests)
    rows = tuple(replace(row, best=ranked.get((row.run, row.study, row.experiment))) for row in rows)
    studies = dict.fromkeys(row.study for row in rows)
    placed = [_placed([row for row in rows if row.study == study], [*manifests.values()]) for study in studies]
    return Content(
        results=results,
        rows=every,
        experiments=tuple(row for of_study, _ in placed for row in of_study),
        axes={study: axes for study, (_, axes) in zip(studies, placed, strict=True)},
        traces=traces,
        left_out_traces=left_out,
        problems=tuple(
            item
            for manifest in manifests.values()
            for item in manifest.items
            if item.state not in ("valid", "pending", "running")
        ),
        gates={name: reports for name, run in runs.items() if (reports := tuple(read_gates(run)))},
        manifests=manifests,
        states={name: _progress(manifests[name], whole) for name in whole},
        carried=tuple(
            each
            for name, manifest in manifests.items()
            if name in whole
            for each in carry_overs(runs[name], manifest, [mark(result, manifest) for result in every.of_run(name)])
        ),
        races=tuple(ShownRace(name, each) for name in whole for each in read_records(runs[name])),
    )


def _best(
    groups: Mapping[tuple[str, str, str], Sequence[Result]], manifests: Mapping[str, Manifest]
) -> dict[tuple[str, str, str], float]:
    """The probability of being best by run, study and experiment; a race says itself which is, within its limits."""
    found: dict[tuple[str, str, str], float] = {}
    plans = {(run, plan.name): plan for run, manifest in manifests.items() for plan in manifest.studies}
    for run, study in dict.fromkeys((run, study) for run, study, _ in groups):
        plan = plans.get((run, study))
        if plan is not None and plan.optimize is not None:
            continue
        headline = None if plan is None else plan.headline
        of_study = {key: Contender.of(headline, group) for key, group in groups.items() if key[:2] == (run, study)}
        found |= best(of_study, headline)
    return found


def _key(result: Result) -> tuple[str, str, str]:
    return result.run_id, result.study, result.experiment.id


def _result_files(path: Path) -> list[Path]:
    try:
        return result_files(path)
    except StoreError:
        if (path / MANIFEST).exists() and current_manifest(path).items:
            return []
        raise


def _runs(path: Path) -> list[Path]:
    for candidate in (path, *path.parents):
        if (candidate / MANIFEST).exists():
            return [candidate]
    return runs_at(path)


def _experiment(
    key: tuple[str, str, str],
    results: Sequence[Result],
    row: Mapping[str, Cell],
    total: int,
    baseline_dir: Path,
) -> ExperimentRow:
    valid = [result for result in results if result.validity.valid]
    first = (valid or list(results))[0]
    idle_j, net_j = _split(valid)
    notes = [reason.code for result in results for reason in result.validity.reasons]
    notes += [warning.code for result in results for warning in result.warnings]
    model = first.experiment.config.get("model")
    return ExperimentRow(
        key="/".join(key),
        run=key[0],
        study=key[1],
        experiment=key[2],
        engine=f"{first.engine.name} {first.engine.version}",
        model=model if isinstance(model, str) else "",
        valid=len(valid),
        total=total,
        metrics=summarise_metrics(valid, baseline_dir),
        phases=_phases(valid),
        idle_j=idle_j,
        net_j=net_j,
        settings={name: cell for name, cell in row.items() if name.startswith("config.")},
        notes=tuple(dict.fromkeys(notes)),
        slo=served(results),
        meter=" and ".join(sorted(meters(HEADLINE, valid))),
    )


def _phases(valid: Sequence[Result]) -> dict[str, float]:
    """Mean joules per output token of each phase that was separated."""
    energies: dict[str, list[float]] = {}
    for result in valid:
        for phase in result.energy.phases:
            if phase.energy_per_repeat_j is not None and result.workload.output_tokens:
                energies.setdefault(phase.name, []).append(phase.energy_per_repeat_j / result.workload.output_tokens)
    return {name: fmean(values) for name, values in energies.items()}


def _split(valid: Sequence[Result]) -> tuple[float | None, float | None]:
    """Mean joules per output token of the idle device, and above idle."""
    idle: list[float] = []
    net: list[float] = []
    for result in valid:
        energy = result.energy
        if energy.energy_j is not None and energy.energy_above_idle_j is not None and result.tokens.output:
            above = max(0.0, energy.energy_above_idle_j)
            idle.append((energy.energy_j - above) / result.tokens.output)
            net.append(above / result.tokens.output)
    return (fmean(idle), fmean(net)) if idle else (None, None)


def _placed(rows: Sequence[ExperimentRow], manifests: Sequence[Manifest]) -> tuple[list[ExperimentRow], StudyAxes]:
    """The rows of one study in its order, and its axes: those of its sweep, else the settings that differ."""
    study = rows[0].study
    swept = {
        manifest.run_id: plan.study_axes()
        for manifest in manifests
        for plan in manifest.studies
        if plan.name == study and plan.axes
    }
    items = dict.fromkeys(item.experiment_id for each in manifests for item in each.items if item.study == study)
    listed = {experiment: place for place, experiment in enumerate(items)}
    rows = sorted(rows, key=lambda row: (listed.get(row.experiment, len(listed)), row.run))
    if all(row.run in swept for row in rows):
        axes = joined(swept[run].axes for run in dict.fromkeys(row.run for row in rows))
        placed = [replace(row, point=swept[row.run].point(row.experiment)) for row in rows]
        order = StudyAxes(axes)
        placed.sort(key=lambda row: order.place(row.point))
    else:
        differ = differing({row.key: {n.removeprefix("config."): v for n, v in row.settings.items()} for row in rows})
        axes = differ.axes
        placed = [replace(row, point=differ.point(row.key)) for row in rows]
    points: dict[str, set[tuple[JsonValue, ...]]] = {}
    for row in placed:
        points.setdefault(row.experiment, set()).add(tuple(row.point.get(axis.name) for axis in axes))
    # An id that means different settings in different runs has no one point.
    return placed, StudyAxes(axes, {name: one for name, (one, *others) in points.items() if not others})


def _progress(manifest: Manifest, shown: Collection[str]) -> RunProgress:
    states = Counter(item.state for item in manifest.items)
    ended = len(manifest.items) - states["pending"] - states["running"] - states["interrupted"]
    reused = sum(item.state == "valid" and item.source_run in shown for item in manifest.items)
    return RunProgress(len(manifest.items), ended, states["valid"], run_state(manifest), reused)
