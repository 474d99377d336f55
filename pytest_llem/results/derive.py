"""Derives a result from what one cycle measured: sums, rates, percentiles, joules per token, validity and warnings.

`attempts` calls it, once per measured attempt. It may read no file but the meter's samples. The codes of reasons and
warnings are published: they may be added to, and keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from pydantic import JsonValue as PydanticJson

from pytest_llem.energy.readings import read_samples
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Thresholds
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import Measurement, Window
from pytest_llem.job.report import Note, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.machine.environment import fingerprint, identity, input_facts
from pytest_llem.results.comparability import output_lengths_determined
from pytest_llem.results.energy_schema import DeviceSection, ThermalSection
from pytest_llem.results.notes import answer_notes, invalid_reasons, reset_and_work_s, warnings
from pytest_llem.results.performance_schema import Throughput
from pytest_llem.results.schema import (
    RESULT_VERSION,
    DeviceMemorySection,
    EngineSection,
    Environment,
    ExperimentSection,
    MemorySection,
    Result,
    RunnerSection,
    Tokens,
    ValiditySection,
)
from pytest_llem.results.scored import Scored
from pytest_llem.results.sections.compute import derive_compute
from pytest_llem.results.sections.cpu import derive_cpu
from pytest_llem.results.sections.device import device_reasons, with_power_limits
from pytest_llem.results.sections.energy import (
    DECODE,
    MEASURE,
    PREFILL,
    Work,
    added,
    derive_energy,
    derive_steady_state,
    ratio,
)
from pytest_llem.results.sections.performance import latency
from pytest_llem.results.sections.quality import derive_quality
from pytest_llem.results.sections.slo import derive_slo
from pytest_llem.results.sections.thermal import thermal_notes
from pytest_llem.results.sections.workload import derive_workload, whole_sessions
from pytest_llem.results.state import now


def derive_result(
    job: Job,
    measurement: Measurement,
    run: RunReport,
    *,
    study: str,
    environment: Mapping[str, JsonValue],
    device_peak_bytes: Mapping[str, int] | None = None,
    thermal: ThermalSection | None = None,
    device: DeviceSection | None = None,
    scored: Scored | None = None,
) -> Result:
    """The result of one cycle.

    `environment` is what `environment.gather` found; `device_peak_bytes`, `thermal` and `device` are what
    `device_peaks`, `derive_thermal` and `derive_device` did in a sampler's readings, and `scored` what `score_cycle`
    made of the answers.
    """
    thermal = thermal or ThermalSection(mode=job.config.measurement.warmup.thermal)
    device = device or DeviceSection(kind=job.devices.kind)
    environment = with_power_limits(environment, device)
    unsettled = tuple(thermal_notes(thermal, measurement.energy))
    settled_is_asked = thermal.mode == "settled"
    good = [request for request in measurement.requests if request.error is None]
    cached = [request.cached_tokens for request in good if request.cached_tokens is not None]
    tokens = Tokens(
        input=sum(request.input_tokens for request in good),
        output=sum(request.output_tokens for request in good),
        cached_input=sum(cached) if cached and len(cached) == len(good) else None,
    )
    reset_s, duration_s = reset_and_work_s(measurement, MEASURE)
    prefill_reset_s, prefill_s = reset_and_work_s(measurement, PREFILL)
    measured = [window for window in measurement.windows if window.name == MEASURE]
    work = Work(
        duration_s=duration_s,
        repeats=len(measurement.repeats),
        requests=len(good),
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        separable_phases=measurement.engine.capabilities.separable_phases,
        sessions=whole_sessions(measurement),
        prefill_repeats=sum(window.repeats or 1 for window in measurement.windows if window.name == PREFILL),
        reset_s=reset_s,
        prefill_s=prefill_s,
        prefill_reset_s=prefill_reset_s,
        split_repeats=sum(window.repeats or 0 for window in measurement.windows if window.name == DECODE),
        wants_phases=bool(job.config.measurement.phases),
    )
    at_a_time = run.facts.get("concurrent_workers")
    energy = derive_energy(measurement.energy, work, shared_host=isinstance(at_a_time, int) and at_a_time > 1)
    reasons = (
        *invalid_reasons(job, measurement, energy),
        *device_reasons(device),
        *(unsettled if settled_is_asked else ()),
    )
    facts = identity(
        environment,
        engine=job.config.engine,
        runner=run.name,
        image=run.image_digest or run.image,
        device_kind=job.devices.kind,
        device_count=len(job.devices.uuids),
        meter=job.meter.name,
        inputs=input_facts(job.config) if run.inputs is None else run.inputs,
        power_limit=job.config.device.power_limit_w,
    )
    return Result(
        schema_version=RESULT_VERSION,
        status="invalid" if reasons else "valid",
        run_id=job.run_id,
        source_run=None,
        created_at=now(),
        measured_from=time_of_day(measurement.clock, measured[0].start_ns if measured else None),
        measured_to=time_of_day(measurement.clock, measured[-1].end_ns if measured else None),
        study=study,
        experiment=ExperimentSection(id=job.experiment_id, config_hash=job.config_hash, config=as_json(job.config)),
        cycle=job.cycle,
        attempt=job.attempt,
        engine=EngineSection(
            name=measurement.engine.name,
            version=measurement.engine.version,
            effective=as_json(measurement.engine.effective),
            cache_reset=measurement.engine.cache_reset,
            statistics=as_json(measurement.engine.statistics),
            token_times=measurement.engine.capabilities.token_times,
            separable_phases=measurement.engine.capabilities.separable_phases,
        ),
        runner=RunnerSection(
            name=run.name,
            source=run.source,
            isolation=run.isolation,
            start_method=run.start_method or measurement.worker.start_method,
            image=run.image,
            image_digest=run.image_digest,
            device_kind=job.devices.kind,
            device_ids=job.devices.uuids,
            facts=as_json(run.facts),
        ),
        workload=derive_workload(measurement),
        validity=ValiditySection(valid=not reasons, reasons=reasons, thresholds=dict(job.meter.thresholds)),
        energy=energy,
        thermal=thermal,
        device=device,
        tokens=tokens,
        throughput=Throughput(
            output_tokens_per_s=ratio(tokens.output, duration_s),
            total_tokens_per_s=ratio(added(tokens.input, tokens.output), duration_s),
            requests_per_s=ratio(len(good), duration_s),
            duration_s=duration_s,
        ),
        latency=latency(good, job.percentiles),
        slo=derive_slo(job.config.slo, measurement.requests, duration_s, energy),
        quality=None
        if scored is None
        else derive_quality(
            job.config.workload,
            scored.scorer,
            scored.answers,
            scored.problem,
            energy,
            asked=len(measurement.requests),
        ),
        steady_state=derive_steady_state(measurement, job.config.measurement.steady_state),
        memory=_memory(measurement, device_peak_bytes or {}),
        cpu=derive_cpu(measurement.cpu),
        compute=derive_compute(job, measurement, good, duration_s, environment),
        warmup=measurement.warmup,
        timing=_timing(measurement),
        environment=Environment(
            fingerprint=fingerprint(facts),
            comparable=as_json(facts),
            host=as_json(environment),
            worker=as_json(measurement.environment),
        ),
        warnings=(
            *warnings(job, measurement, run),
            *answer_notes(scored),
            *(() if settled_is_asked else unsettled),
        ),
    )


def time_of_day(clock: Mapping[str, JsonValue], monotonic_ns: int | None) -> str | None:
    """A time of the worker's monotonic clock as ISO 8601 in UTC; `None` where its clocks are not known."""
    offset_ns = realtime_offset_ns(clock)
    if offset_ns is None or monotonic_ns is None:
        return None
    return datetime.fromtimestamp((offset_ns + monotonic_ns) / 1e9, timezone.utc).isoformat(timespec="microseconds")


def realtime_offset_ns(clock: Mapping[str, JsonValue]) -> int | None:
    """What to add to a measurement's monotonic clock to get the time of day; `None` where its clocks are not known."""
    match clock:
        case {"realtime_ns": int(realtime_ns), "monotonic_ns": int(read_ns)}:
            return realtime_ns - read_ns
    return None


def as_json(value: object) -> dict[str, PydanticJson]:
    """A mapping or dataclass as a result has it."""
    return cast("dict[str, PydanticJson]", encode(value))


def _memory(measurement: Measurement, device_peak_bytes: Mapping[str, int]) -> MemorySection:
    beside = {device.id for device in (measurement.energy.devices if measurement.energy else ()) if not device.leased}
    read = {**device_peak_bytes, **(measurement.memory.device_peak_bytes or {})}
    peaks = {id: peak for id, peak in read.items() if id not in beside}
    devices = [
        DeviceMemorySection(**asdict(device), device_peak_bytes=peaks.pop(device.id, None))
        for device in measurement.memory.devices
    ]
    devices += [
        DeviceMemorySection(id=id, weights_bytes=None, peak_allocated_bytes=None, device_peak_bytes=peak)
        for id, peak in peaks.items()
    ]
    return MemorySection(devices=tuple(devices), host_peak_rss_bytes=measurement.memory.host_peak_rss_bytes)


def _timing(measurement: Measurement) -> dict[str, float | None]:
    durations: dict[str, float | None] = {}
    for window in measurement.windows:
        key = f"{window.name}_s"
        durations[key] = (durations.get(key) or 0.0) + window.duration_s
    return {**durations, "reset_s": reset_and_work_s(measurement, MEASURE)[0], **measurement.timing}


def device_peaks(samples: Path, windows: Sequence[Window]) -> dict[str, int]:
    """The highest memory in use (bytes, by NVML, all processes) per device over the windows.

    NVML is read every half second and whenever the energy counter is first read, so that a short
    allocation in between is missed; torch and vLLM keep what they have allocated. Devices without a reading are absent.
    """
    peaks: dict[str, int] = {}
    for sample in read_samples(samples):
        used = sample.memory_bytes
        if used is not None and any(window.start_ns <= sample.t_ns <= window.end_ns for window in windows):
            peaks[sample.device] = max(peaks.get(sample.device, 0), used)
    return peaks


def compare_work(result: Result, siblings: Mapping[int, Result]) -> Result:
    """Mark a cycle whose repeat holds other work than an earlier valid cycle of its experiment.

    Scored answers may have other lengths: their questions are the work, and what differs is a warning.
    """
    if not siblings:
        return result
    cycle, work = min(siblings), result.workload
    other = siblings[cycle].workload
    same_input = (other.prompts_hash, other.input_tokens) == (work.prompts_hash, work.input_tokens)
    determined = output_lengths_determined(result.experiment.config)
    same_times = other.arrivals_hash == work.arrivals_hash
    if same_input and same_times and (other.output_tokens == work.output_tokens or not determined):
        return result
    if same_input and same_times and result.quality is not None:
        differs = Note(
            "answers_differ",
            f"greedy answers to the same questions have {work.output_tokens} tokens; in cycle {cycle} they had "
            f"{other.output_tokens}",
        )
        return result.model_copy(update={"warnings": (*result.warnings, differs)})
    reason = Note(
        "work_differs",
        f"a repeat holds {work.input_tokens} input and {work.output_tokens} output tokens (prompts "
        f"{work.prompts_hash}); in cycle {cycle} it was {other.input_tokens} and {other.output_tokens} (prompts "
        f"{other.prompts_hash}){'' if same_times else ', and its requests came at other times'}",
    )
    validity = replace(result.validity, valid=False, reasons=(*result.validity.reasons, reason))
    return result.model_copy(update={"status": "invalid", "validity": validity})


def with_temperature_drift(result: Result, siblings: Mapping[int, Result]) -> Result:
    """The result, warning of devices warmer or colder than in a sibling cycle by over `temperature_drift_c`."""
    limit_c = result.validity.thresholds.get("temperature_drift_c", Thresholds.temperature_drift_c)
    drifts: list[Note] = []
    for device in (device for device in result.energy.devices if device.leased):
        others = {
            cycle: other.temperature_c
            for cycle, sibling in siblings.items()
            for other in sibling.energy.devices
            if other.id == device.id and other.temperature_c is not None
        }
        now_c = device.temperature_c
        if now_c is None or not others:
            continue
        cycle, other_c = max(others.items(), key=lambda item: abs(item[1] - now_c))
        if abs(other_c - now_c) > limit_c:
            text = f"{device.id}: {now_c:.0f} C while measured, {other_c:.0f} C in cycle {cycle}"
            drifts.append(Note("temperature_drift", text))
    return result.model_copy(update={"warnings": (*result.warnings, *drifts)}) if drifts else result
