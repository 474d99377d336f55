"""What holds for every meter, shipped or registered: an energy that no working sensor states is `null`, with a reason.

The worker's windows, the container runner and `llem_meter` mark edges and account windows through it. It must not let
a meter that fails while something is measured end the cycle, because all other measurements outlive the meter.
"""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import isfinite
from typing import TypeGuard

from pytest_llem.energy.protocol import Meter
from pytest_llem.errors import MeterError
from pytest_llem.job.measurement import EnergyReport, Window, WindowEnergy
from pytest_llem.job.report import Note
from pytest_llem.job.wire import decode, encode

Why = tuple[str, str]
"""A reason's code, and what is wrong."""

STILL_UPDATES = 5
"""Chosen: a sensor that misses five updates stands still."""


def edge(meter: Meter) -> int:
    """Mark the edge of a window; a failure is kept for `account`. Raises `MeterError` for a time of another clock."""
    before_ns = time.monotonic_ns()
    try:
        t_ns = meter.mark()
    except Exception as problem:  # noqa: BLE001 (a meter may be anybody's)
        traceback.print_exc()
        meter.failed_edge = meter.failed_edge or f"reading it at the edge of a window failed: {_text(problem)}"
        return time.monotonic_ns()
    if not isinstance(t_ns, int) or not before_ns <= t_ns <= time.monotonic_ns():
        raise MeterError(
            f"the meter {meter.name} marked an edge at {t_ns!r}, which is no time of CLOCK_MONOTONIC",
            fix="let its `mark` return `time.monotonic_ns()`",
        )
    return t_ns


def power_w(meter: Meter) -> float | None:
    """The meter's latest power; `None` where it fails or states none."""
    try:
        power = meter.power_w()
    except Exception:  # noqa: BLE001 (a meter may be anybody's)
        return None
    return power if _is_number(power) else None


def account(meter: Meter, windows: Sequence[Window]) -> EnergyReport:
    """Stop the meter; its report, with `null` and a reason in place of each energy that cannot be true."""
    try:
        after = [] if meter.sees_standstill or not windows else [_after(meter, max(w.end_ns for w in windows))]
        return _written(_checked(meter.stop([*windows, *after] if after else windows), windows, after, meter))
    except Exception as problem:  # noqa: BLE001 (a meter may be anybody's)
        traceback.print_exc()
        note = Note("sensor_gap", f"{meter.name}: accounting its readings failed: {_text(problem)}")
    nothing = tuple(_null(window) for window in windows)
    return EnergyReport(meter.name, False, "process_estimate", "worker", (), nothing, invalid=(note,))


def account_again(meter: Meter, report: EnergyReport, windows: Sequence[Window]) -> EnergyReport:
    """Account other windows of a report's stored readings, with the same checks. `MeterError` where that is not so."""
    try:
        return _written(_checked(meter.account_again(report, windows), windows, [], meter))
    except (KeyError, TypeError, ValueError) as problem:
        fix = "measure again: an older version, or another one, wrote what is stored"
        raise MeterError(f"{meter.name}: its stored readings cannot be accounted: {problem!r}", fix=fix) from None


def _written(report: EnergyReport) -> EnergyReport:
    """The report as it is read again; `ValueError` for one that cannot be written, or not be read."""
    again = decode(EnergyReport, json.loads(json.dumps(encode(report), allow_nan=False)), "its report")
    _ = again.idle
    return again


def _after(meter: Meter, last_ns: int) -> Window:
    """A window after the last one, in which a sensor that works moves."""
    time.sleep(max(0.0, STILL_UPDATES * meter.update_s - (time.monotonic_ns() - last_ns) / 1e9))
    return Window("after", last_ns, edge(meter))


def _checked(report: EnergyReport, windows: Sequence[Window], after: Sequence[Window], meter: Meter) -> EnergyReport:
    stated = {_identity(window): window for window in report.windows}
    moving = [(w, _moving(stated[_identity(w)], meter)) for w in (*windows, *after) if _identity(w) in stated]
    beside = {device.id for device in report.devices if not device.leased}
    own = [device.id for device in report.devices if device.leased]
    twice = [id for id, times in Counter(own).items() if times > 1]
    judged = {window.name for window in windows} & {"measure", "idle"} or {window.name for window in windows}
    reasons: dict[Why, Note] = {}
    checked: list[WindowEnergy] = []
    for window in windows:
        found = stated.get(_identity(window)) or _null(window)
        faults = dict.fromkeys(twice, ("sensor_gap", "it is listed twice")) | _faults(found, window, meter)
        if after:
            later = {id for other, ids in moving if other.start_ns >= window.end_ns for id in ids}
            seconds, slower = f"{after[0].duration_s:.2g} s", f"slower than every {meter.update_s:g} s"
            still = ("sensor_gap", f"it stood still for {seconds} afterwards; a sensor {slower} states `update_s`")
            faults = dict.fromkeys(_moving(found, meter) - later, still) | faults
        against = {id: why for id, why in faults.items() if id not in beside}
        missed = found.energy_j is None and window.name == "measure" and not (report.invalid or against)
        # An estimate does not state what it cannot count, and notes that.
        if missed and report.scope != "process_estimate" and (own or not beside):
            against[meter.name] = ("sensor_gap", meter.failed_edge or "it was not read on both sides")
        checked.append(_without(found, faults, against))
        if window.name in judged:
            for id, (code, what) in against.items():
                reasons.setdefault((code, id), Note(code, f"{id}: {what} (window {window.name})"))
    return replace(report, windows=tuple(checked), invalid=(*report.invalid, *reasons.values()))


def _moving(found: WindowEnergy, meter: Meter) -> set[str]:
    """The devices that state an energy other than 0; the meter's name, where it states one without devices."""
    parts = [(part.id, part.energy_j) for part in found.devices] or [(meter.name, found.energy_j)]
    return {id for id, energy_j in parts if energy_j}


def _faults(found: WindowEnergy, window: Window, meter: Meter) -> dict[str, Why]:
    """What is wrong with a window's energies, by device; that of their sum, by the meter's name, if with no device."""
    parts = [(part.id, part.energy_j, part.uncertainty_j, 1) for part in found.devices]
    faults: dict[str, Why] = {}
    for id, energy_j, uncertainty_j, devices in (
        *parts,
        (meter.name, found.energy_j, found.uncertainty_j, max(1, len(parts))),
    ):
        why = _why(energy_j, uncertainty_j, window.duration_s, devices * meter.plausible_w)
        if why is not None and (id != meter.name or not faults):
            faults[id] = why
    return faults


def _why(energy_j: object, uncertainty_j: object, seconds: float, limit_w: float) -> Why | None:
    if energy_j is None:
        return None
    bound_j = 0.0 if uncertainty_j is None else uncertainty_j
    if not _is_number(energy_j) or not _is_number(bound_j) or bound_j < 0:
        return "sensor_gap", f"it states {energy_j!r} J, uncertain by {uncertainty_j!r}"
    if energy_j == 0 and seconds > 0:
        return "sensor_gap", f"it did not move for {seconds:.3g} s"
    if energy_j < -bound_j:
        return "counter_reset", f"it jumped back by {-energy_j:.3g} J"
    if energy_j > limit_w * seconds + bound_j:
        return "implausible_power", f"{energy_j:.3g} J in {seconds:.3g} s, more than {limit_w:.0f} W"
    return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _without(found: WindowEnergy, faults: Collection[str], against: Collection[str]) -> WindowEnergy:
    devices = [replace(p, energy_j=None, uncertainty_j=None) if p.id in faults else p for p in found.devices]
    found = replace(found, devices=tuple(devices))
    if not against:
        return found
    return replace(found, energy_j=None, uncertainty_j=None, estimator=None, samples=0, terms={})


def _identity(window: Window | WindowEnergy) -> tuple[str, int, int, int]:
    return window.name, window.index, window.start_ns, window.end_ns


def _null(window: Window) -> WindowEnergy:
    return WindowEnergy(*_identity(window), None, None, None)


def _text(problem: Exception) -> str:
    return problem.message if isinstance(problem, MeterError) else f"{type(problem).__name__}: {problem}"
