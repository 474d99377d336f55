"""Whether fewer answers are right than before: scores of the same questions on two sides, judged question by question.

`judging`, `compare` and `effects` call it. It is pure: docs/gates.md has the error rates, which
tests/benchmarks/quality_gates.py measures again after a change of method.

Method
    What is sampled are questions, so each counts once, with the difference of its mean scores over the cycles of
    either side. The bounds of the mean difference are those of the score test of non-inferiority of paired proportions
    (Tango, Statistics in Medicine 17, 1998, 891-908): at each change that is tested, the variance is that of the most
    likely distribution of the differences with this mean. His are -1, 0 and 1; here it may be any of those that were
    seen, and -1 and 1, which are the same where each question is either right or wrong in all cycles. The weights
    are those of an empirical likelihood (Owen, Biometrika 75, 1988, 237-249) on that support.

    A loss must also be more than an engine's own: where answers vary from cycle to cycle, equal runs differ as well.
    Under equal runs each cycle of a question could have been of either side. So of all ways to deal them out again, at
    most `alpha` / `NOISE` may show such a loss. The tail is bounded by Chernoff's inequality (Annals of Mathematical
    Statistics 23, 1952, 493-507), which holds for any scores and any numbers of cycles. A question that all cycles of
    one side solve and none of the other counts for much, one that flips on its own for little; for a single cycle a
    side it is a bound of the sign test. Cycles that shared a loaded engine are dealt as one, and whole runs where the
    baseline has enough to tell what those differ by.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from pytest_llem.results.gates import Status
from pytest_llem.results.statistics import RUNS_FOR_ESTIMATE

NOISE = 100
"""How much rarer than `alpha` a loss by an engine's own noise must be. Chosen: 20 experiments then alarm in 1 %."""
STEPS = 35
"""Bisections of a bound. Chosen: to 1e-10, of a difference that is at most 1."""
PRECISION = 1e-10
"""Of a tilt. Chosen: as that of a bound, far below what one question of a million weighs."""
GRID = 3
"""Decimals of a difference where its variance is sought. Chosen: many graded scores are judged in a second, and no
bound moves that a reader could see."""

Scores = Sequence[float]
"""Of one cycle, from 0 to 1, question by question."""


@dataclass(frozen=True)
class PairedVerdict:
    """What became of the mean score, as a difference from 0 to 1 with its one-sided bounds at `alpha` on either side.

    `noise` bounds how often equal runs would lose as much; `None` where that was not asked. `worse` has the numbers of
    questions, from 1, and `better` counts them; `whole` says that each was right or wrong in all cycles. `needed` is
    how many questions would decide if as many of a hundred changed; `None` where it was decided, or no number does.
    """

    status: Status
    before: float
    change: float
    low: float
    high: float
    noise: float | None
    questions: int
    worse: tuple[int, ...]
    better: int
    whole: bool
    needed: int | None


def judge_questions(
    baselines: Sequence[Sequence[Scores]],
    current: Sequence[Scores],
    limit: float,
    *,
    alpha: float = 0.05,
    resolution: float | None = None,
    correlated: bool = False,
) -> PairedVerdict:
    """Whether the mean score fell by more than `limit`, 0.01 for a point; both sides have cycles of equal questions.

    *fail*: the loss is proven to exceed the limit and, where that is no demand to improve, the engine's own noise.
    *pass*: not so, and a loss of `limit` and `resolution` (by default the limit again) is excluded. Else
    *inconclusive*. `correlated` says that the cycles of a run shared one loaded engine.
    """
    before, now = [mean_scores(run) for run in baselines], mean_scores(current)
    # Rounded, so that means of equal scores over other numbers of cycles are equal.
    differences = [round(new - old, 9) for old, new in zip(mean_scores(before), now, strict=True)]
    change, low, high = mean_difference(differences, alpha)
    level, noise, needed = fmean(mean_scores(before)), None, None
    tolerated = -limit - (limit if resolution is None else resolution)
    status: Status = "inconclusive"
    chance = None
    if change < -limit and limit >= 0:
        dealt = correlated or len(baselines) >= RUNS_FOR_ESTIMATE
        units = (before, [now]) if dealt else ([cycle for run in baselines for cycle in run], current)
        chance = chance_of_loss(*units)
    if high < -limit:
        noise = chance
        status = "fail" if noise is None or noise <= alpha / NOISE else "inconclusive"
    elif low > tolerated:
        status = "pass"
    else:
        takes = [_takes(differences, tolerated, alpha)] if change > tolerated else []
        if change < -limit:
            # The logarithm of that chance goes with the number of questions.
            by_noise = math.log(alpha / NOISE) / math.log(chance) if chance is not None and chance < 1 else 0.0
            takes.append(max(_takes(differences, -limit, alpha), len(differences) * by_noise))
        needed = math.floor(min(takes)) + 1 if takes else None
    worse = tuple(at for at, each in enumerate(differences, 1) if each < 0)
    better = sum(each > 0 for each in differences)
    whole = all(abs(each) in (0, 1) for each in differences)
    return PairedVerdict(status, level, change, low, high, noise, len(differences), worse, better, whole, needed)


def mean_difference(differences: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """The mean of differences from -1 to 1 with a one-sided bound on either side, each at level `alpha`."""
    count, mean, counts = len(differences), fmean(differences), Counter(round(each, GRID) for each in differences)
    quantile = NormalDist().inv_cdf(1 - alpha)

    def holds(tested: float) -> bool:
        return (tested - mean) ** 2 * count <= quantile**2 * _variance_at(counts, count, tested)

    return mean, _edge(holds, mean, -1.0), _edge(holds, mean, 1.0)


def _takes(differences: Sequence[float], excluded: float, alpha: float) -> float:
    """How many questions with differences as these it takes to exclude a change, at level `alpha`."""
    count, mean, counts = len(differences), fmean(differences), Counter(round(each, GRID) for each in differences)
    quantile = NormalDist().inv_cdf(1 - alpha)
    return quantile**2 * _variance_at(counts, count, excluded) / (excluded - mean) ** 2


def relative_error(before: Scores, now: Scores) -> float:
    """The standard error, by the choice of questions, of the logarithm of the ratio of two mean scores above zero.

    It is zero where no question's score changed, and that of the delta method else.
    """
    count, old, new = len(now), fmean(before), fmean(now)
    if count < 2 or [*before] == [*now]:
        return 0.0
    return math.sqrt(sum((b / new - a / old) ** 2 for a, b in zip(before, now, strict=True)) / (count * (count - 1)))


def chance_of_loss(before: Sequence[Scores], now: Sequence[Scores]) -> float:
    """A bound of the share of ways to deal each question's cycles to both sides in which `now` is as bad, or worse."""
    questions: Counter[tuple[float, ...]] = Counter()
    got = 0.0
    for scores in zip(*before, *now, strict=True):
        if min(scores) != max(scores):
            questions[tuple(sorted(scores))] += 1
            got += sum(scores[len(before) :])
    size = len(now)
    expected = sum(size * fmean(scores) * number for scores, number in questions.items())
    if got >= expected:
        return 1.0

    def bound(tilt: float) -> float:
        return tilt * got + sum(number * _log_mean(scores, size, tilt) for scores, number in questions.items())

    low, high = 0.0, 64.0  # of a score of 1: further out the bound is flat, to far below any level
    for _ in range(STEPS):  # any tilt gives a bound, and the best one gives the least
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if bound(left) < bound(right) else (left, high)
    return math.exp(min(0.0, bound((low + high) / 2)))


def _log_mean(scores: Sequence[float], size: int, tilt: float) -> float:
    """Logarithm of the mean of exp(-tilt x sum) over all choices of `size` of the scores.

    That of the elementary symmetric polynomial of their exponentials, over their number.
    """
    sums = [1.0, *[0.0] * size]
    for place, score in enumerate(scores):
        weight = math.exp(-tilt * score)
        for chosen in range(min(place + 1, size), 0, -1):
            sums[chosen] += sums[chosen - 1] * weight
    return math.log(sums[size] / math.comb(len(scores), size))


def _variance_at(counts: Counter[float], count: int, mean: float) -> float:
    """The variance of the most likely distribution on the observed values, -1 and 1 with this mean.

    Its weights are those of the observed values over 1 + tilt x (value - mean). Where no tilt moves the mean of these
    far enough, the rest of the weight lies at the end towards which they lean.
    """
    below, above = -1 - mean, 1 - mean
    if below >= 0 or above <= 0:
        return 0.0
    offsets = [(value - mean, number / count) for value, number in counts.items()]
    tilt = _tilt(offsets, -1 / above, -1 / below)
    weights = [(offset, weight / (1 + tilt * offset)) for offset, weight in offsets]
    rest = max(0.0, 1 - sum(weight for _, weight in weights))
    end = below if tilt > 0 else above
    return sum(weight * offset**2 for offset, weight in weights) + rest * end**2


def _tilt(offsets: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """The tilt at which the mean offset is zero, by Newton's steps; `low` or `high` where even that is not enough."""

    def leaning(tilt: float) -> tuple[float, float]:
        """The mean offset, which falls as the tilt grows, and how fast."""
        mean = fall = 0.0
        for offset, weight in offsets:
            scale = 1 + tilt * offset
            if scale <= 0:
                return -math.copysign(math.inf, tilt), 0.0
            mean += weight * offset / scale
            fall += weight * (offset / scale) ** 2
        return mean, fall

    tilt, (mean, fall) = 0.0, leaning(0.0)
    end = high if mean > 0 else low
    if mean * leaning(end)[0] >= 0:
        return end
    low, high = min(0.0, end), max(0.0, end)
    for _ in range(STEPS):
        following = tilt + mean / fall
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - tilt) < PRECISION:
            break
        tilt = following
        mean, fall = leaning(tilt)
        low, high = (tilt, high) if mean > 0 else (low, tilt)
    return tilt


def _edge(holds: Callable[[float], bool], inside: float, end: float) -> float:
    """How far from `inside` towards `end` a condition holds, by bisection."""
    if holds(end):
        return end
    for _ in range(STEPS):
        middle = (inside + end) / 2
        inside, end = (middle, end) if holds(middle) else (inside, middle)
    return inside


def mean_scores(cycles: Sequence[Scores]) -> list[float]:
    """The mean score of each question over cycles of the same questions."""
    return [sum(scores) / len(scores) for scores in zip(*cycles, strict=True)]
