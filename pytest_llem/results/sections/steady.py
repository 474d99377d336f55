"""The `steady_state` section of a result: energy per token while a serving engine was full.

`derive` and `notes` call it; `worker.steady` marks the windows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from pytest_llem.job.measurement import EnergyReport, Measurement, RequestRecord, Window
from pytest_llem.results.schema import SteadyState
from pytest_llem.results.sections.energy import ratio, total, uncertainty_of, value_of
from pytest_llem.worker.steady import STEADY_STATE

MIN_STEADY_S = 30.0
"""The ML.ENERGY benchmark uses a steady state from 30 s on."""


def derive_steady_state(measurement: Measurement) -> SteadyState | None:
    """Sums over the steady windows of all repeats; `None` for an engine that does not serve.

    Energy is `None` where the meter reads only at edges that were marked while measuring.
    """
    if not measurement.engine.capabilities.serves:
        return None
    windows = [window for window in measurement.windows if window.name == STEADY_STATE]
    duration_s = sum(window.duration_s for window in windows)
    output_tokens = tokens_within(windows, measurement.requests)
    energy = total(_energies(measurement.energy, windows)) if windows else None
    joules = value_of(energy)
    reason = _reason(windows, duration_s, timed=_timed(measurement.requests))
    return SteadyState(
        method=_method(measurement.load_shape),
        valid=reason is None,
        reason=reason,
        duration_s=duration_s,
        output_tokens=output_tokens,
        output_tokens_per_s=ratio(output_tokens, duration_s),
        energy_j=joules,
        uncertainty_j=uncertainty_of(energy),
        avg_power_w=ratio(joules, duration_s),
        joules_per_output_token=ratio(joules, output_tokens),
    )


def tokens_within(windows: Sequence[Window], requests: Sequence[RequestRecord]) -> int:
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


def _energies(report: EnergyReport | None, windows: Sequence[Window]) -> list[tuple[float | None, float | None]]:
    accounted: Mapping[int, tuple[float | None, float | None]] = {
        window.index: (window.energy_j, window.uncertainty_j)
        for window in (report.windows if report is not None else ())
        if window.name == STEADY_STATE
    }
    return [accounted.get(window.index, (None, None)) for window in windows]


def _method(load_shape: str) -> str:
    if load_shape in ("constant", "poisson", "burst"):
        return "first_answer_or_full_to_last_arrival"
    return "concurrency_limit"


def _timed(requests: Sequence[RequestRecord]) -> bool:
    return all(request.token_times_ns is not None for request in requests if request.error is None)


def _reason(windows: Sequence[Window], duration_s: float, *, timed: bool) -> str | None:
    if not timed:
        return "the times of single tokens are not known, and so not how many were generated while the engine was full"
    if not windows:
        return "the engine was never as full as it can be: fewer requests than places, or none of them had to wait"
    if duration_s < MIN_STEADY_S:
        return (
            f"{duration_s:.1f} s of steady state, less than {MIN_STEADY_S:.0f} s: more prompts, or a longer measurement"
        )
    return None
