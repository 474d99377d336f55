"""The search itself: a posterior over commits from noisy measurements, and the commit that is worth measuring next.

`command` and tests/benchmarks/bisect_simulated.py call it. It is pure: no git, no processes, no clock. A change of
method moves the figures of docs/bisect.md, which that benchmark measures.

Method
    Positions count from 0, the good commit, to `last`, the bad one. One commit `k` is assumed to have changed the
    level: runs before it are of one level, runs from it on of another, with one normal noise of the logarithms for all.
    Levels are taken as unknown (flat priors) and the variance as a scaled inverse chi-squared around what is assumed or
    known of it, so that levels and variance can be integrated out: the likelihood of `k` is that of the sum of squares
    around both means (Gelman and others, "Bayesian Data Analysis", 3rd edition, sections 3.2 and 14.2). The prior is
    uniform over the commits.

    Which commit next: a run of any commit is an answer of one and the same noisy channel, which tells most where it
    is as likely to be bad as good, and elsewhere about as the binary entropy (Horstein, IEEE Transactions on
    Information Theory 9, 1963: ask at the median of the posterior). So the commit with the most entropy for its time is
    chosen, where one that must be built first takes a build more than the one that is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Literal

from pytest_llem.results.distributions import student_cdf, student_quantile

END_RUNS = (2, 4, 7, 12)
"""Runs of each end after which they are compared; after the last they count as equal. Chosen: one run says nothing of
the noise, and twelve find a change of twice the noise (docs/bisect.md)."""
DIFFERENCE_ALPHA = 0.02
"""Chosen: of searches between equal commits few then begin, and the end of a search tests it again."""
MISFIT_ALPHA = 0.001
"""Chosen: it is tested after every run, some 30 times a search."""
REPEATS = 2
"""A commit is not measured more often than so many times as either end. Chosen: its level is held against theirs."""
DOUBT_ALPHA = 0.05
"""Chosen: where a second change is this likely, more runs decide before a commit is named."""
NEIGHBOUR_RUNS = 2
"""Runs of the commit that is found, and of the one before it. Chosen: no single verdict names a commit."""
RECENT = 8
"""Both were measured among so many last runs. Chosen: a machine drifts over hours, and not over the last few runs."""

INTERVAL = 0.95
"""Confidence of an interval that is stated, two-sided."""

Ending = Literal["found", "no_difference", "several", "undecided"]


@dataclass(frozen=True)
class RunNoise:
    """The relative standard deviation of one run's level, and how many degrees of freedom that is worth."""

    spread: float = 0.02
    degrees: float = 4.0


@dataclass(frozen=True)
class Suspects:
    """The commits `first` to `last`, which no further build can tell apart, and the probability of them together."""

    first: int
    last: int
    probability: float


@dataclass(frozen=True)
class LevelChange:
    """A level over another as a ratio, with its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass
class CommitSearch:
    """One search; `add` and `skip` tell it what came of `next`, in any order and from earlier searches as well."""

    last: int
    noise: RunNoise = field(default_factory=RunNoise)
    confidence: float = 0.95
    build_cost: float = 1.0
    runs: list[tuple[int, float]] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    here: int | None = None
    """The commit that is built."""

    def add(self, position: int, level: float) -> None:
        """A run of a commit: `level` is the logarithm of what it measured."""
        self.runs.append((position, level))
        self.here = position

    def skip(self, position: int) -> None:
        """A commit that cannot be measured."""
        self.skipped.add(position)

    # what the runs say

    def levels(self) -> dict[int, list[float]]:
        """The levels that were measured, by position from good to bad."""
        found: dict[int, list[float]] = {}
        for position, level in sorted(self.runs, key=lambda run: run[0]):
            found.setdefault(position, []).append(level)
        return found

    def splits(self) -> list[tuple[int, int, float, float]]:
        """For each gap between measured commits: its first and last suspect, probability, squares around both means."""
        levels = self.levels()
        if not self.both_ends():
            return [(1, self.last, 1.0, 0.0)]
        places = [*levels]
        before, after = _Squares(), _Squares()
        for values in levels.values():
            for value in values:
                after.add(value)
        prior = self.noise.degrees * self.noise.spread**2
        power = (self.noise.degrees + len(self.runs) - 2) / 2
        logs, squares = [], []
        for left, right in pairwise(places):
            for value in levels[left]:
                before.add(value)
                after.remove(value)
            squares.append(before.squares + after.squares)
            logs.append(
                math.log(right - left)
                - math.log(before.count * after.count) / 2
                - power * math.log(prior + squares[-1])
            )
        top = max(logs)
        weights = [math.exp(each - top) for each in logs]
        total = sum(weights)
        return [
            (left + 1, right, weight / total, square)
            for (left, right), weight, square in zip(pairwise(places), weights, squares, strict=True)
        ]

    def suspects(self) -> list[Suspects]:
        """Every set of commits that builds can tell from the others, the most probable first."""
        found = []
        for first, last, probability, _ in self.splits():
            share = probability / (last - first + 1)
            start = first
            for position in range(first, last + 1):
                if position == last or position not in self.skipped:
                    found.append(Suspects(start, position, share * (position - start + 1)))
                    start = position + 1
        return sorted(found, key=lambda each: -each.probability)

    def is_bad(self) -> list[float]:
        """For each position the probability that the change is in it or before it."""
        total, found = 0.0, [0.0]
        for first, last, probability, _ in self.splits():
            share = probability / (last - first + 1)
            for _ in range(first, last + 1):
                total += share
                found.append(total)
        return found

    def remaining(self) -> int:
        """How many commits hold the change with the confidence asked for, the most probable ones first."""
        total = count = 0.0
        for each in sorted(self.splits(), key=lambda split: -split[2] / (split[1] - split[0] + 1)):
            share = each[2] / (each[1] - each[0] + 1)
            needed = min(each[1] - each[0] + 1, math.ceil((self.confidence - total) / share) if share else 0)
            total, count = total + needed * share, count + needed
            if total >= self.confidence - 1e-12:
                break
        return int(count)

    def both_ends(self) -> bool:
        """Whether both ends were measured."""
        return {0, self.last} <= {position for position, _ in self.runs}

    def change(self) -> LevelChange | None:
        """The size of the change where it most probably is, from all runs; `None` before both ends were measured."""
        if not self.both_ends():
            return None
        first = max(self.splits(), key=lambda split: split[2])[0]
        before = [level for position, level in self.runs if position < first]
        return self._between(before, [level for position, level in self.runs if position >= first])

    def difference(self) -> LevelChange | None:
        """The difference of the two ends, from their runs alone; `None` as well."""
        if not self.both_ends():
            return None
        levels = self.levels()
        return self._between(levels[0], levels[self.last])

    def _between(self, before: Sequence[float], after: Sequence[float]) -> LevelChange:
        centre = fmean(after) - fmean(before)
        error = self.spread() * math.sqrt(1 / len(before) + 1 / len(after))
        half = student_quantile((1 + INTERVAL) / 2, self._pure()[1]) * error
        return LevelChange(math.exp(centre), math.exp(centre - half), math.exp(centre + half))

    def spread(self) -> float:
        """The standard deviation between runs of equal commits, with what is assumed of it."""
        squares, degrees = self._pure()
        return math.sqrt(squares / degrees)

    def _pure(self) -> tuple[float, float]:
        """The squares of runs of the same commit around its mean, with those that are assumed; degrees of freedom."""
        squares, degrees = self.noise.degrees * self.noise.spread**2, self.noise.degrees
        for values in self.levels().values():
            centre = fmean(values)
            squares += sum((value - centre) ** 2 for value in values)
            degrees += len(values) - 1
        return squares, degrees

    def differ(self) -> bool:
        """Whether both ends differ by more than noise."""
        levels = self.levels()
        good, bad = levels[0], levels[self.last]
        error = self.spread() * math.sqrt(1 / len(good) + 1 / len(bad))
        return 2 * (1 - student_cdf(abs(fmean(bad) - fmean(good)) / error, self._pure()[1])) < DIFFERENCE_ALPHA

    def second_step(self, alpha: float = MISFIT_ALPHA) -> tuple[int, int] | None:
        """The gap of a second change, where one step and noise do not explain the levels; its first and last suspect.

        The largest difference between parts of either side, by Student's t and the noise of equal commits (Bonferroni).
        """
        first = max(self.splits(), key=lambda split: split[2])[0]
        levels, spread, degrees = self.levels(), self.spread(), self._pure()[1]
        found: list[tuple[float, int, int]] = []
        for places in ([p for p in levels if p < first], [p for p in levels if p >= first]):
            for left, right in pairwise(places):
                before = [level for p in places if p <= left for level in levels[p]]
                after = [level for p in places if p >= right for level in levels[p]]
                error = spread * math.sqrt(1 / len(before) + 1 / len(after))
                found.append((abs(fmean(after) - fmean(before)) / error, left + 1, right))
        if not found:
            return None
        largest, start, end = max(found)
        return (start, end) if 2 * (1 - student_cdf(largest, degrees)) * len(found) < alpha else None

    # what comes next

    def step(self) -> int | Ending:
        """The position to measure next, or how the search ends."""
        counts = Counter(position for position, _ in self.runs)
        least = min(counts[0], counts[self.last])
        for target in END_RUNS:
            if least >= target and self.differ():
                break
            if needy := [end for end in (0, self.last) if counts[end] < target]:
                return self.last if self.here == self.last and self.last in needy else needy[0]
        else:
            return "no_difference"
        if self.second_step():
            return "several"
        leader = self.suspects()[0]
        if leader.probability >= self.confidence:
            return self._unconfirmed(leader, counts)
        best = self._most_telling()
        if best is None:
            return "undecided"
        # So a commit that is neither good nor bad shows, and what the ends seemed to differ by is tried again.
        fewest = min((0, self.last), key=counts.__getitem__)
        return fewest if counts[best] >= REPEATS * counts[fewest] else best

    def _unconfirmed(self, leader: Suspects, counts: Counter[int]) -> int | Ending:
        recent = {position for position, _ in self.runs[-RECENT:]}
        sides = (leader.first - 1, leader.last)
        for side in sorted(sides, key=lambda side: side != self.here):
            if counts[side] < NEIGHBOUR_RUNS or side not in recent:
                return side
        if self.second_step(DOUBT_ALPHA):
            fewest = min({0, *sides, self.last}, key=lambda place: (counts[place], place != self.here))
            return fewest if counts[fewest] < END_RUNS[-1] else "several"
        return "found"

    def _most_telling(self) -> int | None:
        best, score = None, 0.0
        chance = self._chance_of_building()
        for position, bad in enumerate(self.is_bad()[: self.last]):
            if position in self.skipped or not 0 < bad < 1:
                continue
            told = -bad * math.log2(bad) - (1 - bad) * math.log2(1 - bad)
            told *= (1 + self.build_cost) if position == self.here else chance(position)
            if told > score:
                best, score = position, told
        return best

    def _chance_of_building(self) -> Callable[[int], float]:
        """Commits that do not build lie together: near `n` of them, one at a distance `d` builds with d / (d + n)."""
        stretches: list[list[int]] = []
        for position in sorted(self.skipped):
            if stretches and position == stretches[-1][1] + 1:
                stretches[-1][1] = position
            else:
                stretches.append([position, position])

        def chance(position: int) -> float:
            product = 1.0
            for first, last in stretches:
                distance = max(first - position, position - last)
                product *= distance / (distance + last - first + 1)
            return product

        return chance


class _Squares:
    """Count, mean and sum of squares around it, of values that come and go (Welford, Technometrics 4, 1962)."""

    def __init__(self) -> None:
        self.count, self._mean, self.squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        off = value - self._mean
        self._mean += off / self.count
        self.squares += off * (value - self._mean)

    def remove(self, value: float) -> None:
        self.count -= 1
        off = value - self._mean
        self._mean = self._mean - off / self.count if self.count else 0.0
        self.squares = max(0.0, self.squares - off * (value - self._mean)) if self.count else 0.0
