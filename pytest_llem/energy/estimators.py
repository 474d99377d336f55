"""A device's energy in one window, by the best estimator that its readings support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot, sqrt
from statistics import fmean, stdev

from pytest_llem.energy import edges
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.protocol import Window
from pytest_llem.energy.samples import Sample
from pytest_llem.energy.series import TickSeries

PART_TIME_DUTY = 0.25
"""Share of the time that the sensors of A100 and H100 look at (arXiv 2312.02741): assumed without calibration."""
AVERAGING_S = {"instant": 0.025, "average": 1.0}
"""What one NVML power reading is a mean over (arXiv 2312.02741)."""
SAME_LOAD_REL = 0.2
MEAN_SPREAD_REL = 0.2
"""How much the power at a window's end is taken to differ from its mean where neither was seen on its own."""
_FEW = {2: 4.53, 3: 2.28, 4: 1.66, 5: 1.44, 6: 1.32, 7: 1.25, 8: 1.20}
"""Student's t at 95.45 % over 2, for few intervals (JCGM 100:2008, table G.2)."""


@dataclass(frozen=True)
class Estimate:
    """Energy in joules with its k=2 uncertainty and that one's parts."""

    energy_j: float
    uncertainty_j: float
    estimator: str
    samples: int
    terms: Mapping[str, float] = field(default_factory=dict)


def from_counter(ticks: TickSeries, window: Window, known: Calibration | None) -> Estimate | None:
    """The window's energy from counter steps; `None` when they do not surround it or the counter was reset.

    Sides confirmed quiet give `counter_outer_edge`; otherwise edges are interpolated (`counter_interpolated`), or,
    where the steps around an edge were not bracketed, the difference of the readings outside (`counter_difference`).
    """
    close = ticks.closely_bracketed()
    if edges.interpolated(close, window.start_ns) and edges.interpolated(close, window.end_ns):
        ticks = close
    start = edges.interpolated(ticks, window.start_ns)
    end = edges.interpolated(ticks, window.end_ns)
    if start is None or end is None or window.end_ns <= window.start_ns:
        return None
    before, after = ticks.last_before(window.start_ns), ticks.first_after(window.end_ns + 1)
    if ticks.reset_within(ticks.mid_ns[before], ticks.mid_ns[after]):
        return None
    busy = _busy_power(ticks, window, (end.energy_j - start.energy_j) / window.duration_s)
    if window.quiet_before_s is not None:
        quiet_ns = round(window.quiet_before_s * 1e9)
        start = edges.outer(ticks, window.start_ns, "start", quiet_ns, busy, known) or start
    if window.quiet_after_s is not None:
        quiet_ns = round(window.quiet_after_s * 1e9)
        end = edges.outer(ticks, window.end_ns, "end", quiet_ns, busy, known) or end
    terms = {name: hypot(start.terms.get(name, 0.0), end.terms.get(name, 0.0)) for name in {**start.terms, **end.terms}}
    energy = end.energy_j - start.energy_j
    if "shape" in terms:
        # A load that begins and ends at the edges errs to the same side at both.
        terms["shape"] = start.terms.get("shape", 0.0) + end.terms.get("shape", 0.0)
        if not (start.outer or end.outer):
            terms["shape"] = max(terms["shape"], _unseen_j(ticks, window, before, after, energy))
    terms.update(_counter_terms(ticks, window, known, start.outer and end.outer))
    name = "counter_outer_edge" if start.outer and end.outer else "counter_interpolated"
    if not (start.outer or end.outer) and _unbracketed(ticks, before, after):
        name = "counter_difference"
    # `shape` is attained where load begins and ends at the edges: a bias bound, which noise comes on top of.
    noise = hypot(*(value for term, value in terms.items() if term != "shape"))
    return Estimate(energy, terms.get("shape", 0.0) + noise, name, max(2, after - before + 1), terms)


def from_power(samples: Sequence[Sample], window: Window, averaging_s: float) -> Estimate | None:
    """The window's energy as the time integral of power readings, each a mean over `averaging_s` before it.

    `averaging` bounds what the mean hides at the two edges, `sampling` what may happen between two readings. `None`
    when the readings do not surround the window.
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
            steps.append(abs(p1 - p0) * (t1 - t0) / 1e9)
    powers = [power for _, power in series[max(0, first - 1) : last + 2]]
    swing_w = max(powers) - min(powers)
    interval_s = max((b[0] - a[0]) / 1e9 for a, b in zip(series[first:last], series[first + 1 : last + 1], strict=True))
    terms = {
        "averaging": sqrt(2) * swing_w * averaging_s,
        "sampling": hypot(*steps) / 2 + sqrt(2) * swing_w * interval_s / 2,
    }
    return Estimate(energy, hypot(*terms.values()), "power_integral", last - first + 1, terms)


def _counter_terms(ticks: TickSeries, window: Window, known: Calibration | None, quiet: bool) -> dict[str, float]:
    """What the counter itself may get wrong: load that changes faster than it steps, and time it does not look at.

    The scatter of the steps inside the window shows how much of the load's ripple they catch by chance. An accumulating
    counter misplaces that at the two edges only; a part-time counter anew in every step, and at an edge with a power
    step it may take the step's share of one interval for all or nothing of it.
    """
    first, last = ticks.first_after(window.start_ns), ticks.last_before(window.end_ns)
    powers = [ticks.power_w(i) for i in range(first, last)]
    period_s = (ticks.period_ns or 0.0) / 1e9
    part_time = known is None or known.counter_type != "accumulating"
    duty = known.duty if known is not None and known.duty is not None else PART_TIME_DUTY
    terms: dict[str, float] = {}
    if not quiet:
        # The same load goes on outside: more intervals tell its ripple better.
        inside = fmean(powers) if powers else ticks.power_w(ticks.last_before(window.start_ns))
        around = [i for i in (*range(first - 3, first), *range(last, last + 3)) if 0 <= i < len(ticks) - 1]
        powers += [p for p in map(ticks.power_w, around) if abs(p - inside) < SAME_LOAD_REL * inside]
    if len(powers) >= 2 and (part_time or not quiet):
        factor = _FEW.get(len(powers), 1.1)
        repeats = sqrt(window.duration_s / period_s) if part_time else 1.0
        terms["ripple"] = 2 * factor * stdev(powers) * period_s * repeats
    if part_time:
        before, after = ticks.last_before(window.start_ns), ticks.first_after(window.end_ns)
        inside_w = ticks.power_w(first) if last > first else ticks.power_w(before)
        outside = [ticks.power_w(i) for i in (before - 1, after) if 0 <= i < len(ticks) - 1]
        step_w = max((abs(inside_w - power) for power in outside), default=inside_w)
        terms["counter_type"] = sqrt(2) * step_w * period_s * (1 - duty)
    return terms


def _busy_power(ticks: TickSeries, window: Window, mean_w: float) -> edges.BusyPower:
    """Power inside a window: from the intervals between steps that lie in it, else its mean."""
    first, last = ticks.first_after(window.start_ns), ticks.last_before(window.end_ns)
    powers = [ticks.power_w(i) for i in range(first, last)]
    if not powers:
        return edges.BusyPower(mean_w, mean_w, MEAN_SPREAD_REL * mean_w)
    spread_w = (max(powers) - min(powers)) / 2 if len(powers) > 1 else MEAN_SPREAD_REL * mean_w
    return edges.BusyPower(fmean(powers), powers[-1], spread_w)


def _unseen_j(ticks: TickSeries, window: Window, before: int, after: int, energy_j: float) -> float:
    """How far off the energy may be when no interval between two steps lies inside the window.

    Then the power in the window was never seen on its own: all that was drawn around it above the lowest power nearby
    may have been drawn in it, or nothing of it. Zero when an interval lies inside.
    """
    if ticks.last_before(window.end_ns) - ticks.first_after(window.start_ns) >= 1:
        return 0.0
    lowest_w = min(ticks.power_w(i) for i in range(max(0, before - 2), min(len(ticks) - 1, after + 2)))
    around_j = ticks.energy_j[after] - ticks.energy_j[before]
    least_j = lowest_w * window.duration_s
    outside_s = (ticks.mid_ns[after] - ticks.mid_ns[before]) / 1e9 - window.duration_s
    most_j = around_j - lowest_w * outside_s
    return max(most_j - energy_j, energy_j - least_j)


def _unbracketed(ticks: TickSeries, before: int, after: int) -> bool:
    period = ticks.period_ns or 0.0
    return any(2 * ticks.half_width_ns(i) > period / 2 for i in (before, after))
