"""Estimates a device's energy in one window by the best method that its readings support.

`gpu_meter` calls it for every device and window. docs/energy.md describes the methods and the terms of the
uncertainty; tests/unit/energy/test_coverage.py holds that the bounds cover, so no constant changes without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import cos, hypot, pi, sin, sqrt
from statistics import fmean, stdev

from pytest_llem.energy import window_edges as edges
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.protocol import EnergyEstimate, expanded
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import TickSeries
from pytest_llem.job.measurement import Window

PART_TIME_DUTY = 0.25
"""Share of each period that the power sensors of A100 and H100 sample (arXiv 2312.02741), assumed without
calibration."""

AVERAGING_S = {"instant": 0.025, "average": 1.0}
"""What one NVML power reading is a mean over: 25 ms on A100 and H100 (arXiv 2312.02741), and 1 s for
`nvmlDeviceGetPowerUsage` on Ampere and newer except GA100 (NVML documentation)."""

UPDATE_NS = 100_000_000
"""Period at which A100 and H100 update their power (arXiv 2312.02741); what is read between is the same reading."""

SEEN_INTERVALS = 3
"""Chosen: with so many whole intervals inside a window, at least one shows its highest power unmixed with the
edges'."""

MIN_STEADY_STEPS = 5
"""Chosen: as many as `window_edges.fit` needs to tell a drift from a straight course."""

MIN_RESOLUTION_W = 1.0
"""Chosen: power readings are taken to be rounded to 1 W at least, also where they show no step or a smaller one."""

MIN_DISTINCT = 5
"""Chosen: the differences of fewer distinct power readings are those of the load, not of the sensor."""

SAME_LOAD_REL = 0.2
"""Chosen: intervals around a window count as the same load while their power is within 20 % of that inside."""

LAST_INTERVALS = 3
"""Chosen: how many show the power towards the end; decoding draws more as contexts grow, over seconds."""

MEAN_SPREAD_REL = 0.2
"""Chosen: how much power at a window's end may differ from its mean where neither was seen separately."""

RIPPLE_REL = 0.35
"""Chosen: how far power may swing around its mean within an engine's step, twice what decoding is simulated with."""

ASSUMED_STEP_S = 0.025
"""Chosen: an engine's step where it is not known; decoding takes 10 to 40 ms for a token."""

POSSIBLE_STEPS_S = (0.01, 0.04)
"""Chosen: the same, where the worst of them counts."""

STUDENT = (13.97, 4.53, 3.31, 2.87, 2.65, 2.52, 2.43, 2.37, 2.32, 2.28, 2.25)
"""Student's t at 95.45 % for 1, 2, ... degrees of freedom (JCGM 100:2008, table G.2); the last one for all more."""


def from_counter(ticks: TickSeries, window: Window, calibration: Calibration | None) -> EnergyEstimate | None:
    """The window's energy from counter steps; `None` if they do not surround it or the counter was reset.

    With idle padding on both sides the method is `counter_outer_edge`; otherwise the counter is interpolated at the
    edges (`counter_interpolated`), or, where the steps around an edge were not bracketed, it is the difference of the
    readings outside (`counter_difference`).
    """
    if window.end_ns <= window.start_ns:
        return None
    close = ticks.closely_bracketed
    if not _surround(close, window):
        close = ticks
    if not _surround(close, window):
        return None
    before, after = close.last_before(window.start_ns), close.first_after(window.end_ns + 1)
    if ticks.reset_within(close.mid_ns[before], close.mid_ns[after]):
        return None
    lag = edges.lag_of(calibration)
    start, end = _edges(ticks, close, window, lag)
    terms = {name: hypot(start.terms.get(name, 0.0), end.terms.get(name, 0.0)) for name in {**start.terms, **end.terms}}
    energy = end.energy_j - start.energy_j
    if "shape" in terms:
        # A load that begins and ends at the edges errs to the same side at both.
        terms["shape"] = start.terms.get("shape", 0.0) + end.terms.get("shape", 0.0)
    # A late counter moves both edges: what it moves in at one, in place of what it moves out at the other.
    apart_w = max(start.high_w, end.high_w) - min(start.low_w, end.low_w)
    terms["ramp"] = terms.get("ramp", 0.0) + apart_w * lag.lag_ns / 1e9
    terms.update(_counter_terms(close, window, calibration, energy, quiet=start.outer and end.outer))
    name = "counter_outer_edge" if start.outer and end.outer else "counter_interpolated"
    if not (start.outer or end.outer) and _unbracketed(close, before, after):
        name = "counter_difference"
    return EnergyEstimate(energy, expanded(terms), name, max(2, after - before + 1), terms)


def from_steady_counter(ticks: TickSeries, window: Window) -> EnergyEstimate | None:
    """The energy of a window of steady power, such as idle: mean power between the steps inside, times its length.

    Work that borders on the window has no influence. `None` with fewer than five steps, or where power was not steady.
    """
    close = ticks.closely_bracketed
    inside = [i for i in range(len(close)) if window.start_ns <= close.low_ns[i] and close.high_ns[i] <= window.end_ns]
    if len(inside) < MIN_STEADY_STEPS or ticks.reset_within(window.start_ns, window.end_ns):
        return None
    power = edges.steady_power(close, inside)
    if power is None:
        return None
    energy_j, bound_j = power.value * window.duration_s, power.uncertainty * window.duration_s
    return EnergyEstimate(energy_j, bound_j, "counter_steady", len(inside), {"tick_time": bound_j})


def from_power(samples: Sequence[Sample], window: Window, averaging_s: float) -> EnergyEstimate | None:
    """The window's energy as the time integral of power readings, each a mean over the `averaging_s` before it.

    `averaging` bounds what the mean hides at the two edges, `sampling` what may happen between two readings, by how
    they scatter, `aliasing` what happens in step with them, and `resolution` the rounding that steady readings share
    (uniform, half a step, k=2). `None` if the readings do not surround the window.
    """
    series = [(sample.t_ns, sample.power_w) for sample in samples if sample.power_w is not None]
    first = max((i for i, (t, _) in enumerate(series) if t <= window.start_ns), default=None)
    last = min((i for i, (t, _) in enumerate(series) if t >= window.end_ns), default=None)
    if first is None or last is None or last <= first:
        return None
    energy = 0.0
    steps: list[float] = []
    for (t0, p0), (t1, p1) in zip(series[first:last], series[first + 1 : last + 1], strict=True):
        low, high = max(t0, window.start_ns), min(t1, window.end_ns)
        if high > low:
            slope = (p1 - p0) / (t1 - t0)
            energy += (high - low) / 1e9 * (p0 + slope * ((low + high) / 2 - t0))
            steps.append(abs(p1 - p0) * max(UPDATE_NS, t1 - t0) / 1e9)
    powers = [power for _, power in series[max(0, first - 1) : last + 2]]
    inside_w = [power for _, power in series[first + 1 : last]]
    updates_ns = range(window.start_ns, window.end_ns, UPDATE_NS)
    swing_w = max(powers) - min(powers)
    interval_s = max((b[0] - a[0]) / 1e9 for a, b in zip(series[first:last], series[first + 1 : last + 1], strict=True))
    terms = {
        "averaging": sqrt(2) * swing_w * averaging_s,
        # The difference of two has twice the variance of one.
        "sampling": 2 / sqrt(2) * hypot(*steps) + sqrt(2) * swing_w * interval_s / 2,
        "aliasing": window.duration_s * _aliased_w(updates_ns, window, UPDATE_NS / 1e9, averaging_s, inside_w, powers),
        "resolution": _resolution_w([power for _, power in series]) / sqrt(3) * window.duration_s,
    }
    return EnergyEstimate(energy, hypot(*terms.values()), "power_integral", last - first + 1, terms)


def _resolution_w(powers: Sequence[float]) -> float:
    """The step in which a sensor states power: the smallest difference of its readings, if there are enough."""
    distinct = sorted(set(powers))
    if len(distinct) < MIN_DISTINCT:
        return MIN_RESOLUTION_W
    return max(MIN_RESOLUTION_W, min(b - a for a, b in pairwise(distinct)))


def _counter_terms(
    ticks: TickSeries, window: Window, calibration: Calibration | None, energy_j: float, *, quiet: bool
) -> dict[str, float]:
    """The counter's own errors: load that changes faster than it steps, and time that it does not sample.

    The scatter of the steps inside the window shows how much of the load's ripple they catch by chance. An accumulating
    counter misplaces that at the two edges only; a part-time counter does in every step. What rises and falls within
    the engine's steps shows in none: a sine of `RIPPLE_REL` is interpolated with that over pi of a step at both edges
    together (k=2).

    Where power steps at an edge, a part-time counter takes either all or nothing of the interval for it: sampling a
    share d of a period T from its fraction g on, it errs by -(1 - g - d) T to g T times the step, at the two edges with
    opposite signs, so by (1 - d) T times the greater step at most in both together. It may miss a window without a
    whole interval altogether, and bursts that show elsewhere."""
    first, last = ticks.first_after(window.start_ns), ticks.last_before(window.end_ns)
    powers = [ticks.power_w(i) for i in range(first, last)]
    period_s = (ticks.period_ns or 0.0) / 1e9
    part_time = calibration is None or calibration.counter_type != "accumulating"
    # Calibration finds it to a quarter: see tests/unit/energy/test_calibrate.py.
    duty = min(PART_TIME_DUTY, (calibration.duty if calibration is not None else None) or PART_TIME_DUTY)
    terms: dict[str, float] = {}
    if not quiet:
        # The same load continues outside: more intervals show its ripple better.
        inside = fmean(powers) if powers else ticks.power_w(ticks.last_before(window.start_ns))
        around = [i for i in (*range(first - 3, first), *range(last, last + 3)) if 0 <= i < len(ticks) - 1]
        powers += [p for p in map(ticks.power_w, around) if abs(p - inside) < SAME_LOAD_REL * inside]
        terms["ripple"] = RIPPLE_REL * inside * (window.step_s or ASSUMED_STEP_S) / pi
    if len(powers) >= 2 and (part_time or not quiet):
        repeats = sqrt(window.duration_s / period_s) if part_time else 1.0
        # The scatter of few steps is poorly known, but no more than the whole swing can be misplaced at an edge.
        swing_w = min(expanded_scatter(len(powers)) * 2 * stdev(powers), sqrt(2) * (max(powers) - min(powers)))
        terms["ripple"] = hypot(terms.get("ripple", 0.0), swing_w * period_s * repeats)
    if part_time:
        before, after = ticks.last_before(window.start_ns), ticks.first_after(window.end_ns)
        everywhere = [ticks.power_w(i) for i in range(len(ticks) - 1)]
        outside = [ticks.power_w(i) for i in (before - 1, after) if 0 <= i < len(ticks) - 1]
        inside_w = [ticks.power_w(i) for i in range(first, last)]
        step_w = max((abs(a - b) for a in inside_w for b in (*outside, max(everywhere))), default=0.0)
        terms["counter_type"] = step_w * period_s * (1 - duty) if inside_w else abs(energy_j)
        terms["aliasing"] = window.duration_s * _aliased_w(
            ticks.mid_ns[first : last + 1], window, period_s, duty * period_s, inside_w, everywhere
        )
    return terms


def expanded_scatter(intervals: int) -> float:
    """By how much the k=2 bound grows where a standard deviation is known from so few intervals."""
    return STUDENT[min(intervals - 1, len(STUDENT)) - 1] / 2


def _aliased_w(
    steps_ns: Sequence[int],
    window: Window,
    period_s: float,
    sampled_s: float,
    inside_w: Sequence[float],
    everywhere_w: Sequence[float],
) -> float:
    """How far the mean over `sampled_s` before each step may lie from the mean power of a load that repeats itself.

    It is the share of each of the load's harmonics that the steps, by how they fall on its period, do not average out,
    times the harmonic's amplitude: a square wave of the highest power seen for repeats, a sine of `RIPPLE_REL` for the
    engine's steps; each smoothed by the sampled time. Steps that an engine does not tell may divide the counter's
    period, where they show least.
    """
    told = [window.step_s] if window.step_s is not None else []
    if window.repeats and not told:
        told = [
            step_s
            for order in range(1, 100)
            if POSSIBLE_STEPS_S[0] <= (step_s := period_s / order) <= POSSIBLE_STEPS_S[1]
        ]

    def missed(load_s: float) -> float:
        total = 0.0
        for order in (1, 2, 3):
            turn = 2 * pi * order / load_s
            phases = [turn * (t - window.start_ns) / 1e9 for t in steps_ns]
            uneven = hypot(fmean(map(cos, phases)), fmean(map(sin, phases))) if phases else 1.0
            half = turn * sampled_s / 2
            total = hypot(total, uneven / order * abs(sin(half) / half))
        return total

    repeats = window.repeats or 1
    of_repeats_w = 2 / pi * max(everywhere_w) * missed(window.duration_s / repeats) if repeats > 1 else 0.0
    # The mean inside may itself be low by as much.
    amplitude_w = RIPPLE_REL / (1 - RIPPLE_REL) * fmean(inside_w) if inside_w else 0.0
    return hypot(of_repeats_w, amplitude_w * max(map(missed, told), default=0.0))


def _surround(ticks: TickSeries, window: Window) -> bool:
    return ticks.last_before(window.start_ns) >= 0 and ticks.first_after(window.end_ns + 1) < len(ticks)


def _edges(ticks: TickSeries, close: TickSeries, window: Window, lag: edges.Lag) -> tuple[edges.Edge, edges.Edge]:
    """Both edges, each from its idle padding where that proves steady, else interpolated between close steps."""
    seen = close.last_before(window.end_ns) - close.first_after(window.start_ns) >= SEEN_INTERVALS
    start = edges.interpolated(close, window.start_ns, seen=seen)
    end = edges.interpolated(close, window.end_ns, seen=seen)
    before = after = None
    if window.quiet_before_s is not None:
        before = edges.outer(ticks, window.start_ns, "start", round(window.quiet_before_s * 1e9), lag)
    if window.quiet_after_s is not None:
        after = edges.outer(ticks, window.end_ns, "end", round(window.quiet_after_s * 1e9), lag)
    first_j = before.energy_j if before else start.energy_j
    last_j = after.energy_j if after else end.energy_j
    busy = _busy_power(close, window, (last_j - first_j) / window.duration_s)
    if before is not None:
        start = before.at_start(busy) or start
    if after is not None:
        left_j = _left_j(close, window, first_j, after)
        end = after.at_end(busy, lag, window.repeats or 1, left_j) or end
    return start, end


def _left_j(ticks: TickSeries, window: Window, start_j: float, after: edges.QuietFit) -> float:
    """What may have been drawn after the end although it is counted as drawn before: held clocks, or other work.

    It is what the energy since the last step inside exceeds the work by, at the lowest power of the last intervals; but
    no more than the highest power could draw until the counter shows idle power.
    """
    first, last = ticks.first_after(window.start_ns), ticks.last_before(window.end_ns)
    powers = [ticks.power_w(i) for i in range(first, last)]
    since_ns, since_j = (ticks.mid_ns[last], ticks.energy_j[last]) if last >= first else (window.start_ns, start_j)
    drawn_j, seconds = after.energy_j - since_j, (window.end_ns - since_ns) / 1e9
    lowest_w = min(powers[-LAST_INTERVALS:], default=after.power_w)
    highest_w = max([*powers, drawn_j / max(seconds, 1e-3)])
    ripple_j = RIPPLE_REL * lowest_w * (window.step_s or ASSUMED_STEP_S) / pi
    possible_j = (highest_w - after.power_w) * (after.first_ns - window.end_ns) / 1e9
    return max(0.0, min(drawn_j - lowest_w * seconds + ripple_j, possible_j))


def _busy_power(ticks: TickSeries, window: Window, mean_w: float) -> edges.BusyPower:
    """Power inside a window from the intervals that lie in it whole, else from its mean."""
    first, last = ticks.first_after(window.start_ns), ticks.last_before(window.end_ns)
    powers = [ticks.power_w(i) for i in range(first, last)]
    if not powers:
        return edges.BusyPower(mean_w, mean_w, MEAN_SPREAD_REL * mean_w)
    spread_w = (max(powers) - min(powers)) / 2 if len(powers) > 1 else MEAN_SPREAD_REL * mean_w
    return edges.BusyPower(fmean(powers), powers[-1], spread_w)


def _unbracketed(ticks: TickSeries, before: int, after: int) -> bool:
    period = ticks.period_ns or 0.0
    return any(2 * ticks.half_width_ns(i) > period / 2 for i in (before, after))
