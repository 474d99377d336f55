"""What the experiments of a run have in common: a shift that all share, and cycles that follow one another.

The session calls it when a run has ended. Verdicts must not depend on it: it says once what many gates see.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Literal

from pytest_llem.job.metric_names import ACCURACY
from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.gate_report import GateReport, GateRow
from pytest_llem.results.statistics import CYCLES_FOR_AUTOCORRELATION, RUNS_FOR_ESTIMATE
from pytest_llem.results.verdict_text import percent

LEAST_EXPERIMENTS = 6
"""The fewest whose median has a distribution-free 95 % interval: all of six lie on one side in 3.1 % (sign test)."""
LEAST_SHIFT = 0.0005
"""Chosen: below it a shift reads as 0.0 %."""


@dataclass(frozen=True)
class RunFinding:
    """One thing that a run's experiments share in a metric, with its two-sided 95 % interval.

    `value` is a ratio to the baseline for `common_shift`, and for `cycles_correlated` a correlation of successive
    cycles, which few cycles understate. Of the `failed` gates, `explained` would pass without the shift.
    """

    code: Literal["common_shift", "cycles_correlated"]
    study: str
    metric: str
    experiments: int
    value: float
    low: float
    high: float
    failed: int
    explained: int
    message: str


def run_findings(reports: Iterable[GateReport]) -> list[RunFinding]:
    """What six experiments or more share, by study and metric."""
    groups: dict[tuple[str, str], list[GateRow]] = {}
    for report in reports:
        # An experiment counts once in a metric that has a budget and a limit: by the one that judged more.
        by_metric = {row.metric: row for row in sorted(report.rows, key=lambda row: row.autocorrelation is not None)}
        for row in by_metric.values():
            groups.setdefault((report.study, row.metric), []).append(row)
    found = [find(*group, rows) for group, rows in groups.items() for find in (_shift, _correlation)]
    return [finding for finding in found if finding is not None]


def with_common(report: GateReport, findings: Sequence[RunFinding]) -> GateReport:
    """The report with each comparison's share of a common shift, and what remains of a failure without it."""
    of_study = (each for each in findings if each.code == "common_shift" and each.study == report.study)
    shifts = {each.metric: each.value for each in of_study}
    rows = []
    for row in report.rows:
        common = shifts.get(row.metric)
        if common is not None and row.kind == "comparison" and row.ratio is not None and row.common is None:
            rest = "the rest is within the limit" if _passes_without(row, common) else "the rest exceeds it as well"
            told = f"; the whole run is {percent(common)}, {rest}" if row.status == "fail" else ""
            row = replace(row, common=common, reason=row.reason + told)
        rows.append(row)
    return replace(report, rows=tuple(rows))


def explained(report: GateReport) -> bool:
    """Whether every failed gate of an experiment would pass without what its whole run shares."""
    failures = [row for row in report.rows if row.status == "fail"]
    return bool(failures) and all(row.common is not None and _passes_without(row, row.common) for row in failures)


def _passes_without(row: GateRow, common: float) -> bool:
    limit, low, high = row.limit_ratio or 1.0, row.ci_low or 0.0, row.ci_high or math.inf
    return low / common <= limit if low > limit else high / common >= limit


def _shift(study: str, metric: str, rows: Sequence[GateRow]) -> RunFinding | None:
    if metric == ACCURACY:
        return None  # no machine's state makes answers wrong
    compared = [row for row in rows if row.kind == "comparison" and row.ratio]
    if len(compared) < LEAST_EXPERIMENTS:
        return None
    ratios = sorted(row.ratio or 1.0 for row in compared)
    outside = _outside_interval(len(ratios))
    value, low, high = median(ratios), ratios[outside], ratios[-1 - outside]
    if low <= 1 <= high or abs(value - 1) < LEAST_SHIFT:
        return None
    failed = [row for row in compared if row.status == "fail"]
    alone = sum(_passes_without(row, value) for row in failed)
    interval = f"{percent(low)} to {percent(high)}, {len(ratios)} experiments"
    message = f"the whole run is {percent(value)} in {metric} ({interval})"
    if failed:
        message += f": it accounts for {alone} of {len(failed)} failed gates"
    runs = min(row.baseline_runs for row in compared)
    if runs < RUNS_FOR_ESTIMATE:
        few = f"{runs} baseline run{'s' * (runs > 1)}"
        message += f"; {few} cannot tell a change that all share from the machine's state"
    return RunFinding("common_shift", study, metric, len(ratios), value, low, high, len(failed), alone, message)


def _outside_interval(count: int) -> int:
    """How many of the sorted values lie outside the median's 95 % interval on each side (sign test)."""
    tail = ways = 1
    outside = 0
    while 40 * (tail := tail + (ways := ways * (count - outside) // (outside + 1))) <= 2**count:
        outside += 1
    return outside


def _correlation(study: str, metric: str, rows: Sequence[GateRow]) -> RunFinding | None:
    found = [row.autocorrelation for row in rows if row.autocorrelation is not None]
    if len(found) < LEAST_EXPERIMENTS:
        return None
    value = fmean(found)
    reach = student_quantile(0.975, len(found) - 1) * stdev(found) / math.sqrt(len(found))
    if value <= reach:
        return None
    message = (
        f"successive cycles resemble one another in {metric} (correlation of {value:.2f} or more over {len(found)} "
        f"experiments): gates of fewer than {CYCLES_FOR_AUTOCORRELATION} cycles fail more often than alpha says; "
        "shuffle the order, or measure more cycles"
    )
    bounds = value - reach, value + reach
    return RunFinding("cycles_correlated", study, metric, len(found), value, *bounds, 0, 0, message)
