"""Idle power with the model loaded: measured in the cycle's `idle` window, or reused from an earlier cycle of the run.

`gpu_meter` measures it; the worker's cycle and `runners.measure_here` reuse it while the worker's own sensors confirm
the conditions it was measured under. The bands for that stand in docs/energy.md as well: change both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import hypot, sqrt
from statistics import fmean, linear_regression

from pytest_llem.energy.protocol import Conditions, Meter
from pytest_llem.energy.readings import Sample
from pytest_llem.job.job import IdleReference
from pytest_llem.job.measurement import EnergyReport, IdlePower, Window, WindowEnergy
from pytest_llem.job.wire import encode

IDLE, HOT_IDLE = "idle", "hot_idle"
"""The windows of a device at rest: before the load, and right after it while the die is hot."""

SETTLED_SLOPE_REL_PER_S = 0.02
"""Chosen: a drift of 2 % a second moves a default idle window of 2 s by 2 % at most to either side of its mean."""

STATE_NS = 500_000_000
"""The sampler reads temperature and clocks this often (`nvml_source.STATE_PERIOD_NS`), so a short window may have no
reading of its own; the one before it still holds."""

MAX_AGE_S = 3600.0
"""Chosen: the other bands catch a changed GPU; an hour bounds what they cannot see, such as a warming room."""

TEMPERATURE_BAND_C = 3.0
"""Chosen: power is compared as well, so this only excludes a GPU that still cools or has been heated."""

CLOCK_BAND_REL = 0.02
"""Chosen: one or two of the 15 MHz steps of a busy clock (`nvidia-smi -q -d SUPPORTED_CLOCKS`), no other state."""

POWER_BAND_REL = 0.03
"""Chosen: several times the scatter of settled idle power. Power inside the band still widens the uncertainty."""

POWER_FLOOR_REL = 0.005
"""Chosen: the mean of the few readings compared here cannot show a smaller difference."""

RECENT_NS = 600_000_000
"""Chosen: a little more than `STATE_NS`, so that at least one temperature and one clock lie inside."""

MIN_READINGS = 3
"""Chosen: the fewest power readings whose mean is compared; a counter of 100 ms gives five or six in `RECENT_NS`."""


def measured_idle_power(
    windows: Sequence[Window], accounted: Sequence[WindowEnergy], samples: Sequence[Sequence[Sample]]
) -> IdlePower | None:
    """Idle power of a cycle over all devices, from the `samples` of each; `None` where it is not known."""
    for window, energy in zip(windows, accounted, strict=True):
        if window.name != IDLE or energy.energy_j is None or energy.uncertainty_j is None:
            continue
        near = [s for series in samples for s in series if _is_near(s, window)]
        power_w = energy.energy_j / window.duration_s
        slope = sum(_slope_w_per_s(series, window) or 0.0 for series in samples)
        return IdlePower(
            power_w=power_w,
            uncertainty_w=energy.uncertainty_j / window.duration_s,
            slope_w_per_s=slope,
            settled=abs(slope) <= SETTLED_SLOPE_REL_PER_S * power_w,
            temperature_c=_mean([s.temperature_c for s in near]),
            sm_clock_mhz=_mean([s.sm_clock_mhz for s in near]),
            end_ns=window.end_ns,
            measured_at=time.time() - (time.monotonic_ns() - window.end_ns) / 1e9,
            age_s=_age_s(window, windows),
        )
    return None


def mean_temperature_c(samples: Sequence[Sample], windows: Sequence[Window]) -> float | None:
    """A device's mean temperature in degrees Celsius over the measure windows; `None` where it was not read."""
    measured = [window for window in windows if window.name == "measure"]
    return _mean([s.temperature_c for s in samples if any(_is_near(s, window, STATE_NS) for window in measured)])


def recent_conditions(samples: Iterable[Sample], devices: Sequence[str], driver: str, now_ns: int) -> Conditions | None:
    """The devices' conditions over the last `RECENT_NS`; `None` where a sensor is missing or readings are too few."""
    recent = [sample for sample in samples if sample.t_ns >= now_ns - RECENT_NS]
    power_w = 0.0
    for device in devices:
        powers = [s.power_w for s in recent if s.device == device and s.power_w is not None]
        if len(powers) < MIN_READINGS:
            return None
        power_w += fmean(powers)
    temperature_c = _mean([s.temperature_c for s in recent])
    sm_clock_mhz = _mean([s.sm_clock_mhz for s in recent])
    if temperature_c is None or sm_clock_mhz is None:
        return None
    return Conditions(power_w, temperature_c, sm_clock_mhz, driver)


def usable(reference: IdleReference | None, meter: Meter | None) -> IdleReference | None:
    """The reference, if the meter confirms that the present conditions match it; else `None`.

    Its k=2 uncertainty then covers the difference to present power, taken as the half width of a uniform distribution
    (GUM, JCGM 100:2008, 4.3.7), and at least `POWER_FLOOR_REL`.
    """
    if reference is None or meter is None:
        return None
    now = meter.conditions()
    if now is None or not _matches(reference, now):
        return None
    difference_w = max(abs(now.power_w - reference.power_w), POWER_FLOOR_REL * reference.power_w)
    return replace(reference, uncertainty_w=hypot(reference.uncertainty_w, 2 / sqrt(3) * difference_w))


def with_reference(report: EnergyReport | None, reference: IdleReference | None) -> EnergyReport | None:
    """The report, with the reference as its idle power where there is one."""
    if report is None or reference is None:
        return report
    idle = IdlePower(
        power_w=reference.power_w,
        uncertainty_w=reference.uncertainty_w,
        temperature_c=reference.temperature_c,
        sm_clock_mhz=reference.sm_clock_mhz,
        settled=True,
        age_s=time.time() - reference.measured_at,
        reused_from=reference.origin,
    )
    return replace(report, facts={**report.facts, "idle": encode(idle)})


def reference_from(report: EnergyReport, origin: str) -> IdleReference | None:
    """A reference for later cycles; `None` where this idle power was reused, had not settled, or lacks a condition."""
    idle, drivers = report.idle, report.facts.get("drivers")
    if idle is None or idle.reused_from or not idle.settled or not isinstance(drivers, (list, tuple)):
        return None
    if (
        idle.temperature_c is None
        or idle.sm_clock_mhz is None
        or idle.measured_at is None
        or idle.uncertainty_w is None
    ):
        return None
    return IdleReference(
        power_w=idle.power_w,
        uncertainty_w=idle.uncertainty_w,
        temperature_c=idle.temperature_c,
        sm_clock_mhz=idle.sm_clock_mhz,
        driver=" ".join(str(name) for name in drivers),
        measured_at=idle.measured_at,
        origin=origin,
    )


def _matches(reference: IdleReference, now: Conditions) -> bool:
    return (
        0 <= time.time() - reference.measured_at <= MAX_AGE_S
        and now.driver == reference.driver
        and abs(now.temperature_c - reference.temperature_c) <= TEMPERATURE_BAND_C
        and abs(now.sm_clock_mhz - reference.sm_clock_mhz) <= CLOCK_BAND_REL * reference.sm_clock_mhz
        and abs(now.power_w - reference.power_w) <= POWER_BAND_REL * reference.power_w
    )


def _is_near(sample: Sample, window: Window, after_ns: int = 0) -> bool:
    return window.start_ns - STATE_NS <= sample.t_ns <= window.end_ns + after_ns


def _age_s(idle: Window, windows: Sequence[Window]) -> float | None:
    starts = [window.start_ns for window in windows if window.name == "measure"]
    return (min(starts) - idle.end_ns) / 1e9 if starts else None


def _slope_w_per_s(samples: Sequence[Sample], window: Window) -> float | None:
    inside = [s for s in samples if window.start_ns <= s.t_ns <= window.end_ns]
    points = [(s.t_ns / 1e9, s.power_w) for s in inside if s.power_w is not None]
    return linear_regression(*zip(*points, strict=True)).slope if len(points) >= 3 else None


def _mean(values: Sequence[float | None]) -> float | None:
    read = [value for value in values if value is not None]
    return fmean(read) if read else None
