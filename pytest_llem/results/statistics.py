"""The statistics behind gates: one-sided bounds for the ratio of two small samples, and for one sample.

`gates`, `judging`, `gate_power`, `compare` and the report call it. A change of method moves verdicts: see the end.

Method
    Energy per token and throughput are positive, their noise is multiplicative and skewed to the right, and a gate's
    question is relative. So the logarithms of the values are compared: the difference of two means of logarithms is
    the logarithm of the ratio of geometric means, and its errors are closer to normal than those of the values
    (Bland and Altman, "Transforming data" and "The use of transformation when comparing two means", BMJ 312, 1996).
    The bound is Student's t with the variance pooled over all runs, because both sides measure the same work in the
    same way. With 3 to 10 cycles a side no distribution-free method has the same power (with five cycles a side, the
    exact rank test is one step above its smallest possible bound).

Drift
    The cycles of a run drift alike: the first is cold, later ones are warm. If every run has the same number of
    cycles, at least five, one common linear trend over the cycle number is removed where that lowers the estimated
    variance despite the degree of freedom that it costs (analysis of covariance with the cycle as covariate;
    Montgomery, "Design and Analysis of Experiments", chapter 15; the criterion is Theil's adjusted R squared). The
    ratio does not change, because the design is balanced; in simulation the bounds keep their level alpha.

Between runs
    The cycles of one run also share temperature, clocks and the state of the node, so that their spread understates
    the difference from another run. With one or two baseline runs, the half width is at least that of a standard error
    of `BETWEEN_RUNS` (1 %) of the ratio. With three or more, the variance of the runs' means is estimated. The estimate
    is shrunk (empirical Bayes; Smyth, Statistical Applications in Genetics and Molecular Biology 3(1), 2004) towards
    the variance implied by the 1 % floor and the within-run spread, with the weight of `PRIOR_RUNS` pseudo-runs: three
    runs alone leave two degrees of freedom. The sum of the parts has Satterthwaite's degrees of freedom (Biometrics
    Bulletin 2, 1946).

Rates of false alarms, undecided gates and detected regressions are in docs/gates.md, measured by
tests/benchmarks/gate_error_rates.py, to be run again after a change of method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, stdev

BETWEEN_RUNS = 0.01
"""Assumed relative standard error of a ratio between runs. Chosen: docs/gates.md has the error rates where runs differ
by half, by as much and by twice as much."""
RUNS_FOR_ESTIMATE = 3
"""Chosen: two runs have one degree of freedom between them, too few to replace the assumed value."""
PRIOR_RUNS = 4
"""Weight of the assumed variance, in runs. Chosen: three baseline runs then have six degrees of freedom, not two."""
CYCLES_FOR_TREND = 5
"""Chosen: a trend costs a degree of freedom, which runs of three or four cycles cannot spare."""


@dataclass(frozen=True)
class LogInterval:
    """An estimate on the logarithmic scale, and the distance of the one-sided bound on either side."""

    centre: float
    half_width: float

    @property
    def low(self) -> float:
        """The lower bound, as a ratio or in the metric's unit."""
        return math.exp(self.centre - self.half_width)

    @property
    def high(self) -> float:
        """The upper bound, as a ratio or in the metric's unit."""
        return math.exp(self.centre + self.half_width)

    @property
    def value(self) -> float:
        """The estimate, as a ratio or in the metric's unit."""
        return math.exp(self.centre)


def ratio_interval(
    baselines: Sequence[Sequence[float]], current: Sequence[float], alpha: float, *, correlated: bool = False
) -> LogInterval:
    """One-sided bounds for the geometric mean of `current` over that of the baseline runs, each at level `alpha`.

    Values are positive, and at least one run has two. With `correlated` cycles, which shared one loaded engine, a run
    counts as a single cycle (design effect of the full intra-class correlation; Kish, "Survey Sampling", 5.4).
    """
    runs = [[math.log(value) for value in run] for run in (*baselines, current)]
    means = [fmean(run) for run in runs]
    counts = [1 if correlated else len(run) for run in runs]
    within = within_runs(runs)
    if len(baselines) >= RUNS_FOR_ESTIMATE:
        centre = means[-1] - fmean(means[:-1])
        return LogInterval(centre, _half_width(_between_runs(means[:-1], counts, within), alpha))
    total = sum(counts[:-1])
    centre = means[-1] - sum(mean * count for mean, count in zip(means[:-1], counts[:-1], strict=True)) / total
    half_width = _half_width([(within[0] * (1 / counts[-1] + 1 / total), within[1])], alpha)
    return LogInterval(centre, max(half_width, NormalDist().inv_cdf(1 - alpha) * BETWEEN_RUNS))


def _between_runs(
    means: Sequence[float], counts: Sequence[int], within: tuple[float, float]
) -> list[tuple[float, float]]:
    """Variance of a new run's mean against the mean of the baseline runs' means, in parts with their degrees."""
    variance, degrees = within
    harmonic = fmean([1 / count for count in counts[:-1]])
    expected = BETWEEN_RUNS**2 / 2 + variance * harmonic
    freedom = PRIOR_RUNS + len(means) - 1
    spread = (PRIOR_RUNS * expected + (len(means) - 1) * _variance(means)) / freedom
    # A new run varies as the baseline runs do, and more if it has fewer cycles than they.
    shorter = max(0.0, 1 / counts[-1] - harmonic)
    return [(spread * (1 + 1 / len(means)), freedom), (variance * shorter, degrees)]


def mean_interval(values: Sequence[float], alpha: float) -> LogInterval:
    """One-sided bounds for the geometric mean of one run, each at level `alpha`.

    The half width is at least one run's share of `BETWEEN_RUNS`, because other runs will be judged by the bound.
    """
    logs = [math.log(value) for value in values]
    half_width = _half_width([(_variance(logs) / len(logs), len(logs) - 1)], alpha)
    floor = NormalDist().inv_cdf(1 - alpha) * BETWEEN_RUNS / math.sqrt(2)
    return LogInterval(fmean(logs), max(half_width, floor))


def within_runs(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Variance of logarithms pooled over runs, less a common trend where that lowers it; and its degrees of freedom."""
    residuals = [[value - mean for value in run] for run in runs for mean in (fmean(run),)]
    squares = sum(value * value for run in residuals for value in run)
    degrees = sum(len(run) - 1 for run in runs)
    length = len(runs[0])
    if length >= CYCLES_FOR_TREND and all(len(run) == length for run in runs):
        offsets = [cycle - (length - 1) / 2 for cycle in range(length)]
        leverage = len(runs) * sum(offset * offset for offset in offsets)
        slope = sum(offset * value for run in residuals for offset, value in zip(offsets, run, strict=True)) / leverage
        remaining = max(0.0, squares - slope * slope * leverage)
        if remaining / (degrees - 1) < squares / degrees:
            return remaining / (degrees - 1), degrees - 1
    return squares / degrees, degrees


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _half_width(parts: Sequence[tuple[float, float]], alpha: float) -> float:
    """Half width for a sum of variances with their degrees of freedom; the sum has Satterthwaite's."""
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return 0.0
    freedom = total * total / sum(variance * variance / degrees for variance, degrees in parts)
    freedom = max(freedom, min(degrees for _, degrees in parts))
    return student_quantile(1 - alpha, freedom) * math.sqrt(total)


CONFIDENCE = 0.95
"""Two-sided level of the interval that `target_ci` bounds. Chosen: the field's convention."""
LEAST_CYCLES = 3
"""Below three values the spread itself is hardly known: Student's t with one degree of freedom is 12.7 at 95 %."""


def relative_half_width(values: Sequence[float]) -> float | None:
    """Half width of the two-sided 95 % interval of the geometric mean, relative to it: 0.02 is 2 %.

    Student's t on the logarithms, as in the gates; `None` below three cycles or for values without a logarithm. It
    holds for this run alone: the cycles of one run share temperature, clocks and node state.
    """
    if len(values) < LEAST_CYCLES or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    quantile = student_quantile(1 - (1 - CONFIDENCE) / 2, len(logs) - 1)
    return math.expm1(quantile * stdev(logs) / math.sqrt(len(logs)))


@lru_cache(maxsize=1024)
def student_quantile(share: float, degrees: float) -> float:
    """The `share` quantile (above one half) of Student's t, by bisection; `degrees` need not be whole."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, degrees: float) -> float:
    """Student's distribution function for t >= 0, through the incomplete beta function (DLMF 8.17.22, Lentz)."""
    return 1 - _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1 - front * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    value = c = 1.0
    d = 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return value
