"""What a reader must know although a result is valid, as far as it follows from the measurement itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_llem.job.job import Job
from pytest_llem.job.measurement import EnergyReport, Measurement, WarmupOutcome
from pytest_llem.job.report import Note
from pytest_llem.results.failures import failure_note
from pytest_llem.results.sections.steady import derive_steady_state


def remarks(job: Job, measurement: Measurement) -> Iterator[Note]:
    """The warnings that nobody gave while measuring."""
    if measurement.energy is not None:
        yield from _of_energy(job, measurement.energy)
    yield from _of_warmup(job, measurement.warmup)
    failures = failure_note(measurement)
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
    idle = energy.facts.get("idle")
    if isinstance(idle, Mapping) and idle.get("settled") is False:
        slope = idle.get("slope_w_per_s")
        by = f" by {slope:.3g} W a second" if isinstance(slope, float) else ""
        yield Note(
            "idle_not_settled",
            f"power still changed{by} in the idle window: "
            "idle power and what is subtracted as such are not those of a device at rest",
        )


def _of_warmup(job: Job, warmup: WarmupOutcome) -> Iterator[Note]:
    """Nothing where the study leaves fewer repeats than it takes to judge: it asked for no more than that."""
    settings = job.config.measurement.warmup
    if warmup.converged or warmup.reason == "fixed" or settings.max_repeats < settings.window:
        return
    ended = f"the warm-up ended at {warmup.reason} after {warmup.repeats} repeats ({warmup.duration_s:.1f} s)"
    if warmup.cv is None:
        said = "too few to tell whether latency had converged"
    elif warmup.cv > settings.cv:
        said = f"the last latencies varied by {warmup.cv:.1%}, and {settings.cv:.1%} was the limit"
    else:
        said = f"latency had converged ({warmup.cv:.1%}), power had not"
    yield Note("warmup_not_converged", f"{ended}: {said}")


def _of_server(job: Job) -> Iterator[Note]:
    """A server that was running already decides for itself what it runs."""
    config = job.config
    if config.settings.get("base_url") is None or job.server is not None:
        return
    asked = {"dtype": config.dtype, "revision": config.revision, "lora": config.lora}
    asked["weights"] = "dummy" if config.weights == "dummy" else None
    unverified = [f"{name} {value}" for name, value in asked.items() if value is not None]
    if unverified:
        yield Note("settings_not_verified", f"the server does not tell whether it runs with {', '.join(unverified)}")
