"""Why a result may not be used, and what its reader must know although it may: `invalid_reasons` and `warnings`.

`derive` calls both with what one cycle measured. The codes are published: they may be added to, and keep their meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pytest_llem.energy.validity import thresholds
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import EnergyReport, Measurement, WarmupOutcome
from pytest_llem.job.report import Note, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.results.comparability import output_lengths_determined
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.sections.steady import derive_steady_state

UNNAMED = "error"
"""The class of a failed request whose engine names none."""


def invalid_reasons(job: Job, measurement: Measurement) -> tuple[Note, ...]:
    """Why the result may not be used; empty when it is valid."""
    reasons = [*measurement.invalid]
    if measurement.energy is not None:
        reasons += measurement.energy.invalid
    failures = _failed_requests(measurement)
    share = sum(failures_by_class(measurement).values()) / max(1, len(measurement.requests))
    if failures is not None and share > thresholds(job.meter.thresholds).failed_requests_rel:
        reasons.append(failures)
    if not any(window.name == MEASURE for window in measurement.windows):
        reasons.append(Note("no_measure_window", "the worker recorded no measure window"))
    elif not measurement.repeats:
        reasons.append(Note("no_repeats", "the measure window holds no whole repeat"))
    reasons += _repeats_differ(job, measurement)
    return tuple(dict.fromkeys(reasons))


def warnings(job: Job, measurement: Measurement, run: RunReport) -> tuple[Note, ...]:
    """What the worker, the meter and the runner noted, and what follows from the measurement itself."""
    notes = [*measurement.warnings, *run.notes, *(measurement.energy.notes if measurement.energy else ())]
    codes = {note.code for note in notes}
    notes += [note for note in _derived(job, measurement) if note.code not in codes]
    return tuple(dict.fromkeys(notes))


def failures_by_class(measurement: Measurement) -> dict[str, int]:
    """How many requests of all repeats failed, by class."""
    return dict(Counter(request.failure or UNNAMED for request in measurement.requests if request.error is not None))


def _failed_requests(measurement: Measurement) -> Note | None:
    """How many requests failed, by class, with the first error; `None` when none failed."""
    failed = [request for request in measurement.requests if request.error is not None]
    if not failed:
        return None
    classes = ", ".join(f"{count} {name}" for name, count in failures_by_class(measurement).items() if name != UNNAMED)
    return Note(
        "failed_requests",
        f"{len(failed)} of {len(measurement.requests)} requests failed{f' ({classes})' if classes else ''}, "
        f"first: {failed[0].error}",
    )


def _repeats_differ(job: Job, measurement: Measurement) -> list[Note]:
    """Repeats must have the same token counts, or the same input where sampling may end an answer.

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
    config = encode(job.config)
    determined = output_lengths_determined(config if isinstance(config, Mapping) else {})
    if len({(given, made if determined else None) for given, made in counts}) < 2:
        return []
    shown = ", ".join(f"{given} in / {made} out" for given, made in sorted(counts))
    return [Note("work_differs", f"repeats of one cycle hold different token counts: {shown}")]


def _derived(job: Job, measurement: Measurement) -> Iterator[Note]:
    if measurement.energy is not None:
        yield from _of_energy(job, measurement.energy)
    yield from _of_warmup(job, measurement.warmup)
    failures = _failed_requests(measurement)
    if failures is not None:
        yield failures
    yield from _of_server(job)
    steady = derive_steady_state(measurement)
    if steady is not None and steady.reason is not None and measurement.load_shape != "offline":
        yield Note("steady_state_short", steady.reason)
    hashes = {repeat.outputs_hash for repeat in measurement.repeats}
    if len(hashes) > 1 and not job.config.decoding.do_sample:
        yield Note("outputs_differ", f"greedy decoding gave {len(hashes)} different outputs over one cycle's repeats")


def _of_energy(job: Job, energy: EnergyReport) -> Iterator[Note]:
    if not energy.measured and energy.meter != "none":
        source = f" ({energy.source})" if energy.source else ""
        yield Note("estimated", f"energy comes from a model of the hardware, not from a sensor{source}")
    if job.devices.kind == "cpu" and any(device.kind == "gpu" for device in energy.devices):
        yield Note("meter_not_on_device", "the meter reads a GPU, and the engine ran on the CPU")
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
    if warmup.converged or warmup.reason == "fixed" or settings.max_repeats < settings.window:
        return
    ended = f"the warm-up ended at {warmup.reason} after {warmup.repeats} repeats ({warmup.duration_s:.1f} s)"
    if warmup.cv is None:
        detail = "too few to tell whether latency had converged"
    elif warmup.cv > settings.cv:
        detail = f"the last latencies varied by {warmup.cv:.1%}, and {settings.cv:.1%} was the limit"
    else:
        detail = f"latency had converged ({warmup.cv:.1%}), power had not"
    yield Note("warmup_not_converged", f"{ended}: {detail}")


def _of_server(job: Job) -> Iterator[Note]:
    """What the study sets and an external server, which was started by others, does not report."""
    config = job.config
    if config.settings.get("base_url") is None or job.server is not None:
        return
    stated = {"dtype": config.dtype, "revision": config.revision, "lora": config.lora}
    stated["weights"] = "dummy" if config.weights == "dummy" else None
    unverified = [f"{name} {value}" for name, value in stated.items() if value is not None]
    if unverified:
        yield Note("settings_not_verified", f"the server does not tell whether it runs with {', '.join(unverified)}")
