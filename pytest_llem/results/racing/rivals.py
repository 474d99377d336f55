"""Compares settings with their best rivals, round by round: the evidence that one cannot be the best.

`racing` asks it after every round. It is pure, and its bounds must hold: docs/optimize.md has how often they do.

Method
    Logarithms are compared, as in the gates. What a round shares, drift above all, cancels in differences within it.

    The best setting's figure is at most that of every rival, and so at most any weighted mean of theirs. So each
    setting is compared with *one* mean of rivals, and not with each of them: no error is paid for their number, however
    many there are. The weights of a round come from the other rounds (of the first two, from the other one; later, from
    those before), so that a rival does not seem better for the noise by which it was chosen; they fall exponentially
    with the distance from the leader, in units of scatter (Littlestone and Warmuth, Information and Computation 108,
    1994).

    The bound is Student's t of the differences, with the scatter of this setting and its rivals alone: settings may
    scatter as differently as they like, and one whose first cycles were disturbed has a wide bound (a variance that is
    pooled or moderated, Smyth, Statistical Applications in Genetics and Molecular Biology 3(1), 2004, is narrower, and
    wrong there). What all settings scatter by only keeps it from being narrow by luck.

    Only the first two rounds choose each other's rivals. One that scatters more than the others leads both by luck in a
    quarter of races, and the others do in another: a third more errors. Of several such rivals the luckiest leads both,
    and there are nearly twice as many. So the error of n differences from r rivals is divided by 1 + (1 - 1/r)/(n-1).
    Chosen: it leaves the exact bound of one rival as it is, and kept the best in 95 % of races however rivals
    scattered, as no scale of the weights did.

    After round n the error is the share 1/(n-1) of all rounds' shares, so that all bounds of a race hold together, and
    it may stop at any of them (Lan and DeMets, Biometrika 70, 1983). Only the best setting has to be protected, so that
    nothing is paid for the number of settings either.

    The same event bounds the regret. A rival with the part W of all weights is worse than the best by g, and none is
    better than it: so their mean is worse by W g at least, and g is at most the bound of the mean divided by W. That
    takes the mean from sequence to a setting as "online to batch" does (Cesa-Bianchi, Conconi and Gentile, IEEE
    Transactions on Information Theory 50, 2004).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import NamedTuple

from pytest_llem.results.distributions import student_quantile

TEMPERATURE = 1.0
"""Distance from the leader, in standard errors, over which a weight falls to a third. Chosen: near-equal rivals share
the weight and average their noise, others have none."""
LEAST_SCATTER = 0.3
"""Share of what settings usually scatter by that the scatter of two is taken to have at least. Chosen: exact bounds
need none; it keeps rounded figures, which are equal by luck, from proving anything."""
NO_WEIGHT = -14.0
"""Logarithm of the least weight. Chosen: rivals below a millionth change no digit that is shown."""
ROUNDING = 1e-12
"""Logarithms that differ by less are equal: means of equal ones differ by some of the last digits."""
MOST_WEIGHT = 0.9
"""Chosen: what is left beside more than that is weighed anew, lest digits cancel."""


@dataclass(frozen=True)
class AgainstRivals:
    """How much worse a setting is than the mean of its rivals, as a logarithm, and how far that may be off.

    `others` are the rivals of each round that counts, without this setting.
    """

    worse: float
    half: float
    others: tuple[Others, ...]

    @property
    def low(self) -> float:
        """The lower bound of how much worse it is."""
        return self.worse - self.half

    @property
    def high(self) -> float:
        """The upper bound of how much worse it is."""
        return self.worse + self.half

    def weight(self, rival: str) -> float:
        """The part that a rival has in the mean."""
        return sum(others.weight(rival) for others in self.others) / len(self.others)

    def regret_of(self, rival: str) -> float:
        """How much worse than this setting `rival` may be at most, as a logarithm; infinite where it had no weight."""
        bound = max(0.0, -self.low)
        weight = self.weight(rival)
        return bound / weight if weight else math.inf if bound else 0.0


def error_share(rounds: int, most: int) -> float:
    """The share of the error that is spent after so many rounds, of at `most` so many."""
    return 1 / (rounds - 1) / sum(1 / number for number in range(1, max(most, rounds)))


def kept_share(rivals: int, differences: int) -> float:
    """The share of a bound's error that is left when so many rivals might be chosen, see the method above."""
    return 1 / (1 + (1 - 1 / max(rivals, 1)) / (differences - 1))


def scatter_of(values: Sequence[float]) -> float:
    """The sample standard deviation of two values or more; `statistics.stdev` takes ten times as long."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


class Figures:
    """The logarithms of all settings' figures, lower is better, less what their round shares.

    `even` is whether all settings are taken to scatter alike, as a race does that assumes a structure.
    """

    def __init__(self, *, even: bool = False) -> None:
        self._even = even
        self.of: dict[str, dict[int, float]] = {}
        self.errors: dict[str, float] = {}
        self.scatter = 0.0
        self._pooled = 0.0, 0
        self._drift: list[float] = []
        self._before: list[dict[str, float]] = []

    def add(self, values: Mapping[str, float], errors: Mapping[str, float]) -> None:
        """Take in the next round: its logarithms, and of all that were asked what no number of cycles averages out."""
        number = len(self._drift) + 1
        self.errors |= {name: max(error, self.errors.get(name, 0.0)) for name, error in errors.items()}
        last = self._drift[-1] if self._drift else 0.0
        moved = [
            value - self.of[name][number - 1] for name, value in values.items() if number - 1 in self.of.get(name, {})
        ]
        drift = median(moved) if moved else last
        self._drift.append(drift)
        self._before.append({name: fmean(self.of[name].values()) for name in errors if self.of.get(name)})
        for name, value in values.items():
            self.of.setdefault(name, {})[number] = value - drift
        if number == 2:
            self._before[0] = {name: seen[2] for name, seen in self.of.items() if 2 in seen}
        repeated = [list(seen.values()) for seen in self.of.values() if len(seen) > 1]
        known = [scatter_of(values) ** 2 / _median_share(len(values) - 1) for values in repeated]
        self.scatter = math.sqrt(median(known)) if known else 0.0
        degrees = sum(len(seen) - 1 for seen in repeated)
        squares = sum(scatter_of(seen) ** 2 * (len(seen) - 1) for seen in repeated)
        self._pooled = math.sqrt(squares / degrees) if degrees else 0.0, degrees

    def mean(self, name: str) -> float:
        """A setting's mean so far, infinite where it has no value."""
        seen = self.of.get(name)
        return fmean(seen.values()) if seen else math.inf

    def compared(
        self, names: Iterable[str], rivals: Collection[str], error: float, whole: float
    ) -> dict[str, AgainstRivals]:
        """Each of the settings against the rivals, those left out that cannot be compared yet.

        The bounds are at `error`, but for what stays the same in all rounds: that may use the `whole` error.
        """
        rounds = [_Rivals.of(self._candidates(number, rivals)) for number in range(1, len(self._drift) + 1)]
        meters = NormalDist().inv_cdf(1 - whole), NormalDist().inv_cdf(1 - whole / max(1, len(self.of) - 1))
        found = ((name, self._against(name, rounds, len(rivals) - (name in rivals), error, meters)) for name in names)
        return {name: comparison for name, comparison in found if comparison}

    def _candidates(self, number: int, rivals: Collection[str]) -> dict[str, _Rival]:
        known = self._before[number - 1]
        scale = TEMPERATURE * self.scatter / math.sqrt(max(1, number - 1)) or math.ulp(1.0)
        return {
            name: _Rival(-known[name] / scale, self.of[name].get(number), self.errors[name])
            for name in known
            if name in rivals
        }

    def _against(
        self, name: str, rounds: Sequence[_Rivals], rivals: int, error: float, meters: tuple[float, float]
    ) -> AgainstRivals | None:
        seen = ((value, rounds[number - 1].without(name)) for number, value in self.of.get(name, {}).items())
        pairs = [(_difference(value, others.value), others) for value, others in seen if others]
        count = len(pairs)
        if count < 2:
            return None
        differences = [difference for difference, _ in pairs]
        scatter, degrees = self._scatter(differences)
        kept = 1.0 if self._even else kept_share(rivals, count)
        parts = (
            student_quantile(1 - kept * error, degrees) * scatter / math.sqrt(count),
            meters[0] * self.errors[name],
            meters[1] * sum(others.error for _, others in pairs) / count,
        )
        return AgainstRivals(sum(differences) / count, math.hypot(*parts), tuple(others for _, others in pairs))

    def _scatter(self, differences: Sequence[float]) -> tuple[float, int]:
        """By how much differences from a mean of rivals scatter, with the degrees of freedom of that."""
        if not self._even:
            return max(scatter_of(differences), LEAST_SCATTER * self.scatter), len(differences) - 1
        pooled, degrees = self._pooled
        return math.sqrt(2) * pooled, degrees  # a mean of rivals scatters by no more than one of them


class _Rival(NamedTuple):
    """A rival in one round: the logarithm of its weight, its value there if it has one, and its meter's error."""

    logarithm: float
    value: float | None
    error: float


@dataclass(frozen=True)
class _Rivals:
    """The rivals of one round that have a value in it, with weights that add up to one, and their means.

    `missing` is the weight, in the same unit, of those that have none.
    """

    candidates: Mapping[str, _Rival]
    weights: Mapping[str, float]
    missing: float
    value: float
    error: float

    @classmethod
    def of(cls, candidates: Mapping[str, _Rival]) -> _Rivals:
        most = max((rival.logarithm for rival in candidates.values()), default=0.0)
        weights: dict[str, float] = {}
        missing = total = value = error = 0.0
        for name, rival in candidates.items():
            if rival.logarithm - most <= NO_WEIGHT:
                continue
            weight = math.exp(rival.logarithm - most)
            if rival.value is None:
                missing += weight
                continue
            weights[name] = weight
            total += weight
            value += weight * rival.value
            error += weight * rival.error
        if not weights:
            return cls(candidates, weights, missing, 0.0, 0.0)
        weights = {name: weight / total for name, weight in weights.items()}
        return cls(candidates, weights, missing / total, value / total, error / total)

    def without(self, name: str) -> Others | None:
        """The mean of all but one; `None` where most of the others' weight has no value in this round.

        A mean without the leaders is another one, and would look like scatter beside those of other rounds.
        """
        weight = self.weights.get(name, 0.0)
        if weight > MOST_WEIGHT:
            return _Rivals.of({other: rival for other, rival in self.candidates.items() if other != name}).without(name)
        own, rest = self.candidates.get(name), 1 - weight
        if not self.weights or self.missing > rest:
            return None
        if own is None or own.value is None or not weight:
            return Others(self.value, self.error, self.weights, 1.0, name)
        value, error = self.value - weight * own.value, self.error - weight * own.error
        return Others(value / rest, error / rest, self.weights, rest, name)


@dataclass(frozen=True)
class Others:
    """The mean of a round's rivals without one setting: of their values, and of their meters' errors."""

    value: float
    error: float
    weights: Mapping[str, float]
    rest: float
    without: str

    def weight(self, rival: str) -> float:
        """The part that a rival has in it."""
        return 0.0 if rival == self.without else self.weights.get(rival, 0.0) / self.rest


def _difference(value: float, other: float) -> float:
    return 0.0 if abs(value - other) < ROUNDING else value - other


def _median_share(degrees: int) -> float:
    """The median of a sample variance over the variance (Wilson and Hilferty, PNAS 17, 1931)."""
    return (1 - 2 / (9 * degrees)) ** 3
