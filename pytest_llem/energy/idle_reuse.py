"""Idle power measured once for a loaded model and reused while the device's conditions match.

A reference is one cycle's idle power with the temperature, clock and driver it was measured under. A later cycle that
has loaded the same model on the same devices looks at its own sensors first, and measures anew where anything differs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt
from statistics import fmean
from typing import Protocol, runtime_checkable

from pytest_llem.energy.readings import Sample
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import IdleReference
from pytest_llem.job.measurement import EnergyReport

MAX_AGE_S = 3600.0
TEMPERATURE_BAND_C = 3.0
CLOCK_BAND_REL = 0.02
POWER_BAND_REL = 0.03
POWER_FLOOR_REL = 0.005
RECENT_NS = 600_000_000
MIN_READINGS = 3


@dataclass(frozen=True)
class Conditions:
    """What the sensors say of the devices now: total power over the last readings, mean temperature and SM clock."""

    power_w: float
    temperature_c: float
    sm_clock_mhz: float
    driver: str


@runtime_checkable
class KnowsConditions(Protocol):
    """A meter that can say under which conditions its devices are (an optional part of the meter protocol)."""

    def conditions(self) -> Conditions | None:
        """The present conditions; `None` where a sensor does not say, or too few readings were made."""


def recent_conditions(samples: Iterable[Sample], devices: Sequence[str], driver: str, now_ns: int) -> Conditions | None:
    """The conditions of these devices as read in the last 0.6 s; temperatures and clocks are read each 0.5 s."""
    recent = [sample for sample in samples if sample.t_ns >= now_ns - RECENT_NS]
    power_w = 0.0
    for device in devices:
        powers = [s.power_w for s in recent if s.device == device and s.power_w is not None]
        if len(powers) < MIN_READINGS:
            return None
        power_w += fmean(powers)
    temperatures = [s.temperature_c for s in recent if s.temperature_c is not None]
    clocks = [s.sm_clock_mhz for s in recent if s.sm_clock_mhz is not None]
    if not temperatures or not clocks:
        return None
    return Conditions(power_w, fmean(temperatures), fmean(clocks), driver)


def why_not(reference: IdleReference, now: Conditions | None) -> str | None:
    """Why idle power has to be measured anew; `None` when the reference holds."""
    if now is None:
        return "temperature, clock or power of a device is not known"
    age_s = time.time() - reference.measured_at
    if not 0 <= age_s <= MAX_AGE_S:
        return f"it is {age_s:.0f} s old"
    if now.driver != reference.driver:
        return f"it was measured under driver {reference.driver}"
    if abs(now.temperature_c - reference.temperature_c) > TEMPERATURE_BAND_C:
        return f"the temperature was {reference.temperature_c:.0f} °C and is {now.temperature_c:.0f} °C"
    if abs(now.sm_clock_mhz - reference.sm_clock_mhz) > CLOCK_BAND_REL * reference.sm_clock_mhz:
        return f"the SM clock was {reference.sm_clock_mhz:.0f} MHz and is {now.sm_clock_mhz:.0f} MHz"
    if abs(now.power_w - reference.power_w) > POWER_BAND_REL * reference.power_w:
        return f"power was {reference.power_w:.1f} W and is {now.power_w:.1f} W"
    return None


def usable(reference: IdleReference | None, meter: object) -> IdleReference | None:
    """The reference, where the meter confirms that its conditions are those of now.

    Its k=2 uncertainty then covers how far present power lies from it, taken as the half width of a uniform
    distribution (GUM, JCGM 100:2008, 4.3.7), and at least what a few readings cannot tell.
    """
    if reference is None or not isinstance(meter, KnowsConditions):
        return None
    now = meter.conditions()
    if now is None or why_not(reference, now) is not None:
        return None
    apart_w = max(abs(now.power_w - reference.power_w), POWER_FLOOR_REL * reference.power_w)
    return replace(reference, uncertainty_w=hypot(reference.uncertainty_w, 2 / sqrt(3) * apart_w))


def with_reference(report: EnergyReport | None, reference: IdleReference | None) -> EnergyReport | None:
    """A report whose idle power is a reused one."""
    if report is None or reference is None:
        return report
    idle: dict[str, JsonValue] = {
        "power_w": reference.power_w,
        "uncertainty_w": reference.uncertainty_w,
        "temperature_c": reference.temperature_c,
        "sm_clock_mhz": reference.sm_clock_mhz,
        "settled": True,
        "age_s": time.time() - reference.measured_at,
        "reused_from": reference.origin,
    }
    return replace(report, facts={**report.facts, "idle": idle})


def reference_from(report: EnergyReport, origin: str) -> IdleReference | None:
    """What a cycle's report can lend to later ones; `None` where its idle power was itself reused, had not settled, or
    lacks a condition."""
    idle = report.facts.get("idle")
    drivers = report.facts.get("drivers")
    if not isinstance(idle, Mapping) or idle.get("reused_from") or not idle.get("settled"):
        return None
    names = ("power_w", "uncertainty_w", "temperature_c", "sm_clock_mhz", "measured_at")
    known = {name: float(value) for name in names if isinstance(value := idle.get(name), (int, float))}
    if len(known) < len(names) or not isinstance(drivers, (list, tuple)):
        return None
    return IdleReference(**known, driver=" ".join(str(name) for name in drivers), origin=origin)
