"""The `energy` section of a result, from a meter's report and the work that was done.

Uncertainties are k=2. Where errors may share a cause (two windows of one sampler) they are added as if fully
correlated, the upper bound (JCGM 100:2008, 5.2.2 note 1); energy above idle adds its two independent terms in
quadrature (JCGM 100:2008, 5.1.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_llem.job.measurement import EnergyReport, WindowEnergy
from pytest_llem.results.schema import Energy, EnergyDevice, EnergyWindow, PhaseEnergy

MEASURE = "measure"
IDLE = "idle"
PREFILL = "prefill"
JOULES_PER_WH = 3600.0


@dataclass(frozen=True)
class Work:
    """What the measure windows held: their time in seconds, repeats, successful requests and their tokens."""

    duration_s: float
    repeats: int
    requests: int
    input_tokens: int
    output_tokens: int
    separable_phases: bool
    prefill_repeats: int = 0


@dataclass(frozen=True)
class Quantity:
    """A value with its k=2 uncertainty; `uncertainty` is `None` when the meter states none."""

    value: float
    uncertainty: float | None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """A quotient, or `None` where either side is unknown or the denominator is zero."""
    return None if numerator is None or not denominator else numerator / denominator


def total(parts: Sequence[tuple[float | None, float | None]]) -> Quantity | None:
    """Sum of energies with their uncertainties, taken as correlated; `None` when a part is missing or there is none."""
    value = uncertainty = 0.0
    known = True
    for part, part_uncertainty in parts:
        if part is None:
            return None
        value += part
        known = known and part_uncertainty is not None
        uncertainty += part_uncertainty or 0.0
    return Quantity(value, uncertainty if known else None) if parts else None


def unmetered() -> Energy:
    """The section of a cycle whose energy nobody measured: every quantity is `None`."""
    return Energy(
        meter="none",
        placement=None,
        scope=None,
        measured=False,
        source=None,
        energy_j=None,
        uncertainty_j=None,
        gain_uncertainty_rel=None,
        energy_above_idle_j=None,
        energy_above_idle_uncertainty_j=None,
        idle_power_w=None,
        idle_power_uncertainty_w=None,
        avg_power_w=None,
        joules_per_output_token=None,
        joules_per_total_token=None,
        joules_per_request=None,
        wh_per_1000_queries=None,
        tokens_per_joule=None,
        devices=(),
        host=None,
        windows=(),
        phases=(),
    )


def derive_energy(report: EnergyReport | None, work: Work, *, shared_host: bool = False) -> Energy:
    """Energy of the measure windows and what follows from it per token and per request.

    `shared_host` says that other cycles may have run on the same host meanwhile.
    """
    if report is None or report.meter == "none":
        return unmetered()
    measured = [window for window in report.windows if window.name == MEASURE]
    gross = total([(window.energy_j, window.uncertainty_j) for window in measured])
    idle = idle_power([window for window in report.windows if window.name == IDLE]) if _knows_idle(report) else None
    facts = report.facts.get("idle")
    stated = facts if isinstance(facts, Mapping) else {}
    reused_from = stated.get("reused_from")
    if reused_from:
        idle = Quantity(float(str(stated["power_w"])), float(str(stated["uncertainty_w"])))
    age_s = stated.get("age_s")
    net = above_idle(gross, idle, work.duration_s)
    joules = gross.value if gross else None
    per_request = ratio(joules, work.requests)
    return Energy(
        meter=report.meter,
        placement=report.placement,
        scope=report.scope,
        measured=report.measured,
        source=report.source,
        energy_j=joules,
        uncertainty_j=gross.uncertainty if gross else None,
        gain_uncertainty_rel=report.gain_uncertainty_rel,
        energy_above_idle_j=net.value if net else None,
        energy_above_idle_uncertainty_j=net.uncertainty if net else None,
        idle_power_w=idle.value if idle else None,
        idle_power_uncertainty_w=idle.uncertainty if idle else None,
        idle_power_age_s=float(age_s) if isinstance(age_s, (int, float)) else None,
        idle_power_reused_from=str(reused_from) if reused_from else None,
        avg_power_w=ratio(joules, work.duration_s),
        joules_per_output_token=ratio(joules, work.output_tokens),
        joules_per_total_token=ratio(joules, work.input_tokens + work.output_tokens),
        joules_per_request=per_request,
        wh_per_1000_queries=None if per_request is None else per_request * 1000 / JOULES_PER_WH,
        tokens_per_joule=ratio(work.output_tokens, joules),
        devices=_devices(report, measured),
        host=replace(report.host, shared=report.host.shared or shared_host) if report.host else None,
        windows=tuple(_window(window) for window in report.windows),
        phases=_phases(report, gross, work),
    )


def _knows_idle(report: EnergyReport) -> bool:
    """Whether the meter sees what an idle device draws: CPU time of a process says nothing of it."""
    return report.scope != "process_estimate"


def idle_power(windows: Sequence[WindowEnergy]) -> Quantity | None:
    """Mean power in watts over the idle windows."""
    energy = total([(window.energy_j, window.uncertainty_j) for window in windows])
    seconds = sum(window.end_ns - window.start_ns for window in windows) / 1e9
    if energy is None or not seconds:
        return None
    return Quantity(energy.value / seconds, None if energy.uncertainty is None else energy.uncertainty / seconds)


def above_idle(gross: Quantity | None, idle: Quantity | None, duration_s: float) -> Quantity | None:
    """Energy above what the idle device would have drawn in the same time.

    May be negative within its uncertainty when the load is close to idle.
    """
    if gross is None or idle is None:
        return None
    uncertainty = (
        None
        if gross.uncertainty is None or idle.uncertainty is None
        else math.hypot(gross.uncertainty, idle.uncertainty * duration_s)
    )
    return Quantity(gross.value - idle.value * duration_s, uncertainty)


def _devices(report: EnergyReport, measured: Sequence[WindowEnergy]) -> tuple[EnergyDevice, ...]:
    devices: list[EnergyDevice] = []
    for device in report.devices:
        parts = [
            (part.energy_j, part.uncertainty_j)
            for window in measured
            for part in window.devices
            if part.id == device.id
        ]
        energy = total(parts) if len(parts) == len(measured) else None
        devices.append(
            EnergyDevice(
                id=device.id,
                name=device.name,
                kind=device.kind,
                energy_j=energy.value if energy else None,
                uncertainty_j=energy.uncertainty if energy else None,
                temperature_c=_temperature_c(report, device.id),
            )
        )
    return tuple(devices)


def _temperature_c(report: EnergyReport, device: str) -> float | None:
    known = report.facts.get("temperature_c")
    value = known.get(device) if isinstance(known, Mapping) else None
    return value if isinstance(value, float) else None


def _window(window: WindowEnergy) -> EnergyWindow:
    return EnergyWindow(
        name=window.name,
        index=window.index,
        start_ns=window.start_ns,
        end_ns=window.end_ns,
        energy_j=window.energy_j,
        uncertainty_j=window.uncertainty_j,
        estimator=window.estimator,
        samples=window.samples,
        terms=dict(window.terms),
    )


def _phases(report: EnergyReport, gross: Quantity | None, work: Work) -> tuple[PhaseEnergy, ...]:
    """Prefill from its own windows (one output token), decode by difference where that is allowed."""
    windows = [window for window in report.windows if window.name == PREFILL]
    if not windows:
        return ()
    count = work.prefill_repeats or len(windows)
    summed = total([(window.energy_j, window.uncertainty_j) for window in windows])
    prefill = Quantity(summed.value / count, _scaled(summed.uncertainty, count)) if summed else None
    decode: Quantity | None = None
    if work.separable_phases and prefill and gross and work.repeats:
        whole = Quantity(gross.value / work.repeats, _scaled(gross.uncertainty, work.repeats))
        known = whole.uncertainty is not None and prefill.uncertainty is not None
        decode = Quantity(
            whole.value - prefill.value,
            math.hypot(whole.uncertainty or 0.0, prefill.uncertainty or 0.0) if known else None,
        )
    return (
        _phase("prefill", prefill, "window with one output token"),
        _phase("decode", decode, "difference" if work.separable_phases else "not separable in this engine"),
    )


def _phase(name: str, energy: Quantity | None, method: str) -> PhaseEnergy:
    return PhaseEnergy(
        name=name,
        energy_per_repeat_j=energy.value if energy else None,
        uncertainty_j=energy.uncertainty if energy else None,
        method=method,
    )


def _scaled(uncertainty: float | None, divisor: int) -> float | None:
    return None if uncertainty is None else uncertainty / divisor
