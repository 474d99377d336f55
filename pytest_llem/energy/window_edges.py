"""The value of a stepping energy counter at a window's edge, between two of its steps: two methods, each with a bound.

`estimators` takes a window's energy from its two edges; tests/unit/energy/test_coverage.py must hold after a change.
Bounds are k=2, brackets uniform (half width over the square root of three; GUM, JCGM 100:2008, 4.3.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from typing import Literal

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.series import TickSeries
from pytest_llem.job.measurement import Measured

Side = Literal["start", "end"]

UNCALIBRATED_TAIL_NS = 30_000_000
"""Chosen: the energy drawn after the end, assumed without calibration; twenty times what is simulated as usual."""

UNCALIBRATED_LAG_NS = 100_000_000
"""Chosen: how old a counter's value may be, assumed without calibration; a period of A100 and H100."""

UNCALIBRATED_SETTLE_NS = 150_000_000
"""Chosen: that lag, and half a period for power to have fallen."""

EDGE_NS = 100_000
"""Chosen: how closely a synchronised edge agrees with the device's own; several times a CUDA synchronisation's
latency."""

MIN_STEP_REL = 0.1
"""Chosen: padding counts as idle only if its power is at least 10 % below the window's."""

MIN_QUIET_STEPS = 3
"""A straight line has two parameters: the third step shows whether it holds."""

MAX_UNSETTLED_STEPS = 2
"""Chosen: 200 ms at 100 ms, in which power may still fall although calibration saw it at rest."""

HIGHER = 2.0
"""Chosen: how far above the low power may have been, by the highest interval: a prefill is shorter than one."""

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
    low_w: float
    high_w: float
    outer: bool = False


@dataclass(frozen=True)
class Lag:
    """How late a counter may show what is drawn, as far as calibration can tell (docs/energy.md).

    At the end of load a counter is late by `tail_ns` at most: by the sensor's own lag, or as power falls slowly, and
    only the latter is drawn after the end. `unseen_ns` is the energy that went missing at the start of load: never
    drawn as power rose slowly, or lost. `step_w` is the power above idle of the load in calibration.
    """

    known: bool
    tail_ns: float = UNCALIBRATED_TAIL_NS
    lag_ns: float = UNCALIBRATED_LAG_NS
    settle_ns: int = UNCALIBRATED_SETTLE_NS
    unseen_ns: float = 0.0
    step_w: float = 0.0


def lag_of(calibration: Calibration | None) -> Lag:
    """What is known of a counter's lag; older calibrations, whose ramp may be a lag, know nothing of it."""
    known = calibration
    if known is None or known.ramp_ns is None or known.rise_ns is None or known.settle_ns is None:
        return Lag(known=False)
    loose_ns = known.ramp_uncertainty_ns or 0
    return Lag(
        known=True,
        tail_ns=known.ramp_ns + loose_ns,
        lag_ns=max(known.ramp_ns, known.rise_ns) + loose_ns,
        settle_ns=known.settle_ns,
        unseen_ns=max(0, known.rise_ns - known.ramp_ns - 2 * loose_ns),
        step_w=known.step_w or 0.0,
    )


def interpolated(ticks: TickSeries, t_ns: int, *, seen: bool) -> Edge:
    """The counter between the two steps that must surround a time, by linear interpolation.

    It is exact where power is steady around the edge.

    The term `shape` bounds the effect of power that changes anywhere between the two counter steps. At a fraction f of
    an interval of mean power p, with power between a low and a high level, the interval's energy above the low,
    p - low, was drawn before the edge at least as far as the rest of the interval cannot hold it, and at most as far
    as the part before it can. The high is not known where it was not `seen` in an interval of its own.
    """
    before, after = ticks.last_before(t_ns), ticks.first_after(t_ns + 1)
    interval_ns = ticks.mid_ns[after] - ticks.mid_ns[before]
    share = (t_ns - ticks.mid_ns[before]) / interval_ns
    power_w = ticks.power_w(before)
    timing_ns = hypot((1 - share) * ticks.half_width_ns(before), share * ticks.half_width_ns(after))
    near = powers = [ticks.power_w(i) for i in range(before - 2, after + 2) if 0 <= i < len(ticks) - 1]
    steps = max(powers) - min(powers) > UNSTEADY_REL * max(powers)
    if steps:
        # Near a power step intervals mix both levels; the levels themselves appear elsewhere in the series.
        powers = [ticks.power_w(i) for i in range(len(ticks) - 1)]
    low_w = min(powers) if len(powers) >= 3 else 0.0
    above_w = power_w - low_w
    # A burst within steady power may be shorter than an interval by any factor.
    room_w = HIGHER * (max(powers) - low_w) if seen and steps else inf
    least_w, most_w = max(0.0, above_w - (1 - share) * room_w), min(above_w, share * room_w)
    swing_w = max(share * above_w - least_w, most_w - share * above_w)
    energy_j = ticks.energy_j[before] + share * (ticks.energy_j[after] - ticks.energy_j[before])
    timing_j = 2 / sqrt(3) * hypot(power_w * timing_ns / 1e9, ticks.resolution_j / 2)
    terms = {"tick_time": timing_j, "shape": swing_w * interval_ns / 1e9}
    return Edge(energy_j, terms, min(near), max(near))


def outer(ticks: TickSeries, t_ns: int, side: Side, quiet_ns: int, lag: Lag) -> QuietFit | None:
    """The counter at an edge with idle padding: the line through the steps in the padding, extrapolated to the edge.

    `quiet_ns` is how long the device was idle on that side. Steps that may still show the work before are left out.
    `None` if too few remain, or if power was not steady.
    """
    settled_ns = lag.settle_ns
    earliest, latest = (t_ns - quiet_ns + settled_ns, t_ns) if side == "start" else (t_ns + settled_ns, t_ns + quiet_ns)
    indices = [i for i in range(len(ticks)) if ticks.low_ns[i] >= earliest and ticks.high_ns[i] <= latest]
    if len(indices) < MIN_QUIET_STEPS:
        return None
    for unsettled in range(1 + max(0, min(MAX_UNSETTLED_STEPS, len(indices) - MIN_CURVED + 1))):
        course = fit(ticks, indices[unsettled:], t_ns)
        if course.quiet:
            return course
    return None


@dataclass(frozen=True)
class QuietFit:
    """The counter at an edge, fitted to the steps of its padding, with its k=2 uncertainty; and the power there.

    `scatter` is the scatter of the steps around the fit in units of what their brackets explain, `first_ns` the time of
    the first of them.
    """

    energy_j: float
    uncertainty_j: float
    power_w: float
    scatter: float
    first_ns: int

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
        return Edge(self.energy_j, terms, self.power_w, self.power_w, outer=True)

    def at_end(self, busy: BusyPower, lag: Lag, rises: int, left_j: float) -> Edge | None:
        """The edge at which work ends, without what was drawn while power fell, after `rises` of the load.

        Where calibration tells how much that can have been, its middle is taken off. The bound reaches to both ends,
        and to `left_j`, what work at its last power does not explain of the energy since the last step.
        """
        edge = self.at_start(busy)
        if edge is None:
            return None
        step_w = max(0.0, max(busy.mean_w, busy.last_w) + busy.spread_w - self.power_w)
        # Clocks that are held up after work draw as much after a small load as after that of calibration.
        most_j = lag.tail_ns * max(step_w, lag.step_w) / 1e9
        unseen_j = rises * lag.unseen_ns * step_w / 1e9
        taken_j = most_j / 2 if lag.known else 0.0
        ramp_j = max(most_j, left_j) - taken_j + unseen_j / 2
        energy_j = edge.energy_j - taken_j + unseen_j / 2
        return replace(edge, energy_j=energy_j, terms={**edge.terms, "ramp": ramp_j})


FLOOR_J = 0.003
"""Chosen: counters state whole millijoules and idle power is never perfectly steady; no step is known better."""

SCATTER_LIMIT = 3.0
"""Chosen: three standard deviations of what the brackets explain; see tests/benchmarks/energy_accuracy.py."""

MIN_CURVED = 5
"""A parabola has three parameters: with five steps two degrees of freedom are left to judge it by."""


def fit(ticks: TickSeries, indices: Sequence[int], edge_ns: int) -> QuietFit:
    """Weighted least squares of energy = a + b t + c t^2, with t from the edge. Needs three steps.

    The drift c is fitted with five steps or more, or if four lie on no straight line. Each step weighs by its bracket,
    a uniform distribution of that width times the power, and by the step in which the counter states energy.
    """
    mean_w = (ticks.energy_j[indices[-1]] - ticks.energy_j[indices[0]]) / (
        (ticks.mid_ns[indices[-1]] - ticks.mid_ns[indices[0]]) / 1e9
    )
    origin_j = ticks.energy_j[indices[0]]
    times = [(ticks.mid_ns[i] - edge_ns) / 1e9 for i in indices]
    values = [ticks.energy_j[i] - origin_j for i in indices]
    floor_j = FLOOR_J + ticks.resolution_j / sqrt(12)
    sigmas = [floor_j + mean_w * ticks.half_width_ns(i) / 1e9 / sqrt(3) for i in indices]
    straight, curved = _solve(times, values, sigmas, 2), _solve(times, values, sigmas, 3)
    apart_j = abs(curved.coefficients[0] - straight.coefficients[0])
    drifts = len(indices) == MIN_CURVED - 1 and straight.scatter > SCATTER_LIMIT
    if len(indices) >= MIN_CURVED or drifts:
        chosen, bound_j = curved, hypot(2 * curved.sigmas[0], apart_j / 2)
    else:
        # Too few steps to show a drift: the two fits differ by as much as it could amount to.
        chosen, bound_j = straight, 2 * straight.sigmas[0] + apart_j
    energy_j, power_w = origin_j + chosen.coefficients[0], chosen.coefficients[1]
    return QuietFit(energy_j, bound_j, power_w, chosen.scatter, ticks.mid_ns[indices[0]])


def steady_power(ticks: TickSeries, indices: Sequence[int]) -> Measured | None:
    """Mean power in watts over these steps; `None` if the steps show that power was not steady."""
    centre_ns = (ticks.mid_ns[indices[0]] + ticks.mid_ns[indices[-1]]) // 2
    course = fit(ticks, indices, centre_ns)
    if not course.quiet:
        return None
    span_s = (ticks.mid_ns[indices[-1]] - ticks.mid_ns[indices[0]]) / 1e9
    mean_w = (ticks.energy_j[indices[-1]] - ticks.energy_j[indices[0]]) / span_s
    edges_s = hypot(*(ticks.half_width_ns(i) / 1e9 for i in (indices[0], indices[-1]))) / sqrt(3)
    return Measured(mean_w, 2 * hypot(mean_w * edges_s, sqrt(2) * FLOOR_J, ticks.resolution_j / sqrt(6)) / span_s)


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
