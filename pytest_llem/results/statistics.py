"""The statistics behind gates: one-sided bounds for the ratio of two small samples, and for one sample.

`gates`, `judging`, `gate_power`, `compare`, `effects` and the report call it. A change of method moves verdicts: see
the end.

Method
    Energy per token and throughput are positive, their noise is multiplicative and skewed to the right, and a gate's
    question is relative. So the logarithms of the values are compared: the difference of two means of logarithms is
    the logarithm of the ratio of geometric means, and its errors are closer to normal than those of the values
    (Bland and Altman, "Transforming data" and "The use of transformation when comparing two means", BMJ 312, 1996).
    The bound is Student's t. Where both sides have as many cycles, the variance is pooled over all runs, because both
    measure the same work in the same way; otherwise each side keeps its own variance (Welch, Biometrika 34, 1947, with
    Satterthwaite's degrees of freedom), because pooling then fails where the smaller side is the noisier one. With 3 to
    10 cycles a side no distribution-free method has the same power (with five cycles a side, the exact rank test is one
    step above its smallest possible bound).

Autocorrelation
    Cycles are taken for independent. From `CYCLES_FOR_AUTOCORRELATION` a run on, that is checked: where the first
    autocorrelation of the residuals exceeds its standard error, the variance is that of a first-order autoregression
    (Bayley and Hammersley, Supplement to the JRSS 8, 1946). Shorter runs cannot tell: there it is a condition, and
    `run_verdict` checks it over all experiments of a run.

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
    runs alone leave two degrees of freedom. A measured `RunSpread` takes the place of the assumed 1 %. The sum of the
    parts has Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946).

    One or two runs do not tell whether 1 % is enough. A gate that knows no better therefore fails only where it would
    as well if equal runs were known to differ by `UNKNOWN` (2 %): the bound at alpha lies beyond the limit, and the one
    at `EQUAL_RUNS_ALARM` beyond no change at all (`beyond_unknown`).

Systematic errors
    A board's gain and a sensor's error do not shrink with the number of cycles. They cancel in a ratio of one board's
    energies, and are added to the bounds of a budget.

Rates of false alarms, undecided gates and detected regressions are in docs/gates.md, measured by
tests/benchmarks/gate_error_rates.py, to be run again after a change of method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import mul
from statistics import NormalDist, fmean, stdev

from pytest_llem.results.distributions import student_quantile

BETWEEN_RUNS = 0.01
"""Assumed relative standard error of a ratio between runs. Chosen: docs/gates.md has the error rates where runs differ
by half, by as much and by twice as much."""
EXPERIMENTS = 20
"""Chosen: the size of study whose false alarms are promised."""
EQUAL_RUNS_ALARM = 0.01 / EXPERIMENTS / 2
"""Error rate of a gate that does not know the noise between runs, at `UNKNOWN`: 1 % of studies of 20 experiments. Half
of it, because Satterthwaite's degrees are an approximation, and so far out three cycles alarm half as often again."""
RUNS_FOR_ESTIMATE = 3
"""Chosen: two runs have one degree of freedom between them, too few to replace the assumed value."""
PRIOR_RUNS = 4
"""Weight of the assumed variance, in runs. Chosen: three baseline runs then have six degrees of freedom, not two."""
CYCLES_FOR_TREND = 5
"""Chosen: a trend costs a degree of freedom, which runs of three or four cycles cannot spare."""


CYCLES_FOR_AUTOCORRELATION = 10
"""Chosen: with five cycles a side the check costs five points of power and finds a third of what it looks for."""
SERIAL_BIAS = 1.4
"""Factor on an estimated autocorrelation. Chosen: at 10 to 20 cycles estimates of 0.3 to 0.6 come out a third low."""
MAX_AUTOCORRELATION = 0.9
"""Chosen: beyond it the variance of a mean of ten grows past any use, and the estimate is no better."""


@dataclass(frozen=True)
class LogInterval:
    """An estimate on the logarithmic scale, and the distance of the one-sided bound on either side.

    `autocorrelation` is that of successive cycles where it was found and the bounds are wider for it.
    """

    centre: float
    half_width: float
    autocorrelation: float | None = None

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

    def widened(self, error: float, alpha: float) -> LogInterval:
        """The same with a further independent, normal standard error: half widths in quadrature.

        That covers at least as often as each part by itself (Banerjee, Sankhya 22, 1960, 357-358).
        """
        half = math.hypot(self.half_width, NormalDist().inv_cdf(1 - alpha) * error)
        return replace(self, half_width=half)


@dataclass(frozen=True)
class RunSpread:
    """Measured relative standard deviations of a run's level, with their degrees of freedom.

    `common` is shared by all experiments of a run, `between` is each experiment's own.
    """

    common: float
    between: float
    degrees: float

    @property
    def variance(self) -> float:
        """Variance of the logarithm of one experiment's level in one run."""
        return self.common**2 + self.between**2


UNKNOWN = RunSpread(0.0, 0.02, degrees=1000)
"""What equal runs may differ by while that is not known. Chosen: twice the assumed value; gates that alarm at it would
not be trusted. The degrees of freedom stand for as many as one likes."""


def ratio_interval(
    baselines: Sequence[Sequence[float]],
    current: Sequence[float],
    alpha: float,
    *,
    correlated: bool = False,
    spread: RunSpread | None = None,
    between_runs: float = BETWEEN_RUNS,
) -> LogInterval:
    """One-sided bounds for the geometric mean of `current` over that of the baseline runs, each at level `alpha`.

    Values are positive, and each run has two or more. With `correlated` cycles, which shared one loaded engine, a run
    counts as a single cycle (design effect of the full intra-class correlation; Kish, "Survey Sampling", 5.4).
    `spread` is what equal runs were found to differ by; without it, `between_runs` is the relative standard error of a
    ratio that is assumed.
    """
    runs = [[math.log(value) for value in run] for run in (*baselines, current)]
    means = [fmean(run) for run in runs]
    counts = [1 if correlated else len(run) for run in runs]
    scatter = _Scatter.of(runs, correlated=correlated)
    before, now = scatter.variance(slice(-1)), scatter.variance(slice(-1, None))
    if len(baselines) >= RUNS_FOR_ESTIMATE:
        centre = means[-1] - fmean(means[:-1])
        known = (spread.variance, spread.degrees) if spread is not None else (between_runs**2 / 2, PRIOR_RUNS)
        parts = _between_runs(means[:-1], counts, before, now, known)
        return LogInterval(centre, half_width(parts, alpha), scatter.autocorrelation)
    total = sum(counts[:-1])
    centre = means[-1] - sum(mean * count for mean, count in zip(means[:-1], counts[:-1], strict=True)) / total
    if sum(map(len, runs[:-1])) == len(runs[-1]):
        variance, degrees = scatter.variance(slice(None))
        parts = [(variance * (1 / counts[-1] + 1 / total), degrees)]
    else:
        parts = [(before[0] / total, before[1]), (now[0] / counts[-1], now[1])]
    if spread is not None:
        parts.append((spread.variance * (1 + 1 / len(baselines)), spread.degrees))
        return LogInterval(centre, half_width(parts, alpha), scatter.autocorrelation)
    least = NormalDist().inv_cdf(1 - alpha) * between_runs
    return LogInterval(centre, max(half_width(parts, alpha), least), scatter.autocorrelation)


def beyond_unknown(
    baselines: Sequence[Sequence[float]],
    current: Sequence[float],
    limit: float,
    alpha: float,
    *,
    correlated: bool = False,
    questions_rel: float = 0.0,
) -> bool:
    """Whether a change exceeds the limit, and equal runs, even if these differed by `UNKNOWN`.

    A `limit` below zero asks for an improvement, which equal runs lack: there the limit alone is to be exceeded.
    """

    def low(level: float) -> float:
        interval = ratio_interval(baselines, current, level, correlated=correlated, spread=UNKNOWN)
        return interval.widened(questions_rel, level).low

    return low(alpha) > 1 + limit and low(EQUAL_RUNS_ALARM) > 1 + min(limit, 0.0)


def log_ratio(before: Sequence[float], now: Sequence[float], *, correlated: bool = False) -> tuple[float, float, float]:
    """The logarithm of the ratio of two geometric means of one run, its variance and its degrees of freedom.

    What a whole run shares cancels, and nothing is assumed for it. One side has two cycles or more; where the other has
    one, it is taken to scatter alike. `correlated` is as in `ratio_interval`.
    """
    runs = [[math.log(value) for value in side] for side in (before, now)]
    counts = [1 if correlated else len(side) for side in runs]
    scatter = _Scatter.of(runs, correlated=correlated)
    centre = fmean(runs[1]) - fmean(runs[0])
    if len(before) == len(now) or min(len(before), len(now)) == 1:
        variance, degrees = scatter.variance(slice(None))
        return centre, variance * sum(1 / count for count in counts), degrees
    each = (scatter.variance(slice(1)), scatter.variance(slice(1, None)))
    parts = [(variance / count, degrees) for (variance, degrees), count in zip(each, counts, strict=True)]
    return centre, *summed(parts)


def paired_interval(baseline: Sequence[float], current: Sequence[float], alpha: float) -> LogInterval:
    """One-sided bounds for the geometric mean of the pairs' ratios, each at level `alpha`: Student's t for pairs.

    Both sides are positive and of one length, at least two.
    """
    logs = [math.log(now / before) for before, now in zip(baseline, current, strict=True)]
    scatter = _Scatter.of([logs], trend=False)
    variance, degrees = scatter.variance(slice(None))
    return LogInterval(fmean(logs), half_width([(variance / len(logs), degrees)], alpha), scatter.autocorrelation)


def _between_runs(
    means: Sequence[float],
    counts: Sequence[int],
    before: tuple[float, float],
    now: tuple[float, float],
    known: tuple[float, float],
) -> list[tuple[float, float]]:
    """Variance of a new run's mean against the mean of the baseline runs' means, in parts with their degrees.

    `known` is the variance between runs that the estimate is shrunk towards, with its weight.
    """
    explained = before[0] * fmean([1 / count for count in counts[:-1]])
    level, weight = known
    freedom = weight + len(means) - 1
    spread = (weight * (level + explained) + (len(means) - 1) * _variance(means)) / freedom
    # A new run varies as the baseline runs do, and more if it has fewer or noisier cycles than they.
    excess = max(0.0, now[0] / counts[-1] - explained)
    return [(spread * (1 + 1 / len(means)), freedom), (excess, now[1])]


def mean_interval(
    values: Sequence[float], alpha: float, *, correlated: bool = False, systematic: float = 0.0
) -> LogInterval:
    """One-sided bounds for the geometric mean of one run, each at level `alpha`, and beyond it by `systematic`.

    The half width is at least one run's share of `BETWEEN_RUNS`, because other runs will be judged by the bound.
    `systematic` is the relative bound of errors that all cycles share; `correlated` is as in `ratio_interval`.
    """
    logs = [math.log(value) for value in values]
    scatter = _Scatter.of([logs], trend=False, correlated=correlated)
    variance, degrees = scatter.variance(slice(None))
    bound = half_width([(variance / (1 if correlated else len(logs)), degrees)], alpha)
    least = NormalDist().inv_cdf(1 - alpha) * BETWEEN_RUNS / math.sqrt(2)
    return LogInterval(fmean(logs), max(bound, least) + math.log1p(systematic), scatter.autocorrelation)


def variance_of_mean(values: Sequence[float], *, correlated: bool = False) -> tuple[float, float]:
    """Variance of the arithmetic mean of two values or more, and its degrees of freedom; `correlated` as above.

    From ten cycles on it is larger where these follow one another, as in gates.
    """
    variance, degrees = _Scatter.of([values], trend=False, correlated=correlated).variance(slice(None))
    return variance / (1 if correlated else len(values)), degrees


def within_runs(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Variance of logarithms pooled over runs, less a common trend where that lowers it; and its degrees of freedom."""
    return _Scatter.of(runs, correlated=True).variance(slice(None))


def first_autocorrelation(runs: Sequence[Sequence[float]]) -> float:
    """The correlation of successive logarithms about their run's mean (and a common trend), less its bias.

    Estimating a mean makes that of n independent values -1/n (Marriott and Pope, Biometrika 41, 1954).
    """
    residuals, degrees = _residuals(runs)
    squares = sum(value * value for run in residuals for value in run)
    products = sum(value * after for run in residuals for value, after in pairwise(run))
    size = sum(map(len, runs))
    return products / squares + (size - degrees) / size if squares > 0 else 0.0


def _residuals(runs: Sequence[Sequence[float]], *, trend: bool = True) -> tuple[list[list[float]], float]:
    """Each run about its mean, less a common trend where that lowers the variance; and the degrees of freedom left."""
    residuals = [[value - mean for value in run] for run in runs for mean in (fmean(run),)]
    degrees, length = sum(map(len, runs)) - len(runs), len(runs[0])
    if trend and length >= CYCLES_FOR_TREND and all(len(run) == length for run in runs):
        offsets = [cycle - (length - 1) / 2 for cycle in range(length)]
        leverage = len(runs) * sum(offset * offset for offset in offsets)
        slope = sum(sum(map(mul, offsets, run)) for run in residuals) / leverage
        squares = sum(value * value for run in residuals for value in run)
        if (squares - slope * slope * leverage) / (degrees - 1) < squares / degrees:
            straight = [[value - slope * at for at, value in zip(offsets, run, strict=True)] for run in residuals]
            return straight, degrees - 1
    return residuals, degrees


@dataclass(frozen=True)
class _Scatter:
    """The cycles of each run about its mean: sums of squares, degrees of freedom, and what autocorrelation adds."""

    squares: tuple[float, ...]
    degrees: tuple[float, ...]
    inflation: float = 1.0
    autocorrelation: float | None = None

    @classmethod
    def of(cls, runs: Sequence[Sequence[float]], *, trend: bool = True, correlated: bool = False) -> _Scatter:
        """Of logarithms, less a common trend where that lowers the variance; `correlated` ones are not checked."""
        residuals, left = _residuals(runs, trend=trend)
        squares = tuple(sum(value * value for value in run) for run in residuals)
        whole = sum(map(len, runs)) - len(runs)
        degrees = tuple((len(run) - 1) * left / whole for run in runs)
        size = sum(map(len, runs)) / len(runs)
        if size < CYCLES_FOR_AUTOCORRELATION or correlated:
            return cls(squares, degrees)
        found = first_autocorrelation(runs)
        if found <= 1 / math.sqrt(size * len(runs)):
            return cls(squares, degrees)
        found = min(SERIAL_BIAS * found, MAX_AUTOCORRELATION)
        return cls(squares, degrees, _inflation(found, round(size)), found)

    def variance(self, side: slice) -> tuple[float, float]:
        """Variance pooled over some of the runs, as a mean of independent cycles would need it, and its degrees."""
        degrees = sum(self.degrees[side])
        return self.inflation * sum(self.squares[side]) / degrees, degrees


def _inflation(correlation: float, count: int) -> float:
    """Variance of a mean over what the sample variance of independent values says, for a first-order autoregression."""
    of_mean = 1 + 2 * sum((1 - lag / count) * correlation**lag for lag in range(1, count))
    of_sample = (count - of_mean) / (count - 1)
    return of_mean / of_sample


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def summed(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A sum of independent variances, and its degrees of freedom (Satterthwaite), at least those of one part."""
    total = sum(variance for variance, _ in parts)
    least = min(degrees for _, degrees in parts)
    squares = sum(variance * variance / degrees for variance, degrees in parts)
    return total, max(total * total / squares, least) if squares > 0 else least


def half_width(parts: Sequence[tuple[float, float]], alpha: float) -> float:
    """Distance of a one-sided bound at level `alpha`, for a sum of variances with their degrees of freedom."""
    total, freedom = summed(parts)
    if total <= 0:
        return 0.0
    # Rounded down to a tenth, so that simulations find most quantiles in the cache.
    return student_quantile(1 - alpha, math.floor(10 * freedom + 1e-9) / 10) * math.sqrt(total)


CONFIDENCE = 0.95
"""Two-sided level of the interval that `target_ci` bounds. Chosen: the field's convention."""
K = 2.0
"""Coverage factor of every uncertainty that a result states."""
COVERAGE = math.erf(K / math.sqrt(2))
"""95.45 %, the two-sided level of k=2 for a normal distribution (JCGM 100:2008, table G.1)."""
FIRST_LOOK = 5
"""Cycles before the first look at `target_ci`. Chosen: the spread of three is known so badly that 32 % of the intervals
that seemed narrow enough then missed the true value."""


def relative_half_width(values: Sequence[float], looks: int = 1) -> float | None:
    """Half width of the two-sided 95 % interval of the geometric mean, relative to it: 0.02 is 2 %.

    Student's t on the logarithms, as in the gates; `None` below five cycles or for values without a logarithm. Who
    looks after each of several cycles and stops at will shares the 5 % between the `looks` (Bonferroni): all the
    intervals hold together in 95 %, so the one at which it stops does. It holds for this run alone: the cycles of one
    run share temperature, clocks and node state.
    """
    if len(values) < FIRST_LOOK or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    quantile = student_quantile(1 - (1 - CONFIDENCE) / 2 / looks, len(logs) - 1)
    return math.expm1(quantile * stdev(logs) / math.sqrt(len(logs)))
