"""The `energy` section of a result, from the meter's report and the work that was done; `derive` calls it.

Uncertainties are k=2. Where errors may share a cause (two windows of one sampler) they are added as if fully
correlated, the upper bound (JCGM 100:2008, 5.2.2 note 1); energy above idle adds its two independent terms in
quadrature (JCGM 100:2008, 5.1.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from pytest_llem.job.measurement import AccountedWindow, EnergyReport, Measured, MeteredDevice, WindowEnergy
from pytest_llem.results.schema import Energy, EnergyDevice, PhaseEnergy

MEASURE = "measure"
IDLE = "idle"
PREFILL = "prefill"
JOULES_PER_WH = 3600.0
"""By definition."""


@dataclass(frozen=True)
class Work:
    """The work of the measure windows: seconds, repeats, successful requests and their tokens."""

    duration_s: float
    repeats: int
    requests: int
    input_tokens: int
    output_tokens: int
    separable_phases: bool
    prefill_repeats: int = 0


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """A quotient, or `None` where either side is unknown or the denominator is zero."""
    return None if numerator is None or not denominator else numerator / denominator


def total(parts: Sequence[tuple[float | None, float | None]]) -> Measured | None:
    """Sum of values with their uncertainties, taken as correlated; `None` when a value is missing or there is none.

    A part whose uncertainty is `None` makes that of the sum infinite.
    """
    values = [value for value, _ in parts if value is not None]
    if not parts or len(values) < len(parts):
        return None
    return Measured(sum(values), sum(math.inf if each is None else each for _, each in parts))


def value_of(measured: Measured | None) -> float | None:
    """The value, `None` where nothing was measured."""
    return measured.value if measured else None


def uncertainty_of(measured: Measured | None) -> float | None:
    """The uncertainty, `None` where it is unknown or nothing was measured."""
    return measured.uncertainty if measured and math.isfinite(measured.uncertainty) else None


def unmetered() -> Energy:
    """The section of a cycle without a meter: every quantity is `None`."""
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

    `shared_host` says that other cycles may have run on the same host at the same time.
    """
    if report is None or report.meter == "none":
        return unmetered()
    measured = [window for window in report.windows if window.name == MEASURE]
    gross = total([(window.energy_j, window.uncertainty_j) for window in measured])
    stated, idle = report.idle, _idle_power_w(report)
    net = above_idle(gross, idle, work.duration_s)
    joules = value_of(gross)
    per_request = ratio(joules, work.requests)
    names = [field.name for field in fields(AccountedWindow)]
    return Energy(
        meter=report.meter,
        placement=report.placement,
        scope=report.scope,
        measured=report.measured,
        source=report.source,
        energy_j=joules,
        uncertainty_j=uncertainty_of(gross),
        gain_uncertainty_rel=report.gain_uncertainty_rel,
        energy_above_idle_j=value_of(net),
        energy_above_idle_uncertainty_j=uncertainty_of(net),
        idle_power_w=value_of(idle),
        idle_power_uncertainty_w=uncertainty_of(idle),
        idle_power_age_s=stated.age_s if stated else None,
        idle_power_reused_from=stated.reused_from if stated else None,
        avg_power_w=ratio(joules, work.duration_s),
        joules_per_output_token=ratio(joules, work.output_tokens),
        joules_per_total_token=ratio(joules, work.input_tokens + work.output_tokens),
        joules_per_request=per_request,
        wh_per_1000_queries=None if per_request is None else per_request * 1000 / JOULES_PER_WH,
        tokens_per_joule=ratio(work.output_tokens, joules),
        devices=tuple(_device(report, device, measured) for device in report.devices),
        host=replace(report.host, shared=report.host.shared or shared_host) if report.host else None,
        windows=tuple(AccountedWindow(**{name: getattr(window, name) for name in names}) for window in report.windows),
        phases=_phases(report, gross, work),
    )


def _idle_power_w(report: EnergyReport) -> Measured | None:
    """The reused idle power, else the mean of the idle windows; `None` where the scope covers no idle device."""
    if report.idle is not None and report.idle.reused_from:
        uncertainty_w = report.idle.uncertainty_w
        return Measured(report.idle.power_w, math.inf if uncertainty_w is None else uncertainty_w)
    if report.scope == "process_estimate":
        return None  # a process's CPU time says nothing of what an idle device draws
    return idle_power([window for window in report.windows if window.name == IDLE])


def idle_power(windows: Sequence[WindowEnergy]) -> Measured | None:
    """Mean power in watts over the idle windows."""
    energy = total([(window.energy_j, window.uncertainty_j) for window in windows])
    seconds = sum(window.end_ns - window.start_ns for window in windows) / 1e9
    return None if energy is None or not seconds else _divided(energy, seconds)


def above_idle(gross: Measured | None, idle: Measured | None, duration_s: float) -> Measured | None:
    """Energy in joules above what the idle device would have drawn in the same time.

    May be negative within its uncertainty when the load is close to idle.
    """
    if gross is None or idle is None:
        return None
    return Measured(gross.value - idle.value * duration_s, math.hypot(gross.uncertainty, idle.uncertainty * duration_s))


def _device(report: EnergyReport, device: MeteredDevice, measured: Sequence[WindowEnergy]) -> EnergyDevice:
    parts = [
        (part.energy_j, part.uncertainty_j) for window in measured for part in window.devices if part.id == device.id
    ]
    energy = total(parts) if len(parts) == len(measured) else None
    temperatures = report.facts.get("temperature_c")
    temperature_c = temperatures.get(device.id) if isinstance(temperatures, Mapping) else None
    return EnergyDevice(
        id=device.id,
        name=device.name,
        kind=device.kind,
        energy_j=value_of(energy),
        uncertainty_j=uncertainty_of(energy),
        temperature_c=temperature_c if isinstance(temperature_c, float) else None,
    )


def _phases(report: EnergyReport, gross: Measured | None, work: Work) -> tuple[PhaseEnergy, ...]:
    """Prefill from its own windows (one output token), decode by difference where the engine allows that."""
    windows = [window for window in report.windows if window.name == PREFILL]
    if not windows:
        return ()
    summed = total([(window.energy_j, window.uncertainty_j) for window in windows])
    prefill = _divided(summed, work.prefill_repeats or len(windows)) if summed else None
    decode: Measured | None = None
    if work.separable_phases and prefill and gross and work.repeats:
        repeat = _divided(gross, work.repeats)
        decode = Measured(repeat.value - prefill.value, math.hypot(repeat.uncertainty, prefill.uncertainty))
    return (
        _phase("prefill", prefill, "window with one output token"),
        _phase("decode", decode, "difference" if work.separable_phases else "not separable in this engine"),
    )


def _phase(name: str, energy: Measured | None, method: str) -> PhaseEnergy:
    return PhaseEnergy(
        name=name, energy_per_repeat_j=value_of(energy), uncertainty_j=uncertainty_of(energy), method=method
    )


def _divided(measured: Measured, divisor: float) -> Measured:
    return Measured(measured.value / divisor, measured.uncertainty / divisor)
