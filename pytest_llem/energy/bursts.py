"""What bursts of steady load between quiet times tell of a GPU's energy counter: its lag, ramp and type.

`calibrate` runs the bursts and calls it, the accuracy benchmark on a virtual clock. Pure; docs/energy.md says what can
be told from a counter at all, and tests/unit/energy/test_calibrate.py holds it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, linear_regression, median, stdev

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.series import TickSeries
from pytest_llem.energy.window_edges import EDGE_NS, fit
from pytest_llem.job.measurement import Measured

QUIET_PERIODS = 8
"""Chosen: leaves five steps on settled idle power on each side of a burst, which can tell a drift."""

SETTLE_PERIODS = 2.5
"""Chosen: 250 ms at 100 ms; a lag or a tail of up to so much is found."""

SHORT_BURST_PERIODS = 0.5
"""Chosen: half a period, so that a part-time counter misses some bursts entirely."""

LONG_BURST_PERIODS = 8.0
"""Chosen: five steps on the plateau beyond `SETTLE_PERIODS`."""

PART_TIME_SCATTER = 0.15
"""Chosen: an accumulating counter catches every burst whole, with a scatter of some percent from its brackets; one that
samples a quarter of the time catches half of the short bursts or fewer."""

SETTLED_J = 0.1
"""Chosen: a thousandth of a short window's energy."""

LOST_NS = 30_000_000
"""Chosen: power that took so much longer to rise than to fall would be a ramp beyond any that is known."""

DIP_REL = 0.1
"""Chosen: steady power between two steps stays within some percent of the median; where a share is lost it does not."""


@dataclass(frozen=True)
class _Burst:
    """One burst: its energy above the quiet course, and for a long one its plateau's power and how late both edges are.

    `left_j` has, for the steps soon after the end, their time since then and the energy that had yet to come.
    """

    length_s: float
    total_j: float
    left_j: tuple[tuple[int, float], ...]
    step_w: float | None = None
    rise_s: float = 0.0
    fall_s: float = 0.0


def plan(short: int, long: int, period_s: float, rng: random.Random) -> Iterator[tuple[float, float]]:
    """Lengths of bursts, and of the quiet time after each; that before the first must be `QUIET_PERIODS` as well.

    A random share of a period keeps the bursts from synchronising with the counter.
    """
    for length in [SHORT_BURST_PERIODS] * short + [LONG_BURST_PERIODS] * long:
        yield length * period_s, (QUIET_PERIODS + rng.random()) * period_s


def evaluate(ticks: TickSeries, edges: Sequence[tuple[int, int]], known: Calibration) -> Calibration:
    """A calibration of which the period is known, with what the counter's steps around these bursts show."""
    close = ticks.closely_bracketed
    found = [burst for edge in edges if (burst := _burst(close, *edge, known.period_ns)) is not None]
    long = [(burst, burst.step_w) for burst in found if burst.step_w]
    short = [burst for burst in found if burst.step_w is None]
    if len(long) < 3:
        return known
    step_w = fmean(power for _, power in long)
    rise, fall = _mean([burst.rise_s for burst, _ in long]), _mean([burst.fall_s for burst, _ in long])
    lost = rise.value - fall.value > LOST_NS + rise.uncertainty + fall.uncertainty
    if lost or _dips(ticks, edges, round(SETTLE_PERIODS * known.period_ns)):
        return known._replace(counter_type="lossy", step_w=step_w)
    if len(short) < 4:
        return known
    caught = [burst.total_j / (step_w * burst.length_s) for burst in short]
    if stdev(caught) >= PART_TIME_SCATTER:
        # A share `duty` of each period misses a burst entirely with probability 1 - its length in periods - duty.
        missed = sum(share < 0.1 for share in caught) / len(caught)
        duty = min(1.0, max(0.05, 1 - SHORT_BURST_PERIODS - missed))
        return known._replace(counter_type="part_time", duty=duty, step_w=step_w)
    return known._replace(
        counter_type="accumulating",
        ramp_ns=round(fall.value),
        ramp_uncertainty_ns=round(fall.uncertainty),
        rise_ns=round(rise.value),
        settle_ns=_settled_ns([point for burst in found for point in burst.left_j]),
        step_w=step_w,
    )


def _burst(ticks: TickSeries, start_ns: int, end_ns: int, period_ns: int) -> _Burst | None:
    settle_ns, quiet_ns = round(SETTLE_PERIODS * period_ns), QUIET_PERIODS * period_ns
    before = _between(ticks, start_ns - quiet_ns + settle_ns, start_ns)
    after = _between(ticks, end_ns + settle_ns, end_ns + quiet_ns)
    soon = _between(ticks, end_ns, end_ns + settle_ns)
    if len(before) < 3 or len(after) < 3:
        return None
    first, last = fit(ticks, before, start_ns), fit(ticks, after, end_ns)
    length_s = (end_ns - start_ns) / 1e9
    total_j = last.energy_j - first.energy_j - (first.power_w + last.power_w) / 2 * length_s
    left_j = tuple((ticks.mid_ns[i] - end_ns, _left_j(ticks, i, after)) for i in soon)
    if length_s < period_ns / 1e9:
        return _Burst(length_s, total_j, left_j)
    inside = _between(ticks, start_ns + settle_ns, end_ns)
    if len(inside) < 3:
        return None
    plateau = linear_regression([(ticks.mid_ns[i] - end_ns) / 1e9 for i in inside], [ticks.energy_j[i] for i in inside])
    above_first, above_last = plateau.slope - first.power_w, plateau.slope - last.power_w
    if min(above_first, above_last) <= 0:
        return None
    at_start_j = plateau.intercept - plateau.slope * length_s
    return _Burst(
        length_s,
        total_j,
        left_j,
        (above_first + above_last) / 2,
        (first.energy_j - at_start_j) / above_first,
        (last.energy_j - plateau.intercept) / above_last,
    )


def _between(ticks: TickSeries, start_ns: int, end_ns: int) -> list[int]:
    return [i for i in range(len(ticks)) if start_ns <= ticks.low_ns[i] and ticks.high_ns[i] <= end_ns]


def _left_j(ticks: TickSeries, index: int, quiet: Sequence[int]) -> float:
    """What had yet to come at a step, by the quiet course that follows, less what that leaves uncertain."""
    course = fit(ticks, quiet, ticks.mid_ns[index])
    loose_j = course.uncertainty_j + course.power_w * ticks.half_width_ns(index) / 1e9
    return course.energy_j - ticks.energy_j[index] - loose_j


def _dips(ticks: TickSeries, edges: Sequence[tuple[int, int]], settle_ns: int) -> bool:
    """Whether steady power, of idle or of load, is somewhere far below what it mostly is on that stretch.

    Steps that were seen late count as well, as early or late as their brackets allow.
    """
    stretches = [(start + settle_ns, end) for start, end in edges]
    stretches += [(end + settle_ns, start) for (_, end), (start, _) in pairwise(edges)]
    for since_ns, until_ns in stretches:
        steps = _between(ticks, since_ns, until_ns)
        powers, highest = [], []
        for a, b in pairwise(steps):
            energy_j, apart_ns = ticks.energy_j[b] - ticks.energy_j[a], ticks.mid_ns[b] - ticks.mid_ns[a]
            powers.append(energy_j / apart_ns)
            highest.append(energy_j / max(1.0, apart_ns - ticks.half_width_ns(a) - ticks.half_width_ns(b)))
        if len(powers) >= 3 and min(highest) < (1 - DIP_REL) * median(powers):
            return True
    return False


def _mean(seconds: Sequence[float]) -> Measured:
    """Mean in nanoseconds, not below zero, with its k=2 uncertainty."""
    bound_s = 2 * stdev(seconds) / sqrt(len(seconds)) + EDGE_NS / 1e9
    return Measured(max(0.0, fmean(seconds)) * 1e9, bound_s * 1e9)


def _settled_ns(left_j: Sequence[tuple[int, float]]) -> int | None:
    """From when on nothing was to come any more, after every burst; `None` if that is never seen."""
    ordered = sorted(left_j)
    unsettled = [index for index, (_, left) in enumerate(ordered) if left > SETTLED_J]
    following = unsettled[-1] + 1 if unsettled else 0
    return ordered[following][0] if following < len(ordered) else None
