"""Compares stored runs: `llem compare A B [C...]`, with the first one as the baseline of the others.

The command and the report's page call `compare`. It must judge with the same gates as a study; texts may change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from pytest_llem.errors import SettingsError
from pytest_llem.job.metric_names import ACCURACY, HEADLINE, JOULES_PER_CORRECT, known_metric
from pytest_llem.results.axes import StudyAxes, written
from pytest_llem.results.baselines import BaselineFile, with_repeatability
from pytest_llem.results.comparability import differences, settings_differences
from pytest_llem.results.compared_sides import ComparedSide
from pytest_llem.results.effects import Direction, direction
from pytest_llem.results.gate_report import GateRow, word
from pytest_llem.results.gate_rows import limit_text, middle, none_good
from pytest_llem.results.gates import MIN_CYCLES, Status
from pytest_llem.results.judging import judge_comparison
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.measured_cycles import MeasuredCycles
from pytest_llem.results.metrics import Metric, is_energy, metric
from pytest_llem.results.question_rows import Cycles, changed_mean, sampling_rel, unpaired
from pytest_llem.results.reading import same_measurements
from pytest_llem.results.repeatability import Repeatability
from pytest_llem.results.statistics import ratio_interval
from pytest_llem.results.terminal import (
    PREFIXES,
    as_markdown,
    common_exponent,
    fitted_table,
    markdown_table,
    significant,
)
from pytest_llem.results.verdict_text import change
from pytest_llem.study.limits import Comparison, FailIf, Match

HEADLINES = (HEADLINE, JOULES_PER_CORRECT, ACCURACY, "output_tokens_per_s", "ttft_p50_s", "tpot_p50_s")
HEAD = ("experiment", "metric", "baseline", "now", "change", "90 % interval", "verdict")
SIDES = ("lower", "higher")
Verdict = Status | Direction | Literal["absent"]


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one experiment in two runs; values are geometric means over valid cycles, `None` if absent.

    `limit_text` is the limit as it was stated, `limit` the same as a fraction of the baseline. `verdict` is a gate's
    where a limit was given, with its `reason`; else it says on which side of 1 the whole interval lies, or that it does
    not (`not told apart`, which is not *equal*). `differs` names the conditions that differ, and that energy was
    estimated: numbers without a limit are shown all the same.
    """

    run: str
    study: str
    experiment_id: str
    metric: str
    unit: str
    baseline: float | None
    current: float | None
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    limit: float | None
    verdict: Verdict | None
    differs: tuple[str, ...]
    limit_text: str | None = None
    reason: str = ""

    @property
    def better(self) -> bool | None:
        """Whether a change that is no gate's is for the better; `None` where there is none."""
        return (self.verdict == "higher") == metric(self.metric).higher_is_better if self.verdict in SIDES else None


def headlines(plans: Iterable[StudyPlan]) -> list[str]:
    """The metrics that are shown where none is named: the studies' own headlines that are known here, and `HEADLINES`.

    An earlier run may have the headline of a package that is not installed any more.
    """
    asked = [plan.headline for plan in plans if plan.headline and known_metric(plan.headline)]
    return [*dict.fromkeys((*asked, *HEADLINES))]


def compare(
    baseline: ComparedSide,
    others: Sequence[ComparedSide],
    *,
    metrics: Sequence[str] = (),
    limits: Sequence[FailIf] = (),
    alpha: float = 0.05,
    allow: Collection[str] = (),
    match: Match = "config",
    baseline_dir: Path | None = None,
) -> list[ComparedMetric]:
    """Each experiment of the other runs against the baseline's with the same study and configuration, or else id.

    `baseline_dir` may know what equal runs differ by (`llem aa`), which the bounds then include. `metrics` defaults to
    the headline ones; those of the limits are added. Raises `SettingsError` for unknown names.
    """
    by_limit = {limit.metric: limit for limit in limits}
    names = dict.fromkeys([*(metrics or HEADLINES), *by_limit])
    chosen = [metric(name) for name in names]
    comparison = Comparison(tuple(by_limit.values()), alpha, tuple(allow), match)
    rows: list[ComparedMetric] = []
    known = with_repeatability(baseline.baseline, baseline_dir)
    for side in others:
        absent = {study: BaselineFile(study) for study, _ in side.experiments}
        known = replace(known, studies={**absent, **known.studies})
        for (study, experiment_id), each in side.experiments.items():
            before = baseline.find(study, experiment_id, each.config_hash, by_id=match == "id")
            now = each.runs[-1] if each.runs else None
            of = study, experiment_id, each.config_hash
            judged = {row.metric: row for row in judge_comparison(known, of, now, each.lost, comparison)}
            for measure in chosen:
                measured = known.repeatability.get(study)
                runs = before.held_against(measure, now) if before is not None else ()
                row = _compare(side.name, study, experiment_id, measure, runs, now, alpha, allow, measured)
                gate = judged.get(measure.name)
                if gate is not None:
                    rows.append(_gated(row, gate, by_limit[measure.name]))
                elif row.verdict != "absent" or row.baseline is not None or row.current is not None:
                    rows.append(row)
        rows += _gone(side.name, baseline, side, {study for study, _ in side.experiments}, chosen, by_limit)
    nowhere = {study for study, _ in baseline.experiments} - {study for side in others for study, _ in side.experiments}
    for side in others[-1:]:  # each of several runs may be of another study: the last stands for all
        rows += _gone(side.name, baseline, None, nowhere, chosen, by_limit)
    return rows


def _gone(
    run: str,
    baseline: ComparedSide,
    side: ComparedSide | None,
    studies: Collection[str],
    chosen: Sequence[Metric],
    limits: Mapping[str, FailIf],
) -> Iterator[ComparedMetric]:
    """What the baseline measured of `studies` and the run has no result of at all: none of its cycles ended."""
    for (study, experiment_id), each in baseline.experiments.items():
        if study not in studies:
            continue
        if side is not None and side.find(study, experiment_id, each.config_hash, by_id=False) is not None:
            continue
        for measure in chosen:
            row = _compare(run, study, experiment_id, measure, each.runs, None, 0.05, (), None)
            text = limit_text(limits[measure.name]) if measure.name in limits else None
            if row.baseline is not None:
                yield replace(row, limit_text=text, reason="this run has no result of it")


def _gated(row: ComparedMetric, gate: GateRow, limit: FailIf) -> ComparedMetric:
    """A compared metric with its gate's verdict, ratio, bounds and reason in place of its own."""
    if gate.ratio is not None:
        row = replace(row, ratio=gate.ratio, ci_low=gate.ci_low, ci_high=gate.ci_high)
    return replace(
        row,
        limit=gate.limit_ratio - 1 if gate.limit_ratio else None if limit.absolute else limit.limit,
        limit_text=gate.limit,
        verdict=gate.status,
        reason=gate.told(),
    )


def require_compared(rows: Sequence[ComparedMetric], baseline: ComparedSide, others: Sequence[ComparedSide]) -> None:
    """Raise `SettingsError`, with a list of both, where no limit (without any, no metric) has values on both sides."""
    limited = [row for row in rows if row.limit_text is not None] or rows
    if any(row.baseline is not None and row.current is not None for row in limited):
        return
    metrics = ", ".join(dict.fromkeys(row.metric for row in limited))
    listed = [
        ", ".join(f"{study}[{name}]" for side in sides for (study, name), each in side.experiments.items() if each.runs)
        or "none"
        for sides in ((baseline,), others)
    ]
    raise SettingsError(
        f"nothing was compared: no experiment has valid cycles with {metrics or 'a metric'} on both sides\n"
        f"valid in the baseline: {listed[0]}\nvalid in the others: {listed[1]}",
        fix="compare runs of the same study; --match=id compares by id, where settings have changed",
    )


def failed(rows: Sequence[ComparedMetric], *, strict: bool = False) -> bool:
    """Whether a limit is exceeded or, if strict, could not be judged."""
    bad = {"fail", "inconclusive", "not_comparable", "absent"} if strict else {"fail"}
    return any(row.verdict in bad for row in rows if row.limit_text is not None)


def lines(
    rows: Sequence[ComparedMetric],
    axes: Mapping[str, StudyAxes] | None = None,
    *,
    against: str = "the baseline",
    alpha: float = 0.05,
    markdown: bool = False,
) -> list[str]:
    """The comparison for a terminal or as Markdown: a table per run, study and metric, with what differs below.

    `against` names the baseline, and `alpha` is the error rate of each bound. Where `axes` tell the experiments of a
    study apart, a column for each stands in place of their ids.
    """
    shown: list[str] = []
    for run in dict.fromkeys(row.run for row in rows):
        of_run = [row for row in rows if row.run == run]
        studies = dict.fromkeys(row.study for row in of_run)
        both = f"{run} against {against}"
        shown += [f"### {as_markdown(both)}", ""] if markdown else [both, ""]
        for study, name in dict.fromkeys((row.study, row.metric) for row in of_run):
            group = _prefixed([row for row in of_run if (row.study, row.metric) == (study, name)])
            better = "higher" if metric(name).higher_is_better else "lower"
            title = f"{f'{study}: ' if len(studies) > 1 else ''}{named(group[0])}, {better} is better"
            if all(row.differs and row.limit_text is None for row in group):
                title, group = f"{title} *", [replace(row, differs=()) for row in group]
            heads, names = _named(group, (axes or {}).get(study, StudyAxes()))
            interval = f"{100 - 200 * alpha:.4g} % interval"
            head = (*heads, "baseline", "now", "change", interval, "")
            body = [(*name, *cells(row, several_studies=False)[2:]) for name, row in zip(names, group, strict=True)]
            if markdown:
                shown += [f"**{as_markdown(title)}**", "", *markdown_table(head, body, left=len(heads)), ""]
            else:
                shown += [title, *fitted_table(head, body, left=len(heads), right=1), ""]
        shown += [f"- {as_markdown(note)}" if markdown else note for note in _notes(of_run)]
    return shown


def _prefixed(rows: Sequence[ComparedMetric]) -> list[ComparedMetric]:
    """One metric's rows with their values in the multiple of its unit that suits their median: `9.28 mJ`."""
    exponent = common_exponent((value for row in rows for value in (row.baseline, row.current)), rows[0].unit)

    def scaled(value: float | None) -> float | None:
        return None if value is None else value / 1000.0**exponent

    unit = f"{PREFIXES[exponent]}{rows[0].unit}"
    return [replace(row, unit=unit, baseline=scaled(row.baseline), current=scaled(row.current)) for row in rows]


def _named(rows: Sequence[ComparedMetric], axes: StudyAxes) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The heads and cells that name the rows' experiments: the axes on which these differ, or their ids."""
    ids = [row.experiment_id for row in rows]
    if not axes.tells_apart(ids):
        return ("experiment",), [(name,) for name in ids]
    points = [axes.point(name) for name in ids]
    varied = [axis for axis in axes.axes if len({repr(point.get(axis.name)) for point in points}) > 1] or axes.axes
    return tuple(axis.title for axis in varied), [tuple(written(point.get(a.name)) for a in varied) for point in points]


def _compare(
    run: str,
    study: str,
    experiment_id: str,
    measure: Metric,
    before: Sequence[MeasuredCycles],
    now: MeasuredCycles | None,
    alpha: float,
    allow: Collection[str],
    repeatability: Repeatability | None,
) -> ComparedMetric:
    new = now.values(measure) if now is not None else []
    own = now.measurements if now is not None else ()
    others = [each for each in before if not each.shares(own)]
    shared = "" if others else same_measurements(each for run in before for each in run.shares(own))
    old = [values for each in others or before if (values := each.values(measure))]
    row = ComparedMetric(
        run=run,
        study=study,
        experiment_id=experiment_id,
        metric=measure.name,
        unit=measure.unit,
        baseline=middle(measure, [value for values in old for value in values]),
        current=middle(measure, new),
        ratio=None,
        ci_low=None,
        ci_high=None,
        limit=None,
        verdict="absent",
        differs=(),
    )
    hopeless = none_good(measure, now)
    if row.baseline is None or now is None or (row.current is None and hopeless is None):
        return row
    differs = [shared] if shared else []
    for each in others or before:
        if each.config_hash != now.config_hash:
            differs.append(f"configuration: {'; '.join(settings_differences(each.settings, now.settings))}")
        gains = each.gain_uncertainty_rel, now.gain_uncertainty_rel
        sides = each.conditions, now.conditions
        differs += differences(*sides, measure, 0.0, gains, allow)
    differs += now.mixed(allow)
    estimates = sorted({each.estimated_by for each in (*before, now) if each.estimated_by is not None})
    if estimates and is_energy(measure.name):
        differs.append(f"energy is estimated, not measured, by {', '.join(estimates)}")
    row = replace(row, differs=tuple(dict.fromkeys(differs)))
    if hopeless is not None or row.current is None:
        none = bool(new) and not any(new)
        reason = hopeless.reason if hopeless is not None else ""
        return replace(row, current=0.0 if none else None, verdict="lower" if none else "absent", reason=reason)
    scored = [each.scores for each in others or before if each.scores]
    if measure.name == ACCURACY:
        return _by_question(row, scored, now, alpha, shared)
    row = replace(row, ratio=row.current / (row.baseline or 1.0))
    if shared:
        return replace(row, verdict="not_comparable")
    runs = [values for values in old if len(values) >= MIN_CYCLES]
    if not runs or len(new) < MIN_CYCLES:
        return replace(row, verdict="inconclusive")
    spread = repeatability.of(measure.name, now.conditions) if repeatability is not None else None
    interval = ratio_interval(runs, new, alpha, correlated=now.correlated, spread=spread)
    interval = interval.widened(sampling_rel(measure, [*chain(*scored)], now.scores, alpha=alpha), alpha)
    low, high = interval.low, interval.high
    return replace(row, ratio=interval.value, ci_low=low, ci_high=high, verdict=direction(low, high))


def _by_question(
    row: ComparedMetric, runs: Sequence[Cycles], now: MeasuredCycles, alpha: float, shared: str
) -> ComparedMetric:
    """The row on accuracy, whose interval is that of the questions, each paired with itself."""
    if shared or unpaired(runs, now.scores):
        return replace(row, verdict="not_comparable")
    before, change, low, high = changed_mean(runs, now.scores, alpha)
    row = replace(row, baseline=before, current=before + change)
    told = direction(1 + low, 1 + high)
    if not before:
        return replace(row, verdict=told)
    bounds = ((before + low) / before, (before + high) / before)
    return replace(row, ratio=(before + change) / before, ci_low=bounds[0], ci_high=bounds[1], verdict=told)


def cells(row: ComparedMetric, several_studies: bool) -> tuple[str, ...]:
    """The row as text, in the order of `HEAD`."""

    def said(*ratios: float) -> str:
        if row.metric != ACCURACY:
            return f"{_changes(*ratios)} %"
        return " .. ".join(change(ACCURACY, ratio, row.baseline) for ratio in ratios)

    return (
        f"{row.study}[{row.experiment_id}]" if several_studies else row.experiment_id,
        named(row),
        *("-" if value is None else significant(value, 4) for value in (row.baseline, row.current)),
        "-" if row.ratio is None else said(row.ratio),
        "-" if row.ci_low is None or row.ci_high is None else said(row.ci_low, row.ci_high),
        word(row.verdict or "-") + ("*" if row.differs and row.limit_text is None else ""),
    )


def _changes(*ratios: float) -> str:
    """Ratios as changes in percent, with a decimal where all are below 100 %."""
    changes = [100 * (ratio - 1) for ratio in ratios]
    return " .. ".join(f"{change:+.{1 if max(map(abs, changes)) < 100 else 0}f}" for change in changes)


def named(row: ComparedMetric) -> str:
    """The row's metric with its unit."""
    return f"{row.metric} ({row.unit})" if row.unit != "1" else row.metric


def _notes(rows: Sequence[ComparedMetric]) -> list[str]:
    free = [row for row in rows if row.limit_text is None]
    notes = [f"* {difference}" for difference in dict.fromkeys(entry for row in free for entry in row.differs)]
    if any(row.verdict == "inconclusive" and row.ci_low is None for row in free):
        notes.append(f"inconclusive: fewer than {MIN_CYCLES} valid cycles on one side")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.limit_text is not None and row.verdict != "pass":
            reasons.setdefault((row.metric, row.reason), []).append(row.experiment_id)
    for (name, reason), ids in reasons.items():
        notes.append(f"{ids[0] if len(ids) == 1 else f'{len(ids)} experiments'}: {name}: {reason}")
    return notes
