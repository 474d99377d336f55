"""`llem compare RUN --by AXIS`: which setting matters, inside a run, paired over the other axes of its sweep.

`compare_command` calls it. The numbers are those of `effects`, which the charts show too; texts may change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.results.axes import StudyAxes, differing, joined, written
from pytest_llem.results.comparability import MACHINE, common_conditions, flat_settings
from pytest_llem.results.compare import headlines
from pytest_llem.results.effects import Effect, effects, meters
from pytest_llem.results.manifest import StudyPlan, manifests_at
from pytest_llem.results.metrics import is_energy, metric
from pytest_llem.results.reading import Results
from pytest_llem.results.terminal import as_markdown, fitted_table, markdown_table, significant
from pytest_llem.results.whole_runs import by_whole_run
from pytest_llem.study.model import SweptAxis

UNEXPECTED = (*MACHINE, "meter", "scope")
"""Conditions that few settings are meant to change, and that change what a ratio says."""
MEANT = {"device.kind": MACHINE[:-1], "device.gpus": ("device_count",)}
"""Those that an axis is there to change."""


@dataclass(frozen=True)
class StudyEffects:
    """What one axis of one study does, and what to know of its results before believing it."""

    study: str
    axis: SweptAxis
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]


def by_axis(
    path: Path, results: Results, name: str, *, metrics: Sequence[str] = (), reference: str | None = None
) -> list[StudyEffects]:
    """The effects of the axis called `name` (its title or its whole name) in each study that has it.

    `metrics` defaults to the headline ones that were measured. Raises `SettingsError`, with a list of the axes, where
    no study has it, and where no two experiments can be paired.
    """
    plans = plans_at(path)
    studies = dict.fromkeys(result.study for result in results)
    placed = {study: _axes_of(results.of_study(study), plans) for study in studies}
    joined_shards = _with_shards_joined(path, results)
    found: list[StudyEffects] = []
    for study, axes in placed.items():
        called = name.casefold()
        axis = next((each for each in axes.axes if called in (each.title.casefold(), each.name.casefold())), None)
        if axis is None:
            continue
        valid = joined_shards.valid.of_study(study)
        against = None if reference is None else _value_called(reference, axis)
        shown = metrics or [
            each
            for each in headlines(plan for _, plan in plans if plan.name == study)
            if any(metric(each).of(result) is not None for result in valid)
        ]
        of_study = [
            effect for each in dict.fromkeys(shown) for effect in effects(valid, axes, axis, each, reference=against)
        ]
        found.append(StudyEffects(study, axis, tuple(of_study), tuple(_notes(valid, axis, of_study, axes))))
    if not found:
        raise SettingsError(f"{path}: no axis {name!r}", fix=_fix(placed))
    if not any(effect.pairs for each in found for effect in each.effects):
        if metrics and not any(
            metric(each).of(result) is not None for each in metrics for result in joined_shards.valid
        ):
            raise SettingsError(
                f"{path}: nothing to compare: no valid cycle has {' or '.join(metrics)}",
                fix="docs/metrics.md says when it is null; name another metric",
            )
        if any(effect.apart for each in found for effect in each.effects):
            raise SettingsError(
                f"{path}: nothing to compare: joules of other meters, or of other parts of the machine, have no ratio",
                fix="name a metric that is no energy (--metric output_tokens_per_s)",
            )
        raise SettingsError(
            f"{path}: nothing to compare: no two experiments with valid cycles differ in {name} alone",
            fix="see what is valid with llem list, or compare another axis, metric or --reference",
        )
    return found


def lines(found: Sequence[StudyEffects], *, markdown: bool = False) -> list[str]:
    """The effects as a table per study and metric, with what to know about them below."""
    shown: list[str] = []
    for each in found:
        reference = each.effects[0].reference if each.effects else None
        title = f"{each.study}: {each.axis.title} against {written(reference)}"
        shown += [f"### {as_markdown(title)}" if markdown else title, ""]
        for name in dict.fromkeys(effect.metric for effect in each.effects):
            body = [_cells(effect) for effect in each.effects if effect.metric == name]
            head = (each.axis.title, "ratio", "95 % interval", "pairs", "each of them", "")
            heading = f"{name}, {'higher' if metric(name).higher_is_better else 'lower'} is better"
            if markdown:
                shown += [f"**{as_markdown(heading)}**", "", *markdown_table(head, body), ""]
            else:
                shown += [heading, *fitted_table(head, body, right=1), ""]
        shown += [f"- {as_markdown(note)}" if markdown else note for note in each.notes]
        shown.append("")
    return shown[:-1]


def _cells(effect: Effect) -> tuple[str, ...]:
    ratios = [pair.ratio for pair in effect.each]
    bounds = effect.ci_low is not None and effect.ci_high is not None
    return (
        written(effect.value),
        "-" if effect.ratio is None else _ratio(effect.ratio),
        f"{_ratio(effect.ci_low)} .. {_ratio(effect.ci_high)}" if bounds else "-",
        str(effect.pairs),
        f"{_ratio(min(ratios))} .. {_ratio(max(ratios))}" if len(ratios) > 1 else "-",
        effect.status if effect.pairs else "not judged: other meters" if effect.apart else "",
    )


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}" if 0.1 <= ratio < 10 else significant(ratio)


def _notes(valid: Results, axis: SweptAxis, found: Sequence[Effect], axes: StudyAxes) -> Iterator[str]:
    """What the ratios are of, what was left out, and what makes them say less."""
    yield f"pairs differ in {axis.title} alone, within one run; ratios are of these pairs only"
    for effect in found:
        said = Counter(pair.status for pair in effect.each)
        if said["lower"] and said["higher"]:
            yield (
                f"{effect.metric}: {written(effect.value)} is lower in {said['lower']} and higher in {said['higher']} "
                "of the pairs: it depends on the other axes (--format json has each pair)"
            )
    alone = {written(effect.value): effect.unpaired for effect in found if effect.unpaired}
    for value, count in alone.items():
        yield f"{value}: left out {count} point{'s' * (count > 1)} without a partner (not measured or not valid)"
    for name in dict.fromkeys(effect.metric for effect in found if effect.apart):
        of_meters = "; ".join(sorted(meters(name, valid)))
        yield (
            f"{name}: joules of other meters, or of other parts of the machine, are not judged against one another: "
            f"{of_meters}"
        )
    if any(effect.pairs and effect.ci_low is None for effect in found):
        yield "-: a single pair of single cycles has no interval: measure more cycles (execution.cycles)"
    guessed = sorted({result.energy.meter for result in valid if not result.energy.measured})
    if guessed and any(effect.pairs and is_energy(effect.metric) for effect in found):
        yield f"energy NOT measured ({', '.join(guessed)}): what that may err by is in no interval"
    conditions = [common_conditions(group.items) for group in valid.by_experiment().values()]
    swept = {name for each in axes.axes for name in (each.name, each.title, each.name.rpartition(".")[2])}
    swept |= {name for each in axes.axes for name in MEANT.get(each.name, ())}
    if any(effect.apart for effect in found):
        swept |= {"meter", "scope"}  # as said
    for name in UNEXPECTED:
        values = dict.fromkeys(_text(each.get(name)) for each in conditions)
        if len(values) > 1 and name not in swept:
            yield f"not all experiments have the same {name}: {'; '.join(values)}"


def _text(value: JsonValue) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def plans_at(path: Path) -> list[tuple[str, StudyPlan]]:
    """The plans of the runs at a path, each with its run's id, newest first; none where there is no run."""
    manifests = sorted(manifests_at(path), key=lambda each: each.run_id)
    return [(manifest.run_id, plan) for manifest in reversed(manifests) for plan in manifest.studies]


def axes_of_plans(plans: Sequence[StudyPlan]) -> StudyAxes:
    """The axes of one study in several runs, newest first, with the points of all: a shard has its own alone."""
    points = {name: point for plan in reversed(plans) for name, point in plan.points.items()}
    axes = joined(plan.axes for plan in plans)
    alike = all([axis.name for axis in plan.axes] == [axis.name for axis in axes] for plan in plans)
    return StudyAxes(axes, points) if alike else StudyAxes(plans[0].axes, plans[0].points)


def _with_shards_joined(path: Path, results: Results) -> Results:
    """The results with the shards of one run as that run, so that experiments of two shards can make a pair."""
    whole = {result.run_id: rows[0].run_id for _, rows in by_whole_run(path, results) for result in rows}
    return Results(
        tuple(
            result.model_copy(update={"run_id": run, "source_run": result.source_run or result.run_id})
            if (run := whole[result.run_id]) != result.run_id
            else result
            for result in results
        )
    )


def _axes_of(results: Results, plans: Sequence[tuple[str, StudyPlan]]) -> StudyAxes:
    """The axes of one study's sweep in the runs that measured it; the settings that differ, where it has none."""
    runs = {result.run_id for result in results}
    swept = [plan for run, plan in plans if run in runs and plan.name == results[0].study and plan.axes]
    if swept:
        return axes_of_plans(swept)
    return differing({name: flat_settings(group[0]) for (_, name), group in results.by_experiment().items()})


def _value_called(text: str, axis: SweptAxis) -> JsonValue:
    for label, value in zip(axis.labels, axis.values, strict=True):
        if text in (label, written(value)):
            return value
    raise SettingsError(
        f"--reference {text!r} is no value of {axis.title}",
        fix=f"name one of {', '.join(written(value) for value in axis.values)}",
    )


def _fix(placed: Mapping[str, StudyAxes]) -> str:
    """The axes of each study, with their whole names where these are longer: `batch_size (transformers.batch_size)`."""
    of_studies = {
        study: ", ".join(a.title if a.title == a.name else f"{a.title} ({a.name})" for a in axes.axes)
        for study, axes in placed.items()
        if axes.axes
    }
    if not of_studies:
        return "its experiments differ in no setting; compare it with another run: llem compare A B"
    if len(of_studies) == 1:
        return f"name one of {next(iter(of_studies.values()))}"
    return f"name one of {'; '.join(f'{axes} in {study}' for study, axes in of_studies.items())}"
