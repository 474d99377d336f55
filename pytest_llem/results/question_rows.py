"""What the scores of questions come to in a gate and in a comparison: pairs, their sampling, and the row on accuracy.

`judging`, `compare` and `effects` call it. The verdicts must come from `paired_questions` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist, fmean

from pytest_llem.job.metric_names import ACCURACY, MetricName
from pytest_llem.results.gate_report import GateRow
from pytest_llem.results.gate_rows import compared_row, limit_text, not_comparable
from pytest_llem.results.gates import Verdict
from pytest_llem.results.paired_questions import (
    PairedVerdict,
    Scores,
    judge_questions,
    mean_difference,
    mean_scores,
    relative_error,
)
from pytest_llem.results.questions import accuracy_interval
from pytest_llem.results.schema import Result
from pytest_llem.results.verdict_text import MORE, MORE_CYCLES, level, points
from pytest_llem.study.limits import FailIf, change_text

Cycles = Sequence[Scores]
UNKNOWN_BELOW = 20
"""Times fewer right answers than were seen, at most, that an interval reaching down to none is taken for. Chosen: no
limit is as wide."""
SHOWN = 5
"""Lost questions that a reason names, by their numbers in `quality.scores`. Chosen: enough to look at."""
NO_SCORES = "the baseline has no scores of each question: save it again, from a run that scores its answers"


def unpaired(runs: Sequence[Cycles], now: Cycles) -> str:
    """Why the questions of the sides cannot be paired; empty where they can."""
    before = [scores for run in runs for scores in run]
    if not before:
        return NO_SCORES
    counts = sorted({len(scores) for scores in before}), sorted({len(scores) for scores in now})
    if counts[0] == counts[1] and len(counts[0]) == 1:
        return ""
    return f"questions: {' -> '.join(', '.join(map(str, side)) for side in counts)} of them"


def scores_of(results: Sequence[Result]) -> Cycles:
    """The scores of each cycle that has some."""
    return [result.quality.scores for result in results if result.quality and result.quality.scores]


def sampling_rel(measure: MetricName, before: Cycles, now: Cycles, *, alpha: float) -> float:
    """The standard error by the choice of questions of a ratio in a metric of right answers; 0 of other metrics.

    It is that of the delta method, and at least what the bounds of the score test at `alpha` come to: where few of few
    questions changed, or none, the scatter of those says too little of others. Questions that cannot be paired are two
    samples, each with its exact interval.
    """
    if not measure.quality or not before or not now:
        return 0.0
    old, new = mean_scores(before), mean_scores(now)
    if not any(old) or not any(new):
        return 0.0
    if unpaired([before], now):
        return math.hypot(*(_as_error(fmean(side), alpha, *_exact(side, alpha)) for side in (old, new)))
    mean, _, low, high = changed_mean([before], now, alpha)
    after = fmean(new)
    least = min(mean, after)
    longer = max(high - (after - mean), after - mean - low)
    return max(relative_error(old, new), _as_error(least, alpha, least - longer, least))


def _exact(side: Scores, alpha: float) -> tuple[float, float]:
    return accuracy_interval(fmean(side), len(side), 1 - 2 * alpha)


def _as_error(mean: float, alpha: float, low: float, high: float) -> float:
    """The standard error of the logarithm of a mean whose normal interval has the longer of both sides."""
    lowest = max(low, mean / UNKNOWN_BELOW)
    return max(math.log(mean / lowest), math.log(high / mean)) / NormalDist().inv_cdf(1 - alpha)


def narrowing(verdict: Verdict, questions_rel: float, alpha: float) -> str:
    """What narrows a ratio's bounds most: more cycles, or questions where their choice is over half of the variance."""
    if verdict.ci_low is None or verdict.ci_high is None or not verdict.ci_low > 0:
        return MORE_CYCLES
    half = math.log(verdict.ci_high / verdict.ci_low) / 2
    by_questions = NormalDist().inv_cdf(1 - alpha) * questions_rel
    return f"{MORE[ACCURACY]}, on both sides" if 2 * by_questions**2 > half**2 else MORE_CYCLES


def changed_mean(runs: Sequence[Cycles], now: Cycles, alpha: float) -> tuple[float, float, float, float]:
    """The mean score before, and its change with a one-sided bound on either side, of sides that can be paired."""
    before = mean_scores([mean_scores(run) for run in runs])
    changes = [new - old for old, new in zip(before, mean_scores(now), strict=True)]
    return fmean(before), *mean_difference(changes, alpha)


def accuracy_row(
    limit: FailIf,
    runs: Sequence[Cycles],
    now: Cycles,
    alpha: float,
    *,
    correlated: bool = False,
    lost: Sequence[str] = (),
) -> GateRow:
    """The row of a limit on the share of right answers, judged question by question."""
    runs = [run for run in runs if run]
    if problem := unpaired(runs, now):
        return not_comparable(limit, problem)
    found = judge_questions(runs, now, -limit.limit, alpha=alpha, resolution=limit.resolution, correlated=correlated)
    before = found.before
    bounds = (found.change, found.low, found.high)
    ratio, low, high = ((before + each) / before if before else None for each in bounds)
    verdict = Verdict(found.status, ratio, low, high, _told(found, limit, alpha, correlated))
    return replace(
        compared_row(limit, verdict, lost, before, before + found.change),
        limit_ratio=1 + limit.limit / before if before else None,
        baseline_runs=len(runs),
        basis=f"each question is paired with itself: the interval is that of {found.questions} other ones like them",
    )


def _told(found: PairedVerdict, limit: FailIf, alpha: float, shared: bool) -> str:
    """`fell by 2.4 points (90 % interval -4 to -1.1 points) on 500 questions: 15 lost, 3 gained; the limit is ...`."""
    moved = f"{'rose' if found.change > 0 else 'fell'} by {points(found.change).lstrip('+-')} points"
    moved = moved if found.change else "did not change"
    shown = f"{moved} ({level(alpha)} interval {points(found.low)} to {points(found.high)} points)"
    worse, better = ("lost", "gained") if found.whole else ("worse", "better")
    count = len(found.worse)
    flips = f"{count} {worse}, {found.better} {better}" if count + found.better else "none changed"
    asked = f"{found.questions} question{'s' * (found.questions != 1)}"
    told = f"{shown} on {asked}: {flips}; the limit is {limit_text(limit)}"
    beyond = limit.limit - (abs(limit.limit) if limit.resolution is None else limit.resolution)
    excluded = change_text(limit.metric, beyond, absolute=True)
    if found.status == "pass":
        return told + (f": {excluded} is excluded" if found.low < limit.limit else "")
    if found.status == "fail":
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        return f"{told}; {worse}: questions {', '.join(map(str, found.worse[:SHOWN]))}{more}"
    if found.noise is not None:
        chance = f"{told}, but up to {100 * found.noise:.2g} % of equal runs may lose as much by their own noise"
        more = (
            "a loaded engine that all cycles share shows none (isolation: process)" if shared else "measure more cycles"
        )
        return f"{chance}: {more}"
    return f"{told}: too wide to tell, to pass {excluded} must be excluded; {_more(found.needed)}"


def _more(needed: int | None) -> str:
    """`ask more questions, on both sides: about 140 would do, if the same share of them changes`, rounded up."""
    if needed is None:
        return MORE[ACCURACY]
    unit = 10 ** max(0, len(str(needed)) - 2)
    about = -(-needed // unit) * unit
    return f"{MORE[ACCURACY]}, on both sides: about {about:,} would do, if the same share of them changes"
