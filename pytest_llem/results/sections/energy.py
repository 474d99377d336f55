"""The sections `energy` and `steady_state` of a result, from the meter's report and the work done.

`derive` calls it; `attempts`, the report and an exporter take its constants. Uncertainties must stay k=2. Where errors
may share a cause (two windows of one sampler) they are added as if fully correlated, the upper bound (JCGM 100:2008,
5.2.2 note 1); energy above idle adds its two independent terms in quadrature (5.1.2).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pytest_llem.job.config import SteadyRule
from pytest_llem.job.measurement import (
    AccountedWindow,
    DeviceEnergy,
    EnergyReport,
    Measured,
    Measurement,
    MeteredDevice,
    RequestRecord,
    Window,
    WindowEnergy,
)
from pytest_llem.results.energy_schema import CalibrationSection, Energy, EnergyDevice, PhaseEnergy
from pytest_llem.results.performance_schema import SteadyState
from pytest_llem.worker.steady import STEADY_STATE

MEASURE = "measure"
IDLE = "idle"
PREFILL = "prefill"
FIRST_TOKEN, DECODE = "first_token", "decode"
SPLIT = "windows of split batches"
JOULES_PER_WH = 3600.0
"""By definition."""
MIN_STEADY_S = 30.0
"""The ML.ENERGY benchmark uses a steady state from 30 s on."""


@dataclass(frozen=True)
class Work:
    """The work of the measure windows: its seconds, those of resets beside it, repeats, successful requests and tokens.

    `sessions` are whole ones, `None` where a request is no turn of one; what nobody counted is `None` as well.

    `prefill_s` and `prefill_reset_s` are the same of the windows of prefill; `split_repeats` had their batches split.
    """

    duration_s: float
    repeats: int
    requests: int | None
    input_tokens: int | None
    output_tokens: int | None
    separable_phases: bool
    sessions: int | None = None
    prefill_repeats: int = 0
    reset_s: float = 0.0
    prefill_s: float = 0.0
    prefill_reset_s: float = 0.0
    split_repeats: int = 0
    wants_phases: bool = False


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """A quotient, or `None` where either side is unknown or the denominator is zero."""
    return None if numerator is None or not denominator else numerator / denominator


def added(one: int | None, other: int | None) -> int | None:
    """The sum of two counts; `None` where one is not known."""
    return None if one is None or other is None else one + other


def total(parts: Sequence[WindowEnergy | DeviceEnergy]) -> Measured | None:
    """Sum of joules; uncertainties fully correlated, infinite if one is `None`. `None` if a part is missing."""
    values = [part.energy_j for part in parts if part.energy_j is not None]
    if not parts or len(values) < len(parts):
        return None
    return Measured(sum(values), sum(math.inf if part.uncertainty_j is None else part.uncertainty_j for part in parts))


def value_of(measured: Measured | None) -> float | None:
    """The value, `None` where nothing was measured."""
    return measured.value if measured else None


def uncertainty_of(measured: Measured | None) -> float | None:
    """The uncertainty, `None` where it is unknown or nothing was measured."""
    return measured.uncertainty if measured and math.isfinite(measured.uncertainty) else None


def drawn_by(energy: Energy) -> Measured | None:
    """The energy of a result's measure windows; its uncertainty is infinite where the source states none."""
    if energy.energy_j is None:
        return None
    return Measured(energy.energy_j, math.inf if energy.uncertainty_j is None else energy.uncertainty_j)


def derive_energy(report: EnergyReport | None, work: Work, *, shared_host: bool = False) -> Energy:
    """Energy of the measure windows, per token and request. `shared_host`: other cycles may have run beside it."""
    if report is None or report.meter == "none":
        unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(Energy))
        unknown |= {"meter": "none", "measured": False, "devices": (), "windows": (), "phases": (), "calibrations": ()}
        return Energy(**unknown)
    measured = [window for window in report.windows if window.name == MEASURE]
    stated, idle = report.idle, _idle_power_w(report)
    drawn = total(measured)
    resets = _of_resets(drawn, idle, work.duration_s, work.reset_s)
    gross = _less(drawn, resets)
    net: Measured | None = None  # may be negative within its uncertainty when the load is close to idle
    if gross is not None and idle is not None:
        spread = math.hypot(gross.uncertainty, idle.uncertainty * work.duration_s)
        net = Measured(gross.value - idle.value * work.duration_s, spread)
    power = divided(gross, work.duration_s)
    per_output_token = divided(gross, work.output_tokens or 0)
    per_total_token = divided(gross, added(work.input_tokens, work.output_tokens) or 0)
    per_request = divided(gross, work.requests or 0)
    per_session = divided(gross, work.sessions or 0)
    per_1000_queries = divided(per_request, JOULES_PER_WH / 1000)
    per_joule = inverse(per_output_token)
    names = [field.name for field in fields(AccountedWindow)]
    return Energy(
        meter=report.meter,
        placement=report.placement,
        scope=report.scope,
        measured=report.measured,
        source=report.source,
        energy_j=value_of(gross),
        uncertainty_j=uncertainty_of(gross),
        gain_uncertainty_rel=report.gain_uncertainty_rel,
        energy_above_idle_j=value_of(net),
        energy_above_idle_uncertainty_j=uncertainty_of(net),
        idle_power_w=value_of(idle),
        idle_power_uncertainty_w=uncertainty_of(idle),
        idle_power_age_s=stated.age_s if stated else None,
        idle_power_reused_from=stated.reused_from if stated else None,
        reset_energy_j=value_of(resets) if idle is not None else None,
        reset_energy_uncertainty_j=uncertainty_of(resets),
        avg_power_w=value_of(power),
        avg_power_w_uncertainty=uncertainty_of(power),
        joules_per_output_token=value_of(per_output_token),
        joules_per_output_token_uncertainty=uncertainty_of(per_output_token),
        joules_per_total_token=value_of(per_total_token),
        joules_per_total_token_uncertainty=uncertainty_of(per_total_token),
        joules_per_request=value_of(per_request),
        joules_per_request_uncertainty=uncertainty_of(per_request),
        joules_per_session=value_of(per_session),
        joules_per_session_uncertainty=uncertainty_of(per_session),
        wh_per_1000_queries=value_of(per_1000_queries),
        wh_per_1000_queries_uncertainty=uncertainty_of(per_1000_queries),
        tokens_per_joule=value_of(per_joule),
        tokens_per_joule_uncertainty=uncertainty_of(per_joule),
        devices=tuple(_device(report, device, measured, drawn, resets) for device in report.devices),
        host=replace(report.host, shared=report.host.shared or shared_host) if report.host else None,
        windows=tuple(AccountedWindow(**{name: getattr(window, name) for name in names}) for window in report.windows),
        phases=_phases(report, gross, idle, work),
        calibrations=_calibrations(report),
    )


def _idle_power_w(report: EnergyReport) -> Measured | None:
    """The reused idle power, else the mean of the idle windows; `None` where the scope covers no idle device."""
    if report.idle is not None and report.idle.reused_from:
        uncertainty_w = report.idle.uncertainty_w
        return Measured(report.idle.power_w, math.inf if uncertainty_w is None else uncertainty_w)
    if report.scope == "process_estimate":
        return None  # a process's CPU time says nothing of what an idle device draws
    windows = [window for window in report.windows if window.name == IDLE]
    energy, seconds = total(windows), sum(window.end_ns - window.start_ns for window in windows) / 1e9
    return divided(energy, seconds)


def _of_resets(drawn: Measured | None, idle: Measured | None, work_s: float, reset_s: float) -> Measured | None:
    """What to take off windows of `work_s` and `reset_s`: idle power for as long as caches were emptied.

    The bound is what more was drawn if a reset drew as much as the rest of the window: no counter shows it, because it
    steps more rarely than resets come. Without idle power nothing is taken off, and the bound covers all.
    """
    if drawn is None or reset_s <= 0:
        return None
    idle = idle or Measured(0.0, 0.0)
    above_w = max(0.0, drawn.value / (work_s + reset_s) - idle.value)
    return Measured(idle.value * reset_s, math.hypot(idle.uncertainty * reset_s, above_w * reset_s))


def _less(drawn: Measured | None, resets: Measured | None, share: float = 1.0) -> Measured | None:
    """The energy without a share of what resets drew; unchanged where there were none."""
    if drawn is None or resets is None:
        return drawn
    return Measured(drawn.value - share * resets.value, math.hypot(drawn.uncertainty, share * resets.uncertainty))


def _device(
    report: EnergyReport,
    device: MeteredDevice,
    measured: Sequence[WindowEnergy],
    drawn: Measured | None,
    resets: Measured | None,
) -> EnergyDevice:
    """One device's energy; it bears the same share of the resets as of all that was drawn."""
    parts = [part for window in measured for part in window.devices if part.id == device.id]
    energy = total(parts) if len(parts) == len(measured) else None
    share = ratio(value_of(energy), value_of(drawn)) or 0.0
    energy = _less(energy, resets, share)
    return EnergyDevice(
        id=device.id,
        name=device.name,
        kind=device.kind,
        energy_j=value_of(energy),
        uncertainty_j=uncertainty_of(energy),
        temperature_c=_of_device(report, "temperature_c", device),
        leased=device.leased,
        counter_power_ratio=_of_device(report, "counter_power_ratio", device),
    )


def _of_device(report: EnergyReport, fact: str, device: MeteredDevice) -> float | None:
    """What the meter's `facts` say of a device under one name."""
    stated = report.facts.get(fact)
    value = stated.get(device.id) if isinstance(stated, Mapping) else None
    return value if isinstance(value, float) else None


def _calibrations(report: EnergyReport) -> tuple[CalibrationSection, ...]:
    traced: Any = report.facts.get("calibrations", ())
    return tuple(CalibrationSection(**entry) for entry in traced)


def _phases(report: EnergyReport, gross: Measured | None, idle: Measured | None, work: Work) -> tuple[PhaseEnergy, ...]:
    """Prefill from its own windows (one output token), decode by difference where the engine allows that.

    Without such windows both are from those of split batches, which are shorter and so have wider bounds.
    """
    windows = {
        name: [window for window in report.windows if window.name == name] for name in (PREFILL, FIRST_TOKEN, DECODE)
    }
    if not work.wants_phases and not windows[PREFILL]:
        return ()
    summed = total(windows[PREFILL])
    summed = _less(summed, _of_resets(summed, idle, work.prefill_s, work.prefill_reset_s))
    prefill, repeat = divided(summed, work.prefill_repeats or len(windows[PREFILL])), divided(gross, work.repeats)
    decode: Measured | None = None
    methods = "window with one output token", "difference" if work.separable_phases else "not separable in this engine"
    if work.separable_phases and prefill and repeat:
        decode = Measured(repeat.value - prefill.value, math.hypot(repeat.uncertainty, prefill.uncertainty))
    elif work.split_repeats and not windows[PREFILL]:
        prefill, decode = (divided(total(windows[name]), work.split_repeats) for name in (FIRST_TOKEN, DECODE))
        methods = SPLIT, SPLIT
    elif prefill is None:
        methods = "not measured", methods[1]
    return tuple(
        PhaseEnergy(
            name=name, energy_per_repeat_j=value_of(energy), uncertainty_j=uncertainty_of(energy), method=method
        )
        for name, energy, method in zip((PREFILL, DECODE), (prefill, decode), methods, strict=True)
    )


def divided(measured: Measured | None, divisor: float) -> Measured | None:
    """A quotient by what is known exactly; `None` where nothing was measured or the divisor is zero."""
    return Measured(measured.value / divisor, measured.uncertainty / divisor) if measured and divisor else None


def inverse(measured: Measured | None) -> Measured | None:
    """One over it, with the same relative uncertainty (first order, JCGM 100:2008, 5.1.2)."""
    return (
        Measured(1 / measured.value, measured.uncertainty / measured.value**2) if measured and measured.value else None
    )


def derive_steady_state(measurement: Measurement, rule: SteadyRule = "full") -> SteadyState | None:
    """Sums over the steady windows of all repeats; `None` for an engine that does not serve.

    Energy is `None` where the meter reads only at edges that were marked while measuring.
    """
    if not measurement.engine.capabilities.serves:
        return None
    windows = [window for window in measurement.windows if window.name == STEADY_STATE]
    duration_s = sum(window.duration_s for window in windows)
    output_tokens = _tokens_within(windows, measurement.requests)
    accounted = {
        w.index: w for w in (measurement.energy.windows if measurement.energy else ()) if w.name == STEADY_STATE
    }
    parts = [accounted[window.index] for window in windows if window.index in accounted]
    energy = total(parts) if len(parts) == len(windows) else None
    power, per_output_token = divided(energy, duration_s), divided(energy, output_tokens)
    reason: str | None = None
    if any(request.token_times_ns is None for request in measurement.requests if request.error is None):
        reason = (
            "the times of single tokens are not known, and so not how many were generated while the engine was full"
        )
    elif not windows:
        reason = "the engine was never as full as it can be: fewer requests than places, or none of them had to wait"
    elif duration_s < MIN_STEADY_S:
        least = f"{MIN_STEADY_S:.0f} s"
        reason = f"{duration_s:.1f} s of steady state, less than {least}: more prompts, or a longer measurement"
    arrivals = measurement.load_shape not in ("offline", "concurrency")
    method = "first_answer_or_full_to_last_arrival" if arrivals else "concurrency_limit"
    return SteadyState(
        method=method if rule == "full" else rule,
        valid=reason is None,
        reason=reason,
        duration_s=duration_s,
        output_tokens=output_tokens,
        output_tokens_per_s=ratio(output_tokens, duration_s),
        energy_j=value_of(energy),
        uncertainty_j=uncertainty_of(energy),
        avg_power_w=value_of(power),
        avg_power_w_uncertainty=uncertainty_of(power),
        joules_per_output_token=value_of(per_output_token),
        joules_per_output_token_uncertainty=uncertainty_of(per_output_token),
    )


def _tokens_within(windows: Sequence[Window], requests: Sequence[RequestRecord]) -> int:
    """Output tokens generated in a window: at or after its start, and before its end."""
    count = 0
    by_repeat: dict[int, list[tuple[int, ...]]] = {}
    for request in requests:
        if request.error is None and request.token_times_ns is not None:
            by_repeat.setdefault(request.repeat, []).append(request.token_times_ns)
    for window in windows:
        for times in by_repeat.get(window.index, ()):
            count += bisect_left(times, window.end_ns) - bisect_left(times, window.start_ns)
    return count
