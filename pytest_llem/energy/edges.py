"""What a stepping energy counter stood at, at an edge between its steps: two ways to tell, each with its bound.

A window's energy is the difference of its two edges. All uncertainties are k=2; brackets count as uniform
distributions (standard deviation: half width over the square root of three; GUM, JCGM 100:2008, 4.3.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot, sqrt
from statistics import fmean, stdev
from typing import Literal

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.series import TickSeries

Side = Literal["start", "end"]

UNCALIBRATED_RAMP_NS = 10_000_000
"""Without calibration power is assumed to follow load within 10 ms."""
SETTLE_RAMPS = 5
"""After so many ramp times less than 1 % of a power step is left."""
EDGE_NS = 100_000
"""A synchronised edge and the device's own edge are taken to agree within 0.1 ms."""
QUIET_SCATTER_REL = 0.1
_UNIFORM = 2 / sqrt(3)


@dataclass(frozen=True)
class Edge:
    """The counter in joules at an edge, the parts of its k=2 uncertainty, and how many steps it rests on."""

    energy_j: float
    terms: Mapping[str, float] = field(default_factory=dict)
    ticks: int = 0
    outer: bool = False


def interpolated(ticks: TickSeries, t_ns: int) -> Edge | None:
    """The counter at a time between two steps, on a straight line; right where power is steady around the edge.

    `shape` bounds what a power step somewhere between the two counter steps would change: the difference of the powers
    around, times f (1 - f) of the interval, which is exact for a step at the edge itself. `None` outside the series.
    """
    before, after = ticks.last_before(t_ns), ticks.first_after(t_ns + 1)
    if before < 0 or after >= len(ticks):
        return None
    interval_ns = ticks.mid_ns[after] - ticks.mid_ns[before]
    share = (t_ns - ticks.mid_ns[before]) / interval_ns
    step_j = ticks.energy_j[after] - ticks.energy_j[before]
    power_w = ticks.power_w(before)
    timing_ns = hypot((1 - share) * ticks.half_width_ns(before), share * ticks.half_width_ns(after))
    powers = [ticks.power_w(i) for i in range(before - 2, after + 2) if 0 <= i < len(ticks) - 1]
    power_step_w = max(powers) - min(powers) if len(powers) >= 3 else power_w
    return Edge(
        energy_j=ticks.energy_j[before] + share * step_j,
        terms={
            "tick_time": _UNIFORM * power_w * timing_ns / 1e9,
            "shape": power_step_w * share * (1 - share) * interval_ns / 1e9,
        },
        ticks=2,
    )


def outer(
    ticks: TickSeries, t_ns: int, side: Side, quiet_ns: int, busy_w: float, known: Calibration | None
) -> Edge | None:
    """The counter at an edge with a quiet side: from the steps in the quiet time, whose power is carried to the edge.

    `quiet_ns` is how long the device was idle on that side and `busy_w` the power on the other. After an end, power
    still decays: what it adds until the next step is taken off by the calibrated ramp. `None` when the quiet time
    holds too few steps, or is not quiet (its power scatters, or is hardly below `busy_w`).
    """
    ramp_ns = known.ramp_ns if known and known.ramp_ns is not None else None
    settle_ns = SETTLE_RAMPS * (ramp_ns if ramp_ns is not None else UNCALIBRATED_RAMP_NS)
    if side == "start":
        indices = [
            i for i in range(len(ticks)) if ticks.low_ns[i] >= t_ns - quiet_ns + settle_ns and ticks.high_ns[i] <= t_ns
        ]
    else:
        indices = [
            i for i in range(len(ticks)) if ticks.low_ns[i] >= t_ns + settle_ns and ticks.high_ns[i] <= t_ns + quiet_ns
        ]
    if len(indices) < 3:
        return None
    nearest = indices[-1] if side == "start" else indices[0]
    line = _QuietLine.fit(ticks, indices)
    step_w = busy_w - line.at(t_ns)
    if step_w <= QUIET_SCATTER_REL * busy_w or line.scatter_w > max(QUIET_SCATTER_REL * step_w, 3 * line.timing_w):
        return None
    distance_s = abs(t_ns - ticks.mid_ns[nearest]) / 1e9
    gap_j = distance_s * line.at((t_ns + ticks.mid_ns[nearest]) // 2)
    terms = {
        "tick_time": _UNIFORM * line.at(ticks.mid_ns[nearest]) * ticks.half_width_ns(nearest) / 1e9,
        "quiet_power": line.uncertainty_w * distance_s,
        "edge": step_w * EDGE_NS / 1e9,
    }
    if side == "start":
        return Edge(ticks.energy_j[nearest] + gap_j, terms, len(indices), outer=True)
    tail_j = step_w * (ramp_ns or 0) / 1e9
    bound_ns = known.ramp_uncertainty_ns if known and known.ramp_uncertainty_ns is not None else UNCALIBRATED_RAMP_NS
    terms["ramp"] = step_w * bound_ns / 1e9
    return Edge(ticks.energy_j[nearest] - gap_j - tail_j, terms, len(indices), outer=True)


@dataclass(frozen=True)
class _QuietLine:
    """Power over the quiet time as a straight line through the intervals' mean powers."""

    origin_ns: float
    power_w: float
    slope_w_per_s: float
    scatter_w: float
    timing_w: float
    uncertainty_w: float

    def at(self, t_ns: float) -> float:
        return max(0.0, self.power_w + self.slope_w_per_s * (t_ns - self.origin_ns) / 1e9)

    @classmethod
    def fit(cls, ticks: TickSeries, indices: list[int]) -> _QuietLine:
        """Least squares with a slope from three intervals on, where the slope is more than its own noise."""
        times = [(ticks.mid_ns[i] + ticks.mid_ns[i + 1]) / 2 for i in indices[:-1]]
        powers = [ticks.power_w(i) for i in indices[:-1]]
        origin = fmean(times)
        mean = fmean(powers)
        timing_w = max(
            mean * hypot(ticks.half_width_ns(i), ticks.half_width_ns(i + 1)) / (ticks.mid_ns[i + 1] - ticks.mid_ns[i])
            for i in indices[:-1]
        ) / sqrt(3)
        flat_scatter = stdev(powers) if len(powers) > 1 else timing_w
        slope = scatter = 0.0
        if len(powers) >= 3:
            seconds = [(t - origin) / 1e9 for t in times]
            spread = sum(s * s for s in seconds)
            slope = sum(s * (p - mean) for s, p in zip(seconds, powers, strict=True)) / spread
            rest = [p - mean - slope * s for s, p in zip(seconds, powers, strict=True)]
            scatter = sqrt(sum(r * r for r in rest) / (len(rest) - 2))
            if abs(slope) < 2 * max(scatter, timing_w) / sqrt(spread):
                slope, scatter = 0.0, flat_scatter
        else:
            scatter = flat_scatter
        noise = max(scatter, timing_w)
        span_s = (times[-1] - times[0]) / 1e9
        return cls(origin, mean, slope, scatter, timing_w, 2 * noise / sqrt(len(powers)) + abs(slope) * span_s / 2)
