"""How probable it is, of the settings that were measured, that each is truly the best in a metric.

`best` calls it for the summary and the report. It is pure. A rank by means alone hides that the next one may be as
good, and the probability of being best is not that of being better than any one other.

Method
    The logarithms of the cycles are normal about their setting's level, with a variance of its own. Variances are
    scaled inverse chi-square about a common one. Its degrees of freedom are fixed, and few: a handful of cycles would
    learn that all scatter alike where one does not, and a noisy setting that leads by luck would be called the best.
    Levels are normal about their mean, with a spread that is unknown as well, of half-Cauchy prior (A. Gelman, Bayesian
    Analysis 1, 2006, 515-534). So settings that hardly differ are drawn together, and the winner of many by luck is not
    believed. Its scale is twice the standard error of the quiet settings (by the harmonic mean of variances): levels
    are not taken to differ as widely as the noisiest one scatters. The mean and the common variance have the usual
    flat priors.

    A Gibbs sampler draws from the posterior, the half-Cauchy as a mixture of inverse gammas (E. Makalic and D. Schmidt,
    IEEE Signal Processing Letters 23, 2016, 179-182). The stated bounds of sensor and thermal state stand beside each
    level. The share of draws in which a setting is the best is its probability. What a run shares, and the gain of one
    board, cancels.

    Two cycles tell so little of a setting's scatter that no prior that was tried gave a figure that holds.

    tests/benchmarks/ranking.py compares what is said with how often it is so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean, harmonic_mean, variance

from pytest_llem.results.statistics import K

DRAWS = 3000
"""Chosen: another seed then moves a probability by a point or two."""
FEWEST = 3
"""Cycles of each setting. Chosen: see the method."""
MOST = 200
"""Chosen: more settings take two seconds and more, and few of them have a chance."""
ALIKE = 0.5
"""Degrees of freedom with which a setting scatters as the others do. Chosen: with more, or where the cycles choose
them, noisy settings of three cycles are called the best more often for their luck; fewer change nothing."""
SCALE = 2.0  # of the half-Cauchy prior, in standard errors. Chosen: vague, and bounded where settings are two
SEED = 20261130  # the same figures say the same at any time


def chances(
    settings: Sequence[Sequence[float]], bounds: Sequence[float], *, higher: bool, draws: int = DRAWS
) -> list[float] | None:
    """The probability of each setting to be the best, from its cycles' positive values.

    `bounds` are relative, k=2: what no number of cycles averages out. `None` where the scatter of a setting is not
    known, from fewer than `FEWEST` cycles or equal ones, or with more than `MOST` settings.
    """
    if not 1 < len(settings) <= MOST or any(len(each) < FEWEST or min(each) <= 0 for each in settings):
        return None
    sign = -1 if higher else 1
    # Draws fall to settings in turn: one order of them gives one answer, whoever asks.
    order = sorted(range(len(settings)), key=lambda at: (sorted(settings[at]), bounds[at]))
    logs = [[sign * math.log(value) for value in sorted(settings[at])] for at in order]
    variances = [variance(cycles) for cycles in logs]
    if min(variances) <= 0:
        return None
    model = _Model(logs, variances)
    wins = [0] * len(logs)
    biases = [bounds[at] / K for at in order]
    for draw in range(-draws // 20, draws):
        model.step()
        if draw >= 0:  # those before forget where they began
            levels = [level + model.rng.gauss(0, bias) for level, bias in zip(model.levels, biases, strict=True)]
            wins[order[min(range(len(levels)), key=levels.__getitem__)]] += 1
    return [each / draws for each in wins]


def in_percent(share: float | None) -> str:
    """A probability for a table whose head has the percent sign; its draws are good for no more."""
    if share is None:
        return "-"
    return "> 99" if share > 0.99 else "< 1" if share < 0.01 else f"{100 * share:.0f}"


class _Model:
    """One draw of all that is unknown, each given the others."""

    def __init__(self, logs: Sequence[Sequence[float]], variances: Sequence[float]) -> None:
        self.rng = random.Random(SEED)
        counts = [*map(len, logs)]
        self.cycles = [
            (fmean(cycles), count, (count - 1) * scatter, (ALIKE + count) / 2)
            for cycles, count, scatter in zip(logs, counts, variances, strict=True)
        ]
        self.levels = [mean for mean, *_ in self.cycles]
        self.centre = fmean(self.levels)
        self.common = harmonic_mean(variances)
        self.prior = harmonic_mean(counts) / (SCALE**2 * self.common)
        """The precision of the levels at the scale of their prior."""
        self.spread = variance(self.levels) + 1 / self.prior
        """The variance of the levels."""

    def step(self) -> None:
        """The next draw."""
        gauss, gamma = self.rng.gauss, self.rng.gammavariate
        alike, spread, size = ALIKE * self.common, self.spread, len(self.levels)
        errors: list[float] = []
        precision = total = shift = 0.0
        for (mean, count, squares, shape), level in zip(self.cycles, self.levels, strict=True):
            own = (alike + squares + count * (mean - level) ** 2) / (2 * gamma(shape, 1))
            errors.append(own / count)
            precision += 1 / own
            weight = 1 / (own / count + spread)
            total += weight
            shift += weight * (mean - self.centre)
        self.common = 2 * gamma(size * ALIKE / 2, 1) / (ALIKE * precision)
        self.centre += shift / total + gauss(0, 1 / math.sqrt(total))
        between = 0.0
        for at, (error, (mean, *_)) in enumerate(zip(errors, self.cycles, strict=True)):
            kept = spread / (spread + error)
            off = kept * (mean - self.centre) + gauss(0, math.sqrt(kept * error))
            between += off * off
            self.levels[at] = self.centre + off
        mixed = (self.prior + 1 / spread) / self.rng.expovariate(1)
        self.spread = (1 / mixed + between / 2) / gamma((size + 1) / 2, 1)
