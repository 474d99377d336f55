"""Compares stored runs: `llem compare A B [C...]`, with the first one as the baseline of the others.

The command and the report's page call `compare`. It must judge with the same gates as a study; texts may change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_llem.errors import SettingsError
from pytest_llem.results.baselines import BaselineFile, baseline_of, with_repeatability
from pytest_llem.results.comparability import (
    CORRELATED,
    common_conditions,
    differences,
    flat_settings,
    mixture,
    settings_differences,
)
from pytest_llem.results.gate_report import GateRow, word
from pytest_llem.results.gates import MIN_CYCLES, Status
from pytest_llem.results.judging import centre, judge_comparison, limit_text
from pytest_llem.results.metrics import Metric, is_energy, metric
from pytest_llem.results.reading import Results, shared_measurements
from pytest_llem.results.repeatability import Repeatability
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import ratio_interval
from pytest_llem.results.terminal import as_markdown, markdown_table, table
from pytest_llem.study.limits import Comparison, FailIf, Match

HEADLINES = ("joules_per_output_token", "output_tokens_per_s", "ttft_p50_s", "tpot_p50_s")
HEAD = ("experiment", "metric", "baseline", "now", "change", "interval", "verdict")
Verdict = Status | Literal["better", "worse", "same", "absent"]


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one experiment in two runs; values are geometric means over valid cycles, `None` if absent.

    `limit_text` is the limit as it was stated, `limit` the same as a fraction of the baseline. `verdict` is a gate's
    where a limit was given, with its `reason`, else `better`, `worse` or `same` (no change beyond noise).
    `differs` names the conditions that differ, and that energy was estimated: numbers without a limit are shown all the
    same.
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


def compare(
    baseline: Results,
    others: Sequence[tuple[str, Results]],
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
    by_hash: dict[tuple[str, str], list[Result]] = {}
    for result in baseline:
        by_hash.setdefault((result.study, result.experiment.config_hash), []).append(result)
    by_id = baseline.by_experiment()
    known = with_repeatability(baseline_of("the baseline", baseline), baseline_dir)
    for run, results in others:
        absent = {study: BaselineFile(study) for study, _ in results.by_experiment()}
        known = replace(known, studies={**absent, **known.studies})
        for (study, experiment_id), group in results.by_experiment().items():
            same = Results(tuple(by_hash.get((study, group[0].experiment.config_hash), ())))
            named = by_id.get((study, experiment_id), Results(()))
            before = (named or same) if match == "id" else (same or named)
            lost = [f"c{result.cycle} invalid" for result in group if not result.validity.valid]
            of = study, experiment_id, group[0].experiment.config_hash
            judged = {row.metric: row for row in judge_comparison(known, of, group.valid.items, lost, comparison)}
            for measure in chosen:
                measured = known.repeatability.get(study)
                row = _compare(run, study, experiment_id, measure, before.valid, group.valid, alpha, allow, measured)
                gate = judged.get(measure.name)
                if gate is not None:
                    rows.append(_gated(row, gate, by_limit[measure.name]))
                elif row.verdict != "absent" or row.baseline is not None or row.current is not None:
                    rows.append(row)
        rows += _gone(run, baseline, results, {result.study for result in results}, chosen, by_limit)
    nowhere = {result.study for result in baseline} - {result.study for _, results in others for result in results}
    for run, _ in others[-1:]:  # each of several runs may be of another study: the last stands for all
        rows += _gone(run, baseline, Results(()), nowhere, chosen, by_limit)
    return rows


def _gone(
    run: str,
    baseline: Results,
    results: Results,
    studies: Collection[str],
    chosen: Sequence[Metric],
    limits: Mapping[str, FailIf],
) -> Iterator[ComparedMetric]:
    """What the baseline measured of `studies` and the run has no result of at all: none of its cycles ended."""
    present = {
        (result.study, name) for result in results for name in (result.experiment.id, result.experiment.config_hash)
    }
    for (study, experiment_id), group in baseline.by_experiment().items():
        if study in studies and not present & {(study, experiment_id), (study, group[0].experiment.config_hash)}:
            for measure in chosen:
                row = _compare(run, study, experiment_id, measure, group.valid, Results(()), 0.05, (), None)
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
        reason=gate.reason,
    )


def require_compared(rows: Sequence[ComparedMetric], baseline: Results, others: Results) -> None:
    """Raise `SettingsError`, with a list of both, where no limit (without any, no metric) has values on both sides."""
    limited = [row for row in rows if row.limit_text is not None] or rows
    if any(row.baseline is not None and row.current is not None for row in limited):
        return
    metrics = ", ".join(dict.fromkeys(row.metric for row in limited))
    listed = [
        ", ".join(f"{study}[{name}]" for study, name in side.valid.by_experiment()) or "none"
        for side in (baseline, others)
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


def lines(rows: Sequence[ComparedMetric], *, markdown: bool = False) -> list[str]:
    """The comparison as a table for a terminal or as Markdown, one per run, with the differing conditions below."""
    shown: list[str] = []
    for run in dict.fromkeys(row.run for row in rows):
        of_run = [row for row in rows if row.run == run]
        several = len({row.study for row in of_run}) > 1
        body = [cells(row, several) for row in of_run]
        if markdown:
            shown += [f"### {as_markdown(run)}", "", *markdown_table(HEAD, body, left=2), ""]
        else:
            shown += [run, *(f"  {line}" for line in table(HEAD, body, left=2)), ""]
        shown += [f"- {as_markdown(note)}" if markdown else f"  {note}" for note in _notes(of_run)]
    return shown


def _compare(
    run: str,
    study: str,
    experiment_id: str,
    measure: Metric,
    before: Results,
    now: Results,
    alpha: float,
    allow: Collection[str],
    repeatability: Repeatability | None,
) -> ComparedMetric:
    old: dict[str, list[float]] = {}
    for result in before:
        if (value := measure.of(result)) is not None:
            old.setdefault(result.run_id, []).append(value)
    new = [value for result in now if (value := measure.of(result)) is not None]
    row = ComparedMetric(
        run=run,
        study=study,
        experiment_id=experiment_id,
        metric=measure.name,
        unit=measure.unit,
        baseline=centre([value for values in old.values() for value in values]),
        current=centre(new),
        ratio=None,
        ci_low=None,
        ci_high=None,
        limit=None,
        verdict="absent",
        differs=(),
    )
    if row.baseline is None or row.current is None:
        return row
    differs = [*mixture(now.items, allow)]
    if before[0].experiment.config_hash != now[0].experiment.config_hash:
        changed = settings_differences(flat_settings(before[0]), flat_settings(now[0]))
        differs.insert(0, f"configuration: {'; '.join(changed)}")
    gains = (before[0].energy.gain_uncertainty_rel, now[0].energy.gain_uncertainty_rel)
    conditions = common_conditions(before.items), common_conditions(now.items)
    differs += differences(*conditions, is_energy(measure.name), 0.0, gains, allow)
    estimates = {result.energy.meter for result in (*before, *now) if not result.energy.measured}
    if estimates and is_energy(measure.name):
        differs.append(f"energy is estimated, not measured, by {', '.join(sorted(estimates))}")
    shared = shared_measurements(before, now)
    differs = [*([shared] if shared else []), *differs]
    row = replace(row, ratio=row.current / row.baseline, differs=tuple(differs))
    if shared:
        return replace(row, verdict="not_comparable")
    runs = [values for values in old.values() if len(values) >= MIN_CYCLES]
    if not runs or len(new) < MIN_CYCLES:
        return replace(row, verdict="inconclusive")
    spread = repeatability.of(measure.name, conditions[1]) if repeatability is not None else None
    interval = ratio_interval(runs, new, alpha, correlated=now[0].runner.isolation in CORRELATED, spread=spread)
    row = replace(row, ratio=interval.value, ci_low=interval.low, ci_high=interval.high)
    if interval.low <= 1 <= interval.high:
        return replace(row, verdict="same")
    return replace(row, verdict="better" if (interval.low > 1) == measure.higher_is_better else "worse")


def cells(row: ComparedMetric, several_studies: bool) -> tuple[str, ...]:
    """The row as text, in the order of `HEAD`."""
    name = f"{row.study}[{row.experiment_id}]" if several_studies else row.experiment_id
    interval = "-" if row.ci_low is None or row.ci_high is None else f"{row.ci_low - 1:+.1%} .. {row.ci_high - 1:+.1%}"
    verdict = word(row.verdict or "-") + ("*" if row.differs and row.limit_text is None else "")
    return (
        name,
        f"{row.metric} ({row.unit})" if row.unit != "1" else row.metric,
        "-" if row.baseline is None else f"{row.baseline:.4g}",
        "-" if row.current is None else f"{row.current:.4g}",
        "-" if row.ratio is None else f"{row.ratio - 1:+.1%}",
        interval,
        verdict,
    )


def _notes(rows: Sequence[ComparedMetric]) -> list[str]:
    free = [row for row in rows if row.limit_text is None]
    notes = [f"* {difference}" for difference in dict.fromkeys(entry for row in free for entry in row.differs)]
    if any(row.verdict == "inconclusive" and row.ci_low is None for row in free):
        notes.append(f"inconclusive: fewer than {MIN_CYCLES} valid cycles on one side")
    gated = [row for row in rows if row.limit_text is not None and row.verdict != "pass"]
    return [*notes, *(f"{row.experiment_id}: {row.metric}: {row.reason}" for row in gated)]
