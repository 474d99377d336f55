"""Whether a setting keeps the limits of `subject_to`: proven to, proven to break one, or neither.

`racing` asks it after every round. It is pure, and what is not known is never proven.

Method
    A limited metric is compared with its limit on the logarithm, as a budget is, or as it is where values are not
    positive. A setting is *beyond* by Student's t of its own cycles: only the best setting has to be protected from
    that. A setting *keeps* a limit by two bounds at once. The first has the scatter of all settings and an error that
    is divided by their number, since each of them may be taken for good and then drop the best. The second is Student's
    t of its own cycles, for one that scatters more than the others.

    Of a share of answers or requests the first cycle's count tells all: later cycles ask the same ones again. Its
    interval is the exact one of `proportion`, its error divided by the number of different counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean

from pytest_llem.job.metric_names import ACCURACY
from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.racing.answer import OPEN, Bounds, Seen
from pytest_llem.results.racing.rivals import LEAST_SCATTER, scatter_of
from pytest_llem.study.limits import SHARES, Budget

OWN_SCATTER = 0.4
"""Share of a race's error at which a setting's own scatter has to show that a limit is kept. Chosen: 2 % of 5 %, so
that a setting which scatters ten times as much as the others needs luck twice."""


@dataclass(frozen=True)
class Errors:
    """Error rates for one look at one limit: of calling the best beyond it, of calling any setting within, and its own.

    The first two are this look's `share` of what all looks may spend.
    """

    beyond: float
    within: float
    own: float
    share: float


class Keeping:
    """The values of one limited metric, of all settings.

    `even` is whether all settings are taken to scatter alike, as a race does that assumes a structure.
    """

    def __init__(self, budget: Budget, *, even: bool = False) -> None:
        self.budget = budget
        self._even = even
        self._values: dict[str, list[float]] = {}
        self._errors: dict[str, float] = {}
        self._counts: dict[str, tuple[float, float]] = {}
        self._pooled: tuple[float, int] = (0.0, 0)
        self._sign = 1 if budget.op in ("<=", "<") else -1

    def add(self, seen: Mapping[str, Seen]) -> None:
        """Take in a round."""
        metric = self.budget.metric
        for name, cycle in seen.items():
            value = cycle.limited.get(metric)
            if cycle.failed is not None or value is None:
                continue
            self._values.setdefault(name, []).append(value)
            self._errors[name] = max(self._errors.get(name, 0.0), cycle.limit_errors_rel.get(metric, 0.0))
            counted = cycle.questions if metric == ACCURACY else cycle.requests
            if counted is not None and counted[1]:
                self._counts.setdefault(name, counted)
        self._logarithmic = self.budget.limit > 0 and all(min(values) > 0 for values in self._values.values())
        squares = degrees = 0.0
        for values in self._values.values():
            scaled = [self._distance(value) for value in values]
            mean = fmean(scaled)
            squares += sum((value - mean) ** 2 for value in scaled)
            degrees += len(scaled) - 1
        self._pooled = (math.sqrt(squares / degrees) if degrees else 0.0), int(degrees)

    def judged(self, name: str, errors: Errors, number: int) -> tuple[Bounds | None, bool | None]:
        """Its bounds in the metric's unit, of which each may prove something, and what they prove."""
        if self.budget.metric in SHARES:
            return self._counted(name, errors, number)
        values = [self._distance(value) for value in self._values.get(name, ())]
        count = len(values)
        if count < 2:
            return None, None
        mean, root = fmean(values), math.sqrt(count)
        pooled, degrees = self._pooled
        own, own_degrees = max(scatter_of(values), LEAST_SCATTER * pooled), count - 1
        if self._even:
            own, own_degrees = pooled, degrees
        meter = self._errors.get(name, 0.0) * (
            1.0 if self._logarithmic else abs(fmean(self._values[name]) / self._scale)
        )
        beyond, within = errors.beyond, errors.within / len(self._values)
        own_side = student_quantile(1 - beyond, own_degrees) * own / root
        low = mean - math.hypot(own_side, NormalDist().inv_cdf(1 - beyond) * meter)
        pooled_side = student_quantile(1 - within, degrees) * pooled / root
        inner = max(pooled_side, student_quantile(1 - errors.own, own_degrees) * own / root)
        high = mean + math.hypot(inner, NormalDist().inv_cdf(1 - within) * meter)
        ends = [self._end(distance) for distance in (low, high)[:: self._sign]]
        return Bounds(number, self._value(mean), ends[0], ends[1]), False if low > 0 else True if high <= 0 else None

    def _counted(self, name: str, errors: Errors, number: int) -> tuple[Bounds | None, bool | None]:
        counts = self._counts.get(name)
        if counts is None:
            return None, None
        right, asked = counts
        different = len(set(self._counts.values()))
        outer = binomial_interval(right, asked, 1 - 2 * errors.beyond / errors.share)
        inner = binomial_interval(right, asked, 1 - 2 * errors.within / errors.share / different)
        limit = self.budget.limit
        if self._sign > 0:
            low, high = outer[0], inner[1]
            proven = False if low > limit else True if high <= limit else None
        else:
            low, high = inner[0], outer[1]
            proven = False if high < limit else True if low >= limit else None
        return Bounds(number, right / asked, low, high), proven

    @property
    def _scale(self) -> float:
        return abs(self.budget.limit) or 1.0

    def _distance(self, value: float) -> float:
        """How far beyond the limit a value is: as a logarithm, or in limits."""
        limit = self.budget.limit
        return self._sign * (math.log(value / limit) if self._logarithmic else (value - limit) / self._scale)

    def _value(self, distance: float) -> float:
        """The value that is so far beyond the limit."""
        limit, signed = self.budget.limit, self._sign * distance
        return limit * math.exp(min(signed, OPEN)) if self._logarithmic else limit + signed * self._scale

    def _end(self, distance: float) -> float | None:
        """The value at a bound, `None` where that side is open."""
        closed = abs(distance) < OPEN if self._logarithmic else math.isfinite(distance)
        return self._value(distance) if closed else None
