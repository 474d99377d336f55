"""Compares stored runs: `llem compare A B [C...]`, with the first one as the baseline of the others.

The command and the report's page call `compare`. It must judge with the same gates as a study; texts may change.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_llem.results.comparability import common_conditions, differences, mixture
from pytest_llem.results.gates import MIN_CYCLES, Status
from pytest_llem.results.judging import centre, judge_change, limit_text
from pytest_llem.results.metrics import Metric, is_energy, metric
from pytest_llem.results.reading import Results, shared_measurements
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import ratio_interval
from pytest_llem.results.terminal import markdown_table, table
from pytest_llem.study.limits import FailIf

HEADLINES = ("joules_per_output_token", "output_tokens_per_s", "ttft_p50_s", "tpot_p50_s")
HEAD = ("experiment", "metric", "baseline", "now", "change", "interval", "verdict")
Verdict = Status | Literal["better", "worse", "same", "absent"]


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one experiment in two runs; values are geometric means over valid cycles, `None` if absent.

    `limit_text` is the limit as it was stated, `limit` the same as a fraction of the baseline. `verdict` is a gate's
    where a limit was given, else `better`, `worse` or `same` (no change beyond noise).
    `differs` names the conditions that differ: then the numbers are shown and no gate is judged.
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


def compare(
    baseline: Results,
    others: Sequence[tuple[str, Results]],
    *,
    metrics: Sequence[str] = (),
    limits: Sequence[FailIf] = (),
    alpha: float = 0.05,
    allow: Collection[str] = (),
) -> list[ComparedMetric]:
    """Each experiment of the other runs against the baseline's with the same study and configuration, or else id.

    `metrics` defaults to the headline ones; those of the limits are added. Raises `SettingsError` for unknown names.
    """
    by_limit = {limit.metric: limit for limit in limits}
    names = dict.fromkeys([*(metrics or HEADLINES), *by_limit])
    chosen = [metric(name) for name in names]
    rows: list[ComparedMetric] = []
    by_hash: dict[tuple[str, str], list[Result]] = {}
    for result in baseline:
        by_hash.setdefault((result.study, result.experiment.config_hash), []).append(result)
    by_id = baseline.by_experiment()
    for run, results in others:
        for (study, experiment_id), group in results.by_experiment().items():
            same = by_hash.get((study, group[0].experiment.config_hash))
            before = Results(tuple(same)) if same else by_id.get((study, experiment_id), Results(()))
            for measure in chosen:
                limit = by_limit.get(measure.name)
                row = _compare(run, study, experiment_id, measure, before.valid, group.valid, limit, alpha, allow)
                if row is not None:
                    rows.append(row)
    return rows


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
            shown += [f"### {run}", "", *markdown_table(HEAD, body, left=2), ""]
        else:
            shown += [run, *(f"  {line}" for line in table(HEAD, body, left=2)), ""]
        shown += [f"{'- ' if markdown else '  '}{note}" for note in _notes(of_run)]
    return shown


def _compare(
    run: str,
    study: str,
    experiment_id: str,
    measure: Metric,
    before: Results,
    now: Results,
    limit: FailIf | None,
    alpha: float,
    allow: Collection[str],
) -> ComparedMetric | None:
    old = [value for result in before if (value := measure.of(result)) is not None]
    new = [value for result in now if (value := measure.of(result)) is not None]
    if not old and not new:
        return None
    row = ComparedMetric(
        run=run,
        study=study,
        experiment_id=experiment_id,
        metric=measure.name,
        unit=measure.unit,
        baseline=centre(old),
        current=centre(new),
        ratio=None,
        ci_low=None,
        ci_high=None,
        limit=limit.limit if limit and not limit.absolute else None,
        verdict=None,
        differs=(),
        limit_text=limit_text(limit) if limit else None,
    )
    if row.baseline is None or row.current is None:
        return replace(row, verdict="absent")
    if limit is not None and (limit := limit.relative_to(row.baseline)).limit <= -1:
        return replace(row, verdict="inconclusive")
    ratio = row.current / row.baseline
    differs = [*mixture(now.items, allow)]
    if before[0].experiment.config_hash != now[0].experiment.config_hash:
        differs.insert(0, "configuration: not the same experiment under this id")
    differs += differences(
        common_conditions(before.items),
        common_conditions(now.items),
        is_energy(measure.name),
        limit.limit if limit else 0.0,
        (before[0].energy.gain_uncertainty_rel, now[0].energy.gain_uncertainty_rel),
        allow,
    )
    shared = shared_measurements(before, now)
    differs = [*([shared] if shared else []), *differs]
    row = replace(row, limit=limit.limit if limit else None, ratio=ratio, differs=tuple(differs))
    if shared:
        return replace(row, verdict="not_comparable")
    if min(len(old), len(new)) < MIN_CYCLES:
        return replace(row, verdict="inconclusive")
    interval = ratio_interval([old], new, alpha)
    row = replace(row, ratio=interval.value, ci_low=interval.low, ci_high=interval.high)
    if limit is not None:
        return replace(
            row, verdict="not_comparable" if differs else judge_change(measure, limit, [old], new, alpha).status
        )
    if interval.low <= 1 <= interval.high:
        return replace(row, verdict="same")
    return replace(row, verdict="better" if (interval.low > 1) == measure.higher_is_better else "worse")


def cells(row: ComparedMetric, several_studies: bool) -> tuple[str, ...]:
    """The row as text, in the order of `HEAD`."""
    name = f"{row.study}[{row.experiment_id}]" if several_studies else row.experiment_id
    interval = "-" if row.ci_low is None or row.ci_high is None else f"{row.ci_low - 1:+.1%} .. {row.ci_high - 1:+.1%}"
    verdict = (row.verdict or "-").replace("_", " ") + ("*" if row.differs else "")
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
    differs = dict.fromkeys(difference for row in rows for difference in row.differs)
    notes = [f"* {difference}" for difference in differs]
    if any(row.verdict == "inconclusive" and row.ci_low is None for row in rows):
        notes.append(f"inconclusive: fewer than {MIN_CYCLES} valid cycles on one side")
    return notes
