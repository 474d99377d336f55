"""What one metric's values come to in a gate: the verdict on a change, why there is none, and the row that says so.

`judging` makes the rows of an experiment of them; `aa` judges changes by it, and `compare` reads values as it does. The
verdicts must come from `gates` alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean, geometric_mean
from typing import Any

from pytest_llem.job.condition_names import ESTIMATED_ENERGY
from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT, SLO_MET_SHARE
from pytest_llem.results.gate_report import UNUSED, GateRow, RunOfBaseline
from pytest_llem.results.gates import MIN_CYCLES, Status, Verdict, inverted, judge_pairs, judge_runs, unjudged
from pytest_llem.results.measured_cycles import MeasuredCycles
from pytest_llem.results.metrics import NOT_MEASURED, Metric, is_energy, metric
from pytest_llem.results.statistics import BETWEEN_RUNS, RUNS_FOR_ESTIMATE, UNKNOWN, RunSpread, first_autocorrelation
from pytest_llem.study.limits import FailIf, change_text


def since(runs: Sequence[RunOfBaseline]) -> str:
    """Runs of a history, from old to new: `14 runs of the history since 2026-11-01, commit 4f2a91c`."""
    first = runs[0]
    commit = f", commit {first.commit[:7]}" if first.commit else ""
    return f"{len(runs)} run{'s' * (len(runs) > 1)} of the history since {(first.started_at or '?')[:10]}{commit}"


def basis(runs: int, spread: RunSpread | None = None, named: str = "") -> str:
    """What a comparison with so many baseline runs, `named` so, can and cannot decide."""
    named = named or f"{runs} baseline run{'s' * (runs > 1)}"
    if spread is not None:
        return (
            f"equal runs were measured to differ by {100 * math.sqrt(spread.variance):.1f} %, which the bounds include"
        )
    if runs >= RUNS_FOR_ESTIMATE:
        return f"{named}: how much runs differ is estimated from them, and the bounds include it"
    return (
        f"{named}: a change is told from the noise of cycles, but not from what a whole "
        f"run shares (temperature, clocks, the machine): {100 * BETWEEN_RUNS:g} % is assumed for it, not measured, and "
        f"only what exceeds noise of {100 * UNKNOWN.between:g} % fails"
    )


def autocorrelation(runs: Sequence[Sequence[float]]) -> float | None:
    """That of successive cycles, over the runs that have enough of them; `None` where none has."""
    long = [[math.log(value) for value in run] for run in runs if len(run) >= MIN_CYCLES and min(run) > 0]
    return first_autocorrelation(long) if long else None


def judge_change(
    measure: Metric,
    limit: FailIf,
    runs: Sequence[Sequence[float]],
    values: Sequence[float],
    alpha: float,
    *,
    correlated: bool = False,
    spread: RunSpread | None = None,
    paired: bool = False,
    questions_rel: float = 0.0,
) -> Verdict:
    """`judge_runs` for a relative limit, with its doubt; where higher is better, both sides and the ratio are inverted.

    `paired`: `judge_pairs` of the only run.
    """

    inverse = measure.higher_is_better and all(value > 0 for run in (*runs, values) for value in run)

    def judge(before: Sequence[Sequence[float]], now: Sequence[float], change: float) -> Verdict:
        stated: Any = {"alpha": alpha, "resolution": limit.resolution, "questions_rel": questions_rel}
        if paired:
            return judge_pairs(before[0], now, change, **stated)
        return judge_runs(before, now, change, correlated=correlated, spread=spread, doubt=True, **stated)

    if not inverse:
        return judge(runs, values, limit.limit)
    inverses = [[1 / value for value in run] for run in runs]
    verdict = judge(inverses, [1 / value for value in values], inverted(limit.limit))
    if verdict.ratio is None or verdict.ci_low is None or verdict.ci_high is None:
        return verdict
    return replace(verdict, ratio=1 / verdict.ratio, ci_low=1 / verdict.ci_high, ci_high=1 / verdict.ci_low)


def why_not_estimates(measure: Metric, sides: Iterable[MeasuredCycles | None], allow: Collection[str]) -> str:
    """Why energy that no sensor measured is not judged; empty where all was measured, or a study wants it judged."""
    estimates = [side.estimated_by for side in sides if side is not None and side.estimated_by is not None]
    if not estimates or not is_energy(measure.name) or ESTIMATED_ENERGY in allow:
        return ""
    why = f"energy is estimated by the meter {estimates[0]}, not measured: a sensor decides it"
    return f"{why}, or compare: {{allow: [{ESTIMATED_ENERGY}]}}"


def used_values(measure: Metric, now: MeasuredCycles | None, lost: Sequence[str]) -> tuple[list[float], str, list[str]]:
    """The metric's values, why there are none, and the cycles lost: those before, and those that lack the metric."""
    if now is None:
        return [], "", [*lost]
    values = now.values(measure)
    if not values:
        return values, now.why(measure), [*lost]
    without = [name for name, value in zip(now.names, now.read(measure), strict=False) if value is None]
    lacking = [f"{name} without {measure.name}" for name in without]
    why = now.why(measure) if without else NOT_MEASURED
    if why != NOT_MEASURED:
        lacking[-1] += f" ({why})"
    return values, "", [*lost, *lacking]


def unless_more(verdict: Verdict, doubtful: str, measure: Metric, side: MeasuredCycles | None) -> Verdict:
    """The verdict, unless it is the one that would be doubtful if a figure that is at least so much were more."""
    more = side.at_least(measure) if side is not None else ()
    if not more or verdict.status != doubtful:
        return verdict
    return unjudged(f"the load may be larger in {', '.join(more)}, whose search has no upper end: raise its high")


def none_good(measure: Metric, now: MeasuredCycles | None) -> Verdict | None:
    """The verdict where cycles had no good request or right answer: it is 0, or joules for one are beyond any number.

    No ratio holds that: where it is so in all cycles it is worse than any limit, and in some it is not decided.
    """
    if now is None or not (measure.slo or measure.name == JOULES_PER_CORRECT):
        return None
    good, share = ("request was good", SLO_MET_SHARE) if measure.slo else ("answer was right", ACCURACY)
    each = zip(now.names, now.read(measure), now.read(metric(share)), strict=False)
    without = [name for name, value, share in each if share == 0 and not value]
    if not without:
        return None
    status: Status = "fail" if len(without) == len(now.names) else "inconclusive"
    return unjudged(f"no {good} in {', '.join(without)}", status)


def gate_row(
    name: str,
    kind: str,
    limit: str,
    verdict: Verdict,
    lost: Sequence[str] = (),
    baseline: float | None = None,
    current: float | None = None,
) -> GateRow:
    """A row without what only some have; `lost` are the cycles that the verdict is not of, with what became of each."""
    without = f"{UNUSED}: {', '.join(lost)})" if lost else ""
    return GateRow(
        metric=name,
        kind=kind,
        status=verdict.status,
        limit=limit,
        baseline=baseline,
        current=current,
        ratio=verdict.ratio,
        ci_low=verdict.ci_low,
        ci_high=verdict.ci_high,
        reason=verdict.reason + without,
        more_runs=verdict.more_runs,
    )


def compared_row(
    limit: FailIf,
    verdict: Verdict,
    lost: Sequence[str] = (),
    baseline: float | None = None,
    current: float | None = None,
) -> GateRow:
    """The row of a limit on a change."""
    return gate_row(limit.metric, "comparison", limit_text(limit), verdict, lost, baseline, current)


def not_comparable(limit: FailIf, reason: str) -> GateRow:
    """The row of a limit whose sides must not be compared, for this reason."""
    return compared_row(limit, unjudged(reason, "not_comparable"))


def centre(values: Sequence[float]) -> float | None:
    """The geometric mean; `None` without values, or where one has no logarithm."""
    return geometric_mean(values) if values and min(values) > 0 else None


def middle(measure: Metric, values: Sequence[float]) -> float | None:
    """The mean of cycles that a reader is shown: geometric, and plain of right answers, which may be none."""
    return (fmean(values) if values else None) if measure.name == ACCURACY else centre(values)


def limit_text(limit: FailIf) -> str:
    """A limit as it is written: `+5 %`, `+0.05 s`."""
    return change_text(limit.metric, limit.limit, absolute=limit.absolute)
