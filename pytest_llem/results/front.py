"""Which settings lie on the front of two metrics, and how sure that is: on it, possibly on it, or dominated.

The report's charts and its table of answers call it. It is pure: two settings differ on an axis where their 95 %
intervals do not overlap, and nothing else is claimed.

Intervals that do not overlap err on one side in at most 2.5 % of cases, and mostly far less, so that a pair of settings
errs in at most 5 % whichever of both axes tells them apart. To be on the front is to be told apart from each other
setting, which more of them make no easier (Berger, Technometrics 24, 1982, 295-300).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Standing = Literal["on", "possible", "dominated"]
STANDINGS: dict[Standing, str] = {"on": "on the front", "possible": "possibly on it", "dominated": "dominated"}
"""In words, the best first."""


@dataclass(frozen=True)
class Spot:
    """The interval of a setting's figure on one axis, larger being better; infinite bounds are not known."""

    low: float
    high: float

    @classmethod
    def of(cls, bounds: tuple[float | None, float | None], *, higher: bool) -> Spot:
        """The spot of a figure of which higher values are better, or lower ones."""
        low, high = bounds
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        return cls(low, high) if higher else cls(-high, -low)


def standings(x: Sequence[Spot], y: Sequence[Spot], alike: Sequence[Hashable]) -> list[Standing]:
    """How each setting stands against all others.

    Settings of the same `alike`, such as the very same answers, are equal in `y` whatever their intervals say; `None`
    is nobody's equal.
    """
    by_low = sorted(range(len(x)), key=lambda at: -x[at].low)
    lows = [-x[at].low for at in by_low]
    best = [*accumulate((y[at].low for at in by_low), max)]
    of_equals: dict[Hashable, float] = {}
    for one, name in zip(x, alike, strict=True):
        of_equals[name] = max(one.low, of_equals.get(name, -math.inf))
    by_high = sorted(range(len(x)), key=lambda at: -x[at].high)
    highs = [-x[at].high for at in by_high]
    rivals = [*accumulate(([(y[at].high, at)] for at in by_high), lambda some, more: sorted(some + more)[-2:])]

    def standing(at: int) -> Standing:
        ahead = bisect_left(lows, -x[at].high)
        equal = alike[at] is not None and of_equals[alike[at]] > x[at].high
        if equal or (ahead and best[ahead - 1] > y[at].high):
            return "dominated"
        near = rivals[bisect_right(highs, -x[at].low) - 1]
        return "on" if all(high < y[at].low for high, other in near if other != at) else "possible"

    return [standing(at) for at in range(len(x))]


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """The points than which no other is better in one and at least as good in the other; equal points are all on it."""
    found: set[int] = set()
    best, best_x = -math.inf, math.inf
    for at in sorted(range(len(points)), key=lambda at: points[at], reverse=True):
        x, y = points[at]
        if y > best or (y == best and x == best_x):
            found.add(at)
            best, best_x = y, x
    return found
