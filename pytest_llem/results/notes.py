"""Why a result may not be used, and what must be known of one that may: notes that follow from the measurement.

`derive` calls it. Codes are published (docs/errors.md) and stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import cast

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Thresholds
from pytest_llem.job.job import AMD_NOT_VERIFIED, Job
from pytest_llem.job.measurement import EnergyReport, Measurement, WarmupOutcome
from pytest_llem.job.report import Note, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.results.comparability import output_lengths_determined
from pytest_llem.results.energy_schema import Energy
from pytest_llem.results.saturation import SATURATED, OfferedLoad, offered_load
from pytest_llem.results.scored import Scored
from pytest_llem.results.sections.cpu import contended, shared
from pytest_llem.results.sections.energy import (
    MEASURE,
    derive_steady_state,
    ratio,
)
from pytest_llem.results.sections.workload import failed_requests, failures_by_class, work_remarks

NOTED_CUT_REL = 0.03
"""Chosen: less moves accuracy by no more than the choice of a thousand questions does."""
NOTED_RESETS_REL = 0.01
"""Chosen: less is within the spread of repeats."""


def invalid_reasons(job: Job, measurement: Measurement, energy: Energy) -> tuple[Note, ...]:
    """Why the result may not be used; empty when it is valid."""
    reasons = [*measurement.invalid]
    if measurement.energy is not None:
        reasons += measurement.energy.invalid
        reasons += _not_on_device(job, measurement.energy, {note.code for note in reasons})
    of_resets = ratio(energy.reset_energy_uncertainty_j, energy.energy_j)
    if of_resets is not None and of_resets > Thresholds.of(job.meter.thresholds).uncertainty_rel:
        text = f"emptying caches between repeats leaves their energy uncertain by {of_resets:.0%}"
        reasons.append(Note("window_too_short", f"{text}: raise workload.prompts, so that repeats are longer"))
    failures = failed_requests(measurement)
    share = sum(failures_by_class(measurement).values()) / max(1, len(measurement.requests))
    if failures is not None and share > Thresholds.of(job.meter.thresholds).failed_requests_rel:
        reasons.append(failures)
    if not any(window.name == MEASURE for window in measurement.windows):
        reasons.append(Note("no_measure_window", "the worker recorded no measure window"))
    elif not measurement.repeats:
        reasons.append(Note("no_repeats", "the measure window holds no whole repeat"))
    reasons += _repeats_differ(job, measurement)
    load = offered_load(measurement.requests, job.config.workload.arrival)
    if load is not None and load.saturated:
        reasons.append(Note(SATURATED, f"{_rates(load)}: the queue grew for as long as requests arrived"))
    starved, _ = contended(measurement, job.devices.kind, Thresholds.of(job.meter.thresholds))
    reasons += [] if starved is None else [starved]
    return tuple(dict.fromkeys(reasons))


def _not_on_device(job: Job, energy: EnergyReport, said: Collection[str]) -> list[Note]:
    """`meter_not_on_device` where nothing that the meter reads was leased to the cycle."""
    if "meter_not_on_device" in said or not energy.devices or any(device.leased for device in energy.devices):
        return []
    where = "a GPU" if job.devices.on_gpu else "the CPU"
    return [Note("meter_not_on_device", f"the engine ran on {where}, and the meter {energy.meter} reads other devices")]


def warnings(job: Job, measurement: Measurement, run: RunReport) -> tuple[Note, ...]:
    """What the worker, the meter and the runner noted, and what follows from the measurement itself."""
    notes = [*measurement.warnings, *run.notes, *(measurement.energy.notes if measurement.energy else ())]
    codes = {note.code for note in notes}
    notes += [note for note in _derived(job, measurement) if note.code not in codes]
    return tuple(dict.fromkeys(notes))


def _repeats_differ(job: Job, measurement: Measurement) -> list[Note]:
    """Repeats must have the same token counts, or the same input where sampling may end an answer, or it is scored.

    A request that failed in one repeat counts in none: failures are judged by themselves.
    """
    lost = {request.index for request in measurement.requests if request.error is not None}
    kept = [request for request in measurement.requests if request.index not in lost]
    counts = {
        (
            sum(request.input_tokens for request in kept if request.repeat == repeat.index),
            sum(request.output_tokens for request in kept if request.repeat == repeat.index),
        )
        for repeat in measurement.repeats
    }
    determined = output_lengths_determined(cast("dict[str, object]", encode(job.config)))
    determined = determined and not job.config.workload.scored
    if len({(given, made if determined else None) for given, made in counts}) < 2:
        return []
    shown = ", ".join(f"{given} in / {made} out" for given, made in sorted(counts))
    return [Note("work_differs", f"repeats of one cycle hold different token counts: {shown}")]


def _derived(job: Job, measurement: Measurement) -> Iterator[Note]:
    if job.devices.kind == "rocm":
        yield Note("device_not_verified", AMD_NOT_VERIFIED)
    if measurement.energy is not None:
        yield from _of_energy(measurement.energy)
    yield from _of_warmup(job, measurement.warmup)
    reset_s, work_s = reset_and_work_s(measurement, MEASURE)
    if reset_s > NOTED_RESETS_REL * work_s:
        yield Note(
            "resets_in_window",
            f"caches were emptied for {reset_s:.2f} s between repeats that took {work_s:.2f} s: that time and idle "
            "power for it are taken off, and the bound holds what else may have been drawn",
        )
    failures = failed_requests(measurement)
    if failures is not None:
        yield failures
    yield from work_remarks(job.config.workload, measurement)
    _, busy = contended(measurement, job.devices.kind, Thresholds.of(job.meter.thresholds))
    yield from (note for note in (busy, shared(measurement)) if note is not None)
    yield from _of_server(job, measurement.engine.effective)
    steady = derive_steady_state(measurement, job.config.measurement.steady_state)
    if steady is not None and steady.reason is not None and measurement.load_shape != "offline":
        yield Note("steady_state_short", steady.reason)
    load = offered_load(measurement.requests, job.config.workload.arrival)
    if load is not None and load.saturated is None:
        yield Note(
            "saturation_unknown",
            f"whether {load.offered_per_s:.3g} requests per second can be kept up is not known: "
            f"{load.answered:.0%} had been answered when the last one arrived",
        )
    hashes = {repeat.outputs_hash for repeat in measurement.repeats}
    if len(hashes) > 1 and not job.config.decoding.do_sample:
        yield Note("outputs_differ", f"greedy decoding gave {len(hashes)} different outputs over one cycle's repeats")


def answer_notes(scored: Scored | None) -> Iterator[Note]:
    """What a reader of accuracy must know: why there is none, or that longer answers might have been right."""
    if scored is None:
        return
    if scored.problem is not None:
        yield Note("answers_not_scored", scored.problem)
        return
    asked = sum(answer.repeats for answer in scored.answers)
    cut = sum(
        answer.repeats
        for answer in scored.answers
        if answer.finish_reason == "length" and answer.score is not None and answer.score < 1
    )
    if cut > NOTED_CUT_REL * asked:
        yield Note(
            "answers_cut",
            f"{cut / asked:.1%} of the answers were ended by output_tokens and are not right: accuracy is a lower "
            "bound of what longer answers would reach",
        )


def _rates(load: OfferedLoad) -> str:
    return f"{load.offered_per_s:.3g} requests per second arrived and {load.served_per_s:.3g} were served"


def _of_energy(energy: EnergyReport) -> Iterator[Note]:
    if not energy.measured and energy.meter != "none":
        source = f" ({energy.source})" if energy.source else ""
        yield Note("estimated", f"energy comes from a model of the hardware, not from a sensor{source}")
    if energy.idle is not None and not energy.idle.settled:
        slope = energy.idle.slope_w_per_s
        by = "" if slope is None else f" by {slope:.3g} W a second"
        yield Note(
            "idle_not_settled",
            f"power still changed{by} in the idle window: "
            "idle power and what is subtracted as such are not those of a device at rest",
        )


def _of_warmup(job: Job, warmup: WarmupOutcome) -> Iterator[Note]:
    """No note where the study allows fewer repeats than convergence takes to judge."""
    settings = job.config.measurement.warmup
    if warmup.judged_by == "latency" and job.devices.on_gpu and job.meter.name != "none":
        yield Note("warmup_latency_only", "latency had converged; power could not be read, and may still have changed")
    if warmup.converged or warmup.reason in ("fixed", "thermal_max_s") or settings.max_repeats < settings.window:
        return
    ended = f"the warm-up ended at {warmup.reason} after {warmup.repeats} repeats ({warmup.duration_s:.1f} s)"
    if warmup.cv is None:
        detail = "too few to tell whether latency had converged"
    elif warmup.cv > settings.cv:
        detail = f"the last latencies varied by {warmup.cv:.1%}, and {settings.cv:.1%} was the limit"
    else:
        detail = f"latency had converged ({warmup.cv:.1%}), power had not"
    yield Note("warmup_not_converged", f"{ended}: {detail}")


def _of_server(job: Job, effective: Mapping[str, JsonValue]) -> Iterator[Note]:
    """What the study sets and an external server, which was started by others, does not report."""
    config = job.config
    if config.settings.get("base_url") is None or job.server is not None:
        return
    told = {"dtype": effective.get("dtype"), "revision": effective.get("model_revision")}
    stated = {
        "dtype": config.dtype if told["dtype"] is None else None,
        "revision": config.revision if told["revision"] != config.revision else None,
        "lora": config.lora,
    }
    stated["weights"] = "dummy" if config.weights == "dummy" else None
    unverified = [f"{name} {value}" for name, value in stated.items() if value is not None]
    if unverified:
        yield Note("settings_not_verified", f"the server does not tell whether it runs with {', '.join(unverified)}")


def reset_and_work_s(measurement: Measurement, name: str) -> tuple[float, float]:
    """Seconds of the windows of one name in which caches were emptied between repeats, and their other seconds."""
    windows = [window for window in measurement.windows if window.name == name]
    reset_s = sum(window.reset_s for window in windows)
    return reset_s, sum(window.duration_s for window in windows) - reset_s
