"""The value of a stepping energy counter at a window's edge, between two of its steps: two methods, each with a bound.

`estimators` takes a window's energy from its two edges; tests/unit/energy/test_coverage.py must hold after a change.
Bounds are k=2, brackets uniform (half width over the square root of three; GUM, JCGM 100:2008, 4.3.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Literal

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.series import TickSeries
from pytest_llem.job.measurement import Measured

Side = Literal["start", "end"]

UNCALIBRATED_RAMP_NS = 10_000_000
"""Chosen: several times the 1.5 ms that tests/benchmarks/energy_accuracy.py simulates; assumed without calibration."""

SETTLE_RAMPS = 5
"""After five time constants less than 1 % of a power step is left (exp(-5) = 0.7 %)."""

EDGE_NS = 100_000
"""Chosen: how closely a synchronised edge agrees with the device's own; several times a CUDA synchronisation's
latency."""

MIN_STEP_REL = 0.1
"""Chosen: padding counts as idle only if its power is at least 10 % below the window's."""

MIN_QUIET_STEPS = 3
"""A straight line has two parameters: the third step shows whether it holds."""

LEVEL_REL = 0.1
"""Chosen: how far the levels of a power step may lie beyond the interval means that show them (10 % of the swing)."""

UNSTEADY_REL = 0.2
"""Chosen: above the ripple of decoding (14 % in tests/benchmarks/energy_accuracy_cases.py), below any step of load."""


@dataclass(frozen=True)
class BusyPower:
    """Power inside a window in watts: its mean, that towards the end, and how much it varies."""

    mean_w: float
    last_w: float
    spread_w: float


@dataclass(frozen=True)
class Edge:
    """The counter in joules at an edge and the parts of its k=2 uncertainty; `outer` if it rests on idle padding."""

    energy_j: float
    terms: Mapping[str, float]
    outer: bool = False


def interpolated(ticks: TickSeries, t_ns: int, calibration: Calibration | None, *, seen: bool) -> Edge:
    """The counter between the two steps that must surround a time, by linear interpolation.

    It is exact where power is steady around the edge.

    The term `shape` bounds the effect of a power step anywhere between the two counter steps. At a fraction f of an
    interval of mean power p, with power nearby between a low and a high, it is (high - low) f (1 - f) of the interval:
    exact for a step at the edge itself, and valid if the high was `seen` in an interval of its own. Otherwise all power
    above the low may have been drawn on one side: (p - low) max(f, 1 - f). Power follows such a step with the delay of
    the ramp.
    """
    before, after = ticks.last_before(t_ns), ticks.first_after(t_ns + 1)
    interval_ns = ticks.mid_ns[after] - ticks.mid_ns[before]
    share = (t_ns - ticks.mid_ns[before]) / interval_ns
    power_w = ticks.power_w(before)
    timing_ns = hypot((1 - share) * ticks.half_width_ns(before), share * ticks.half_width_ns(after))
    powers = [ticks.power_w(i) for i in range(before - 2, after + 2) if 0 <= i < len(ticks) - 1]
    level, ramp_j = 1.0, 0.0
    if max(powers) - min(powers) > UNSTEADY_REL * max(powers):
        ramp_j = (max(powers) - min(powers)) * _ramp_ns(calibration) / 1e9
        level += LEVEL_REL
        # Near a power step intervals mix both levels; the levels themselves appear elsewhere in the series.
        powers = [ticks.power_w(i) for i in range(len(ticks) - 1)]
    low_w = min(powers) if len(powers) >= 3 else 0.0
    swing_w = (max(powers) - low_w) * share * (1 - share) if seen else (power_w - low_w) * max(share, 1 - share)
    energy_j = ticks.energy_j[before] + share * (ticks.energy_j[after] - ticks.energy_j[before])
    shape_j = level * swing_w * interval_ns / 1e9 + ramp_j
    return Edge(energy_j, {"tick_time": 2 / sqrt(3) * power_w * timing_ns / 1e9, "shape": shape_j})


def outer(ticks: TickSeries, t_ns: int, side: Side, quiet_ns: int, calibration: Calibration | None) -> QuietFit | None:
    """The counter at an edge with idle padding: the line through the steps in the padding, extrapolated to the edge.

    `quiet_ns` is how long the device was idle on that side. Steps that may lie on the ramp after work are left out.
    `None` if too few remain, or if power was not steady.
    """
    settle_ns = SETTLE_RAMPS * _ramp_ns(calibration)
    earliest, latest = (t_ns - quiet_ns + settle_ns, t_ns) if side == "start" else (t_ns + settle_ns, t_ns + quiet_ns)
    indices = [i for i in range(len(ticks)) if ticks.low_ns[i] >= earliest and ticks.high_ns[i] <= latest]
    if len(indices) < MIN_QUIET_STEPS:
        return None
    course = fit(ticks, indices, t_ns)
    return course if course.quiet else None


@dataclass(frozen=True)
class QuietFit:
    """The counter at an edge, fitted to the steps of its padding, with its k=2 uncertainty; and the power there.

    `scatter` is the scatter of the steps around the fit in units of what their brackets explain.
    """

    energy_j: float
    uncertainty_j: float
    power_w: float
    scatter: float

    @property
    def quiet(self) -> bool:
        """Whether power was steady or drifted evenly."""
        return self.scatter <= SCATTER_LIMIT and self.power_w >= 0

    def at_start(self, busy: BusyPower) -> Edge | None:
        """The edge at which work begins; `None` if the padding draws nearly as much as the work."""
        step_w = busy.mean_w - self.power_w
        if step_w <= MIN_STEP_REL * busy.mean_w:
            return None
        terms = {"quiet": self.uncertainty_j, "edge": step_w * EDGE_NS / 1e9}
        return Edge(self.energy_j, terms, outer=True)

    def at_end(self, busy: BusyPower, calibration: Calibration | None) -> Edge | None:
        """The edge at which work ends, without the energy drawn while power fell (by the calibrated ramp)."""
        edge = self.at_start(busy)
        if edge is None:
            return None
        tail_s = (calibration.ramp_ns or 0) / 1e9 if calibration else 0.0
        uncertain_ns = UNCALIBRATED_RAMP_NS
        if calibration is not None and calibration.ramp_uncertainty_ns is not None:
            uncertain_ns = calibration.ramp_uncertainty_ns
        step_w = max(0.0, busy.last_w - self.power_w)
        ramp_j = hypot(step_w * uncertain_ns / 1e9, busy.spread_w * tail_s)
        return Edge(edge.energy_j - step_w * tail_s, {**edge.terms, "ramp": ramp_j}, outer=True)


FLOOR_J = 0.003
"""Chosen: counters state whole millijoules and idle power is never perfectly steady; no step is known better."""

SCATTER_LIMIT = 3.0
"""Chosen: three standard deviations of what the brackets explain; see tests/benchmarks/energy_accuracy.py."""

MIN_CURVED = 5
"""A parabola has three parameters: with five steps two degrees of freedom are left to judge it by."""


def fit(ticks: TickSeries, indices: Sequence[int], edge_ns: int) -> QuietFit:
    """Weighted least squares of energy = a + b t + c t^2, with t from the edge. Needs three steps.

    The drift c is fitted with five steps or more, or if four lie on no straight line. Each step weighs by its bracket:
    a uniform distribution of that width, times the power.
    """
    mean_w = (ticks.energy_j[indices[-1]] - ticks.energy_j[indices[0]]) / (
        (ticks.mid_ns[indices[-1]] - ticks.mid_ns[indices[0]]) / 1e9
    )
    origin_j = ticks.energy_j[indices[0]]
    times = [(ticks.mid_ns[i] - edge_ns) / 1e9 for i in indices]
    values = [ticks.energy_j[i] - origin_j for i in indices]
    sigmas = [FLOOR_J + mean_w * ticks.half_width_ns(i) / 1e9 / sqrt(3) for i in indices]
    straight, curved = _solve(times, values, sigmas, 2), _solve(times, values, sigmas, 3)
    apart_j = abs(curved.coefficients[0] - straight.coefficients[0])
    drifts = len(indices) == MIN_CURVED - 1 and straight.scatter > SCATTER_LIMIT
    if len(indices) >= MIN_CURVED or drifts:
        chosen, bound_j = curved, hypot(2 * curved.sigmas[0], apart_j / 2)
    else:
        # Too few steps to show a drift: the two fits differ by as much as it could amount to.
        chosen, bound_j = straight, 2 * straight.sigmas[0] + apart_j
    energy_j, power_w = origin_j + chosen.coefficients[0], chosen.coefficients[1]
    return QuietFit(energy_j, bound_j, power_w, chosen.scatter)


def steady_power(ticks: TickSeries, indices: Sequence[int]) -> Measured | None:
    """Mean power in watts over these steps; `None` if the steps show that power was not steady."""
    centre_ns = (ticks.mid_ns[indices[0]] + ticks.mid_ns[indices[-1]]) // 2
    course = fit(ticks, indices, centre_ns)
    if not course.quiet:
        return None
    span_s = (ticks.mid_ns[indices[-1]] - ticks.mid_ns[indices[0]]) / 1e9
    mean_w = (ticks.energy_j[indices[-1]] - ticks.energy_j[indices[0]]) / span_s
    edges_s = hypot(*(ticks.half_width_ns(i) / 1e9 for i in (indices[0], indices[-1]))) / sqrt(3)
    return Measured(mean_w, 2 * hypot(mean_w * edges_s, sqrt(2) * FLOOR_J) / span_s)


def _ramp_ns(calibration: Calibration | None) -> int:
    if calibration is None or calibration.ramp_ns is None:
        return UNCALIBRATED_RAMP_NS
    return calibration.ramp_ns


@dataclass(frozen=True)
class _Solution:
    coefficients: tuple[float, ...]
    sigmas: tuple[float, ...]
    scatter: float


def _solve(times: Sequence[float], values: Sequence[float], sigmas: Sequence[float], order: int) -> _Solution:
    """Weighted polynomial fit; standard deviations grow with the scatter where that exceeds the brackets."""
    weights = [1 / sigma**2 for sigma in sigmas]
    normal = [
        [sum(w * t ** (row + column) for w, t in zip(weights, times, strict=True)) for column in range(order)]
        for row in range(order)
    ]
    right = [sum(w * t**row * v for w, t, v in zip(weights, times, values, strict=True)) for row in range(order)]
    inverse = _inverted(normal)
    coefficients = [sum(a * b for a, b in zip(row, right, strict=True)) for row in inverse]
    residuals = [
        (v - sum(c * t**power for power, c in enumerate(coefficients))) / sigma
        for t, v, sigma in zip(times, values, sigmas, strict=True)
    ]
    freedom = len(times) - order
    scatter = sqrt(sum(r * r for r in residuals) / freedom) if freedom > 0 else 1.0
    grown = max(1.0, scatter)
    return _Solution(tuple(coefficients), tuple(grown * sqrt(max(0.0, inverse[i][i])) for i in range(order)), scatter)


def _inverted(matrix: list[list[float]]) -> list[list[float]]:
    """Gauss-Jordan with pivoting, for two or three rows."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]
