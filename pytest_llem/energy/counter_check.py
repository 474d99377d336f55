"""Compares a GPU's energy counter with the same board's power readings: two ways to one energy, which must agree.

`validity` judges windows by it, `gpu_meter` reports the ratio. Boards exist whose counter states a part of what they
draw (zeus issue 181, amdsmi issue 38). What the readings' own scatter explains must never be blamed on the counter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, sqrt
from statistics import correlation

from pytest_llem.energy.estimators import MIN_RESOLUTION_W
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import TickSeries
from pytest_llem.job.measurement import Window

MIN_INTERVALS = 15
"""Chosen: from fewer intervals neither their scatter nor its correlation is known; an idle window of 2 s has 19."""

UNLOCKED_INTERVALS = 50
"""Chosen: over 5 s a load whose steps keep pace with power readings that see 25 of 100 ms (arXiv 2312.02741) drifts
past them, unless both periods agree to a thousandth."""

LOCKED_REL = 0.15
"""Chosen: by so much readings may be off that see the same part of every step in fewer intervals: a fifth of the time
at half the power is seen either not at all or in every reading."""

COVERAGE = 3.0
"""Chosen: three standard deviations, so that a right counter is refused less than once in 300 windows."""

MAX_CORRELATION = 0.95
"""Chosen: above it, so few intervals as a window has say nothing about their scatter."""


@dataclass(frozen=True)
class Ratio:
    """Energy by the counter over energy by the power readings, with how far right ones may differ (relative)."""

    value: float
    explained: float
    intervals: int

    def disagrees(self, limit: float) -> bool:
        """Whether the two differ by more than `limit` beyond what is explained."""
        return abs(self.value - 1) > limit + self.explained


def counter_power_ratio(
    ticks: TickSeries | None, samples: Sequence[Sample], windows: Sequence[Window] | None = None
) -> Ratio | None:
    """The ratio over the whole intervals of the counter inside the windows, or over all (`None`).

    `None` where either was not read. Power runs straight from one reading to the next. A reading may be late or look at
    a part of the time: intervals then differ to both sides, so that the scatter of the differences about their common
    ratio bounds their sum (ratio estimator; first-order autocorrelation widens it).
    """
    readings = sorted((s.t_ns, s.power_w) for s in samples if s.power_w is not None)
    if ticks is None or len(readings) < 2:
        return None
    times_ns = [t_ns for t_ns, _ in readings]
    power_up_to_j = _integral(readings)
    pairs: list[tuple[float, float]] = []
    seconds = 0.0
    for index, (start_ns, end_ns) in enumerate(pairwise(ticks.mid_ns)):
        within = windows is None or any(w.start_ns <= start_ns and end_ns <= w.end_ns for w in windows)
        if not within or ticks.reset_within(start_ns, end_ns) or not times_ns[0] <= start_ns < end_ns <= times_ns[-1]:
            continue
        seconds += (end_ns - start_ns) / 1e9
        counter_j = ticks.energy_j[index + 1] - ticks.energy_j[index]
        pairs.append((counter_j, power_up_to_j(end_ns) - power_up_to_j(start_ns)))
    total_j = sum(power_j for _, power_j in pairs)
    if total_j <= 0:
        return None
    value = sum(counter_j for counter_j, _ in pairs) / total_j
    rounding = MIN_RESOLUTION_W / sqrt(3) * seconds / total_j
    return Ratio(value, hypot(_explained(pairs, value, total_j), rounding), len(pairs))


def _integral(readings: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    """Joules up to a time within the readings, whose power runs straight from one to the next."""
    times_ns = [t_ns for t_ns, _ in readings]
    sums = [0.0]
    for (before_ns, before_w), (after_ns, after_w) in pairwise(readings):
        sums.append(sums[-1] + (before_w + after_w) / 2 * (after_ns - before_ns) / 1e9)

    def up_to(t_ns: int) -> float:
        index = min(bisect_right(times_ns, t_ns) - 1, len(readings) - 2)
        (before_ns, before_w), (after_ns, after_w) = readings[index], readings[index + 1]
        share = (t_ns - before_ns) / max(1, after_ns - before_ns)
        return sums[index] + (before_w + share * (after_w - before_w) / 2) * (t_ns - before_ns) / 1e9

    return up_to


def _explained(pairs: Sequence[tuple[float, float]], ratio: float, total_j: float) -> float:
    if len(pairs) < MIN_INTERVALS:
        return inf
    left = [counter_j - ratio * power_j for counter_j, power_j in pairs]
    square = sum(value * value for value in left) * len(left) / (len(left) - 1)
    moving = len(set(left[:-1])) > 1 and len(set(left[1:])) > 1
    together = min(MAX_CORRELATION, max(0.0, correlation(left[:-1], left[1:]))) if moving else 0.0
    return COVERAGE * sqrt(square * (1 + together) / (1 - together)) / total_j
