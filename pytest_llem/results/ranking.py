"""How probable it is, of the settings that were measured, that each is truly the best in a metric.

`best` calls it for the summary and the report. It is pure. A rank by means alone hides that the next one may be as
good, and the probability of being best is not that of being better than any one other.

Method
    The logarithms of the cycles are normal about their setting's level, with one variance for all settings; levels are
    normal about their mean, with a spread that is unknown as well. The spread, over the standard error of a level, has
    a half-Cauchy prior (scale 2; A. Gelman, Bayesian Analysis 1, 2006, 515-534), the mean and the variance the usual
    flat ones. So settings that hardly differ are drawn together, and the winner of many by luck is not believed. Drawn
    from the posterior, with the stated bounds of sensor and thermal state of each setting beside it, the share of draws
    in which a setting is the best is its probability. What a run shares, and the gain of one board, cancels.

    tests/benchmarks/ranking.py compares what is said with how often it is so.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean, harmonic_mean, variance

from pytest_llem.results.statistics import K

DRAWS = 4000
"""Chosen: the share of draws is then within a point of the probability."""
MOST = 200
"""Chosen: more settings take a second and more, and few of them have a chance."""
SPREADS = [0.1 * 1.35**step for step in range(26)]
"""Of levels, in standard errors: from nothing that matters to 180, in steps that change no share by a point."""
SCALE = 2.0  # of the half-Cauchy prior, in standard errors. Chosen: vague, and bounded where settings are two
SEED = 20261130  # the same figures say the same at any time


def chances(
    settings: Sequence[Sequence[float]], bounds: Sequence[float], *, higher: bool, draws: int = DRAWS
) -> list[float] | None:
    """The probability of each setting to be the best, from its cycles' positive values.

    `bounds` are relative, k=2: what no number of cycles averages out. `None` where scatter is not known, as of single
    cycles, or with more than `MOST` settings.
    """
    degrees = sum(len(cycles) - 1 for cycles in settings)
    if not 1 < len(settings) <= MOST or not degrees or any(min(cycles, default=0.0) <= 0 for cycles in settings):
        return None
    sign = -1 if higher else 1
    logs = [[sign * math.log(value) for value in cycles] for cycles in settings]
    squares = sum((len(cycles) - 1) * variance(cycles) for cycles in logs if len(cycles) > 1)
    if squares <= 0:
        return None
    means, shares = [fmean(cycles) for cycles in logs], [1 / len(cycles) for cycles in logs]
    unit = 1 / harmonic_mean(list(map(len, logs)))
    fits = [_Fit(means, shares, spread * spread * unit) for spread in SPREADS]
    freedom = (degrees + len(means) - 1) / 2
    weights = [
        fit.size - freedom * math.log(squares + fit.squares) + math.log(spread / (1 + (spread / SCALE) ** 2))
        for fit, spread in zip(fits, SPREADS, strict=True)
    ]
    most = max(weights)
    summed = [*accumulate(math.exp(weight - most) for weight in weights)]
    rng = random.Random(SEED)
    wins = [0] * len(means)
    for _ in range(draws):
        fit = fits[min(bisect_left(summed, rng.random() * summed[-1]), len(fits) - 1)]
        deviation = math.sqrt((squares + fit.squares) / (2 * rng.gammavariate(freedom, 1)))
        centre = rng.gauss(fit.centre, deviation * fit.error)
        levels = [
            centre + kept * (mean - centre) + rng.gauss(0, math.hypot(deviation * math.sqrt(kept * share), bound / K))
            for mean, share, kept, bound in zip(means, shares, fit.kept, bounds, strict=True)
        ]
        wins[min(range(len(levels)), key=levels.__getitem__)] += 1
    return [each / draws for each in wins]


def in_percent(share: float | None) -> str:
    """A probability for a table whose head has the percent sign; its draws are good for no more."""
    if share is None:
        return "-"
    return "> 99" if share > 0.99 else "< 1" if share < 0.01 else f"{100 * share:.0f}"


class _Fit:
    """Levels under one spread between settings, variances being in units of that of a cycle."""

    def __init__(self, means: Sequence[float], shares: Sequence[float], spread: float) -> None:
        precisions = [1 / (share + spread) for share in shares]
        total = sum(precisions)
        self.kept = [spread * precision for precision in precisions]
        self.centre = sum(precision * mean for precision, mean in zip(precisions, means, strict=True)) / total
        self.error = 1 / math.sqrt(total)
        deviations = (precision * (mean - self.centre) ** 2 for precision, mean in zip(precisions, means, strict=True))
        self.squares = sum(deviations)
        self.size = (sum(map(math.log, precisions)) - math.log(total)) / 2
