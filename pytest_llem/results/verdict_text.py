"""Says a verdict as its metric reads: in the direction of the metric, in the sign and the unit of the limit.

`judging` makes each gate's reason with it, `gate_report` the cells of tables, `run_verdict` its changes; whoever shows
a verdict shows these. Texts may change.
"""

from __future__ import annotations

from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT, SLO_MET_SHARE, MetricName, known_metric
from pytest_llem.results.gates import Verdict, inverted, undecided
from pytest_llem.results.terminal import significant
from pytest_llem.study.limits import SHARES, Budget, FailIf, change_text

MORE = {SLO_MET_SHARE: "raise workload.prompts", ACCURACY: "ask more questions"}
"""What narrows a bound, where it is not more cycles."""
MORE_CYCLES = "measure more cycles"
UNCHANGED = 0.0005
"""Chosen: a change below it reads as 0.0 %."""


def percent(ratio: float) -> str:
    """A ratio as a change: `+2.1 %`."""
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f} %"  # no `-0.0 %`


def in_unit(metric: str, value: float) -> str:
    """A value in its metric's own unit, as a budget states it: `0.62 J`, `1203/s`."""
    entry = known_metric(metric)
    unit = entry.unit.removeprefix("1") if entry is not None else ""
    text = f"{value:.4g}"
    text = f"{float(text):.0f}" if "e+" in text else text
    return f"{text}{unit}" if unit.startswith("/") else f"{text} {unit}".rstrip()


def change(metric: str, ratio: float, baseline: float | None) -> str:
    """A ratio as a change in percent or, of a `baseline`, in the metric's unit, as an absolute limit states it."""
    if baseline is None:
        return percent(ratio)
    by = (ratio - 1) * baseline
    return f"{points(by)} points" if metric in SHARES else change_text(metric, by, absolute=True)


def points(change: float) -> str:
    """The change of a share in points, to a tenth, or to a hundredth below one: `-2.4`."""
    found = 100 * change
    return f"{round(found, 1 if abs(found) >= 1 else 2) + 0.0:+g}"


def compared(
    verdict: Verdict,
    measure: MetricName,
    limit: FailIf,
    relative: FailIf,
    baseline: float | None,
    alpha: float,
    more: str = MORE_CYCLES,
) -> str:
    """What a comparison found: `fell by 88.5 % (90 % interval -89.2 % to -87.7 %), the limit is -30 %`.

    `relative` is the `limit` as a fraction of the `baseline`. Each bound is one-sided at `alpha`; `more` narrows it.
    """
    if verdict.ratio is None or verdict.ci_low is None or verdict.ci_high is None:
        return verdict.reason
    per = baseline if limit.absolute else None

    def said(ratio: float) -> str:
        return change(measure.name, ratio, per)

    if abs(verdict.ratio - 1) < UNCHANGED:
        moved = "did not change"
    else:
        moved = f"{'rose' if verdict.ratio > 1 else 'fell'} by {said(verdict.ratio).lstrip('+-')}"
    shown = f"{moved} ({level(alpha)} interval {said(verdict.ci_low)} to {said(verdict.ci_high)})"
    told = f"{shown}, the limit is {change_text(limit.metric, limit.limit, absolute=limit.absolute)}"
    excluded = said(_excluded(measure, relative))
    if verdict.more_runs:
        return f"{told}: {undecided(verdict.more_runs)}{verdict.note}"
    if verdict.status == "inconclusive":
        return f"{told}: too wide to tell, to pass {excluded} must be excluded; {more}{verdict.note}"
    beyond = verdict.ci_low < 1 + relative.limit if measure.higher_is_better else verdict.ci_high > 1 + relative.limit
    return told + (f": {excluded} is excluded" if verdict.status == "pass" and beyond else "") + verdict.note


def budgeted(verdict: Verdict, budget: Budget, alpha: float, systematic: float) -> str:
    """What a budget found: `is 0.62 J (90 % interval 0.6 J to 0.64 J), the budget is <= 0.5 J`.

    `systematic` is what the bounds hold of errors that all cycles share, relative.
    """
    if verdict.ratio is None or verdict.ci_low is None or verdict.ci_high is None:
        return verdict.reason
    value, low, high = (
        in_unit(budget.metric, ratio * budget.limit) for ratio in (verdict.ratio, verdict.ci_low, verdict.ci_high)
    )
    causes = "gain, sensor and questions" if budget.metric == JOULES_PER_CORRECT else "gain and sensor"
    wider = f", widened by {100 * systematic:.1f} % for {causes}" if systematic else ""
    told = f"is {value} ({level(alpha)} interval {low} to {high}{wider}), the budget is {budget.op} "
    more = MORE.get(budget.metric, MORE_CYCLES)
    unsure = f": too wide to tell; {more}" if verdict.status == "inconclusive" else ""
    return told + in_unit(budget.metric, budget.limit) + unsure + verdict.note


def level(alpha: float) -> str:
    """What both one-sided bounds hold together."""
    return f"{significant(100 * (1 - 2 * alpha)).removesuffix('.0')} %"


def _excluded(measure: MetricName, relative: FailIf) -> float:
    """The change, as a ratio, that a pass excludes: see `gates.judge_ratio`."""
    if not measure.higher_is_better:
        return 1 + relative.limit + (relative.limit if relative.resolution is None else relative.resolution)
    limit = inverted(relative.limit)
    return 1 / (1 + limit + (limit if relative.resolution is None else relative.resolution))
