"""Change points in a series of runs: where its level changed for good, by how much, and how sure that is.

`series` calls it. What was found once stays found, and where: run t is judged by the runs up to t alone. A size is that
of both levels as they are known by now: those few runs that a step was found by exceed it, or it had not been found.

Method
    Run by run, each of the newest splits of the series is tested: the mean of the logarithms after it against that of
    the runs before it, by Student's t with a variance pooled over both sides (a window-limited generalised likelihood
    ratio; Lai, JRSS B 57, 1995, 613-658). The noise is not known, so its variance is shrunk towards the assumed one
    between runs, as in `statistics`, and is carried over a change point. The threshold is such that a year of daily
    runs stays quiet.

    Outliers: the level before is one step of Huber's estimator from the median (Annals of Mathematical Statistics 35,
    1964), squares are those of clipped deviations, and a step counts only where nearly every single run lies on its
    own side of the middle. Runs that resemble the one before them: an autocorrelation above its standard error widens
    the test to a first-order autoregression's (Bayley and Hammersley, Supplement to the JRSS 8, 1946).

    A split that counts is then put where the runs fit both levels best, in a loss that bounds what one run can say. Its
    size is the difference of both levels, of up to `BEFORE` runs each, with the same bounded outliers and variance.

Rates are in docs/history.md, measured by tests/benchmarks/change_points.py: to be run again after a change of method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, median

from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.statistics import BETWEEN_RUNS, PRIOR_RUNS

ALARM = 5e-7
"""Level of each one-sided test. Chosen: some twenty tests a day, which depend on each other, then raise 0.02 false
alarms in a year of 20 experiments at 1 % noise. One is promised, which noise that is skewed comes close to."""
BEFORE = 30
"""Runs before a split that count. Chosen: more sharpen nothing (a mean of 3 has ten times the variance of one of 30),
and a drift of 5 % a year stays within the noise of 1 %."""
AFTER = 20
"""The most runs after a split that are tested. Chosen: a step of twice the noise is found by then."""
LEAST_BEFORE, LEAST_AFTER = 2, 3
"""Chosen: two bad runs in a row are no new level, and a single first run is no old one."""
OUTLIER = 4.0
"""Standard deviations beyond which a run counts no further. Chosen: with 3, heavy tails lose so much of their variance
that they alarm three times as often."""
EXCEPTIONS = 5
"""Of so many runs on a side one may lie beyond the middle of the step. Chosen: three or four have none, so that
outliers in two of them are no step."""
CARRIED = 20
"""The weight, in runs, of noise that was learned before a change point. Chosen: that of most of a window, as the noise
of a machine outlasts a commit, and it can still be unlearned."""
MEMORY = 100
"""Runs over which the autocorrelation is averaged. Chosen: its standard error is then 0.14."""
LEAST_MEMORY = 10
"""As `CYCLES_FOR_AUTOCORRELATION`: fewer tell nothing."""
BOUND = 0.05
"""Level of each bound of a size, as of a gate's."""
POSITION = 0.95
"""Probability that a change lies among the runs that `earlier` and `later` reach."""


@dataclass(frozen=True)
class ChangePoint:
    """A step: run `first` (from 0) is the first of the new level, and it was found when run `found` came.

    `ratio` is the new level over the old one, by up to `BEFORE` runs of each that are known by now, with one-sided
    bounds, each at 5 %. It may as well have begun up to `earlier` runs before `first`, or `later` after it (95 %).
    """

    first: int
    found: int
    ratio: float
    low: float
    high: float
    earlier: int = 0
    later: int = 0


def find_changes(runs: Sequence[Sequence[float]]) -> list[ChangePoint]:
    """The change points of a series of runs, in order; each run is its cycles' values.

    A ratio needs positive values: a run with none, or with one that is not, is passed over.
    """
    numbers = [number for number, run in enumerate(runs) if run and min(run) > 0]
    segments = [_Segment(BETWEEN_RUNS**2, PRIOR_RUNS)]
    begins, found = [0], list[tuple[int, int, int]]()
    cycles = degrees = 0
    squares = 0.0
    for judged, number in enumerate(numbers):
        segment, begin = segments[-1], begins[-1]
        logs = [math.log(value) for value in runs[number]]
        value = fmean(logs)
        cycles += len(logs)
        degrees += len(logs) - 1
        squares += sum((each - value) ** 2 for each in logs)
        if not found and degrees:  # later segments know better
            segment.assumed = BETWEEN_RUNS**2 + squares / degrees * (judged + 1) / cycles
        segment.add(value)
        split = segment.split()
        if split is None:
            continue
        first, earliest, latest = segment.placed(split)
        found.append((judged, begin + earliest, begin + latest))
        segments.append(segment.after(first))
        begins.append(begin + first)
    changes = []
    for place, (judged, earliest, latest) in enumerate(found):
        begin, first, end = [*begins, len(numbers)][place : place + 3]
        step = segments[place].step(first - begin, segments[place + 1], end - first)
        changes.append(
            ChangePoint(
                first=numbers[first],
                found=numbers[judged],
                ratio=math.exp(step.size),
                low=math.exp(step.size - step.reach),
                high=math.exp(step.size + step.reach),
                earlier=numbers[first] - numbers[earliest],
                later=numbers[latest] - numbers[first],
            )
        )
    return changes


@dataclass(frozen=True)
class _Level:
    """Where the runs of a window lie: their mean, the squares about it, both of clipped deviations; and their count."""

    mean: float
    squares: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], deviation: float) -> _Level:
        middle, most = median(values), OUTLIER * deviation
        near = [min(max(value - middle, -most), most) for value in values]
        shift = fmean(near)
        return cls(middle + shift, sum(each * each for each in near) - shift * shift * len(near), len(near))


@dataclass(frozen=True)
class _Step:
    """Two levels, the variance of a run about its own with its degrees of freedom, and that of their difference."""

    old: _Level
    new: _Level
    variance: float
    degrees: float
    error: float

    @property
    def size(self) -> float:
        return self.new.mean - self.old.mean

    @property
    def reach(self) -> float:
        """Distance of a one-sided bound of the size."""
        return student_quantile(1 - BOUND, math.floor(self.degrees)) * math.sqrt(self.error)


@dataclass(frozen=True)
class _Successive:
    """How much a run resembles the one before it, with a memory that fades."""

    products: float = 0.0
    squares: float = 0.0
    weight: float = 0.0
    before: float = 0.0

    def then(self, residual: float) -> _Successive:
        """The same with another run's distance from the level before it."""
        kept = 1 - 1 / MEMORY
        return _Successive(
            kept * self.products + residual * self.before,
            kept * self.squares + residual * residual,
            kept * kept * self.weight + 1,
            residual,
        )

    @property
    def tenths(self) -> int:
        """The autocorrelation in tenths, rounded down; 0 where it is within its standard error."""
        if self.weight <= LEAST_MEMORY or self.products * math.sqrt(self.weight) <= self.squares:
            return 0
        return min(int(10 * self.products / self.squares), 9)


INDEPENDENT = _Successive()


class _Segment:
    """The runs since the last change point. `assumed` is the variance between runs that is expected before any is seen,
    with the weight of so many runs."""

    def __init__(self, assumed: float, weight: float, successive: _Successive = INDEPENDENT) -> None:
        self.assumed, self.weight = assumed, weight
        self.values: list[float] = []
        # Of the runs before each place: sums of offsets from the first value, levels, and what successive runs share.
        self.sums, self.squares = [0.0], [0.0]
        self.levels = [_Level(0.0, 0.0, 0)]
        self.successive = [successive]
        self.of_means = [_variances_of_means(successive.tenths)]

    def add(self, value: float) -> None:
        """Take a run's logarithm in."""
        last = self.levels[-1]
        deviation = math.sqrt(self.variance(last.squares, max(last.count - 1, 0)))
        most = OUTLIER * deviation if last.count else 0.0
        self.successive.append(self.successive[-1].then(min(max(value - last.mean, -most), most)))
        self.values.append(value)
        offset = value - self.values[0]
        self.sums.append(self.sums[-1] + offset)
        self.squares.append(self.squares[-1] + offset * offset)
        self.levels.append(_Level.of(self.values[-BEFORE:], deviation))
        self.of_means.append(_variances_of_means(self.successive[-1].tenths))

    def variance(self, squares: float, degrees: int) -> float:
        """The variance of a run, shrunk towards the assumed one."""
        return (self.weight * self.assumed + squares) / (self.weight + degrees)

    def split(self) -> int | None:
        """The place of the split that speaks most for a step, if one suffices."""
        size, best, most = len(self.values), None, 0.0
        for after in range(LEAST_AFTER, min(AFTER, size - LEAST_BEFORE) + 1):
            place = size - after
            level, of_mean = self.levels[place], self.of_means[place]
            total = self.sums[-1] - self.sums[place]
            distance = self.values[0] + total / after - level.mean
            squares = self.squares[-1] - self.squares[place] - total * total / after
            degrees = level.count + after - 2
            error = self.variance(level.squares + squares, degrees) * (of_mean[after] + of_mean[level.count])
            enough = _enough(self.weight + degrees)
            if distance * distance > max(most, enough) * error and self._holds(place, enough):
                best, most = place, distance * distance / error
        return best

    def _holds(self, place: int, enough: float) -> bool:
        """Whether a step there is more than a few outliers."""
        step = self.step(place)
        middle, sign = step.old.mean + step.size / 2, math.copysign(1, step.size)
        before, after = self.values[max(0, place - BEFORE) : place], self.values[place:]
        return (
            step.size**2 > enough * step.error
            and sum(sign * (value - middle) >= 0 for value in before) <= len(before) // EXCEPTIONS
            and sum(sign * (value - middle) <= 0 for value in after) <= len(after) // EXCEPTIONS
        )

    def step(self, place: int, after: _Segment | None = None, count: int = BEFORE) -> _Step:
        """The step at a place, outliers clipped on both sides; `after` it are so many runs, by default those here."""
        old, values, successive = self.levels[place], self.values[place:], self.successive[place]
        if after is not None:
            count = min(count, BEFORE)
            values, successive = after.values[:count], after.successive[count]
        new = _Level.of(values, math.sqrt(self.variance(old.squares, old.count - 1)))
        degrees = old.count + new.count - 2
        variance = self.variance(old.squares + new.squares, degrees)
        of_mean = _variances_of_means(successive.tenths)
        error = variance * (of_mean[old.count] + of_mean[new.count])
        return _Step(old, new, variance, self.weight + degrees, error)

    def placed(self, split: int) -> tuple[int, int, int]:
        """Where the step most probably lies, and the first and last place of those that make up 95 %."""
        step = self.step(split)
        places = range(max(LEAST_BEFORE, split - BEFORE), len(self.values) - LEAST_AFTER + 1)

        def loss(value: float, level: _Level) -> float:
            return min((value - level.mean) ** 2 / step.variance, OUTLIER**2) / 2

        losses = [0.0]
        for place, _ in pairwise(places):
            losses.append(losses[-1] + loss(self.values[place], step.old) - loss(self.values[place], step.new))
        least = min(losses)
        likely = sorted(zip(losses, places, strict=True))
        whole = sum(math.exp(least - each) for each in losses)
        inside, reached = [], 0.0
        for each, place in likely:
            inside.append(place)
            reached += math.exp(least - each)
            if reached >= POSITION * whole:
                break
        return likely[0][1], min(inside), max(inside)

    def after(self, place: int) -> _Segment:
        """The segment that begins with a step, with the noise that is known by now."""
        step = self.step(place)
        new = _Segment(step.variance, min(step.degrees, CARRIED), self.successive[place])
        for value in self.values[place:]:
            new.add(value)
        return new


@lru_cache(maxsize=1024)
def _enough(degrees: float) -> float:
    """The square of Student's t that makes a step."""
    return student_quantile(1 - ALARM, degrees) ** 2


@lru_cache(maxsize=10)
def _variances_of_means(tenths: int) -> tuple[float, ...]:
    """Of means of 0, 1, 2 ... runs, of a first-order autoregression; the variance of a run is 1."""
    rho = tenths / 10
    return (
        math.inf,
        *(
            (1 + 2 * sum((1 - lag / count) * rho**lag for lag in range(1, count))) / count
            for count in range(1, BEFORE + AFTER + LEAST_AFTER)
        ),
    )
