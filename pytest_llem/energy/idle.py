"""Idle power with the model loaded, from the cycle's `idle` window, and how warm a device was."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from pytest_llem.energy.readings import Sample
from pytest_llem.errors import JsonValue
from pytest_llem.job.measurement import Window, WindowEnergy

SETTLED_SLOPE_REL_PER_S = 0.02
"""Idle power that still changes by more than 2 % a second has not settled: clocks step down for seconds after work."""
STATE_NS = 500_000_000
"""Temperatures are read so often: a short window has none of its own, and the nearest one is as good."""


def idle_facts(
    windows: Sequence[Window], accounted: Sequence[WindowEnergy], samples: Mapping[str, Sequence[Sample]]
) -> dict[str, JsonValue] | None:
    """Power in watts with its k=2 uncertainty, its slope and whether that is settled, temperature and clocks, when it
    was measured (Unix seconds), and how old it was when the first measure window began.

    `None` when the cycle has no idle window or its energy is not known.
    """
    for window, energy in zip(windows, accounted, strict=True):
        if window.name != "idle" or energy.energy_j is None or energy.uncertainty_j is None:
            continue
        near = [s for one in samples.values() for s in one if window.start_ns - STATE_NS <= s.t_ns <= window.end_ns]
        power = energy.energy_j / window.duration_s
        slope = sum(_slope_w_per_s(one, window) or 0.0 for one in samples.values())
        return {
            "power_w": power,
            "uncertainty_w": energy.uncertainty_j / window.duration_s,
            "slope_w_per_s": slope,
            "settled": abs(slope) <= SETTLED_SLOPE_REL_PER_S * power,
            "temperature_c": _mean([s.temperature_c for s in near]),
            "sm_clock_mhz": _mean([s.sm_clock_mhz for s in near]),
            "end_ns": window.end_ns,
            "measured_at": time.time() - (time.monotonic_ns() - window.end_ns) / 1e9,
            "age_s": _age_s(window, windows),
        }
    return None


def mean_temperature_c(samples: Sequence[Sample], windows: Sequence[Window]) -> float | None:
    """A device's mean temperature in degrees Celsius over the measure windows; `None` where it was not read."""
    return _mean(
        [
            sample.temperature_c
            for sample in samples
            if any(w.start_ns - STATE_NS <= sample.t_ns <= w.end_ns + STATE_NS for w in windows if w.name == "measure")
        ]
    )


def _age_s(idle: Window, windows: Sequence[Window]) -> float | None:
    starts = [window.start_ns for window in windows if window.name == "measure"]
    return (min(starts) - idle.end_ns) / 1e9 if starts else None


def _slope_w_per_s(samples: Sequence[Sample], window: Window) -> float | None:
    points = [
        (s.t_ns / 1e9, s.power_w)
        for s in samples
        if s.power_w is not None and window.start_ns <= s.t_ns <= window.end_ns
    ]
    if len(points) < 3:
        return None
    t_mean, p_mean = fmean(t for t, _ in points), fmean(p for _, p in points)
    spread = sum((t - t_mean) ** 2 for t, _ in points)
    return sum((t - t_mean) * (p - p_mean) for t, p in points) / spread if spread else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
