"""Derives a result from what one cycle measured: sums, rates, percentiles, joules per token, and validity.

`attempts` calls it, once per measured attempt. It reads no file but the meter's samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from pydantic import JsonValue as PydanticJson

from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.validity import Thresholds
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import Measurement, RequestRecord, Window
from pytest_llem.job.report import Note, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.machine.environment import fingerprint, identity
from pytest_llem.machine.inputs import input_facts
from pytest_llem.results.comparability import output_lengths_determined
from pytest_llem.results.notes import failures_by_class, invalid_reasons, warnings
from pytest_llem.results.schema import (
    RESULT_VERSION,
    DeviceMemorySection,
    EngineSection,
    Environment,
    ExperimentSection,
    MemorySection,
    Result,
    RunnerSection,
    Throughput,
    Tokens,
    ValiditySection,
    WorkloadSection,
)
from pytest_llem.results.sections.compute import derive_compute
from pytest_llem.results.sections.energy import MEASURE, PREFILL, Work, derive_energy, ratio
from pytest_llem.results.sections.latency import latency
from pytest_llem.results.sections.steady import derive_steady_state


def derive_result(
    job: Job,
    measurement: Measurement,
    run: RunReport,
    *,
    study: str,
    environment: Mapping[str, JsonValue],
    device_peak_bytes: Mapping[str, int] | None = None,
) -> Result:
    """The result of one cycle.

    `environment` holds the host facts of the run (`environment.gather`), `device_peak_bytes` the highest memory in use
    by device where a sampler read it (`device_peaks`).
    """
    good = [request for request in measurement.requests if request.error is None]
    tokens = Tokens(
        input=sum(request.input_tokens for request in good),
        output=sum(request.output_tokens for request in good),
        cached_input=_cached(good),
    )
    duration_s = sum(window.duration_s for window in measurement.windows if window.name == MEASURE)
    work = Work(
        duration_s=duration_s,
        repeats=len(measurement.repeats),
        requests=len(good),
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        separable_phases=measurement.engine.capabilities.separable_phases,
        prefill_repeats=sum(window.repeats or 1 for window in measurement.windows if window.name == PREFILL),
    )
    reasons = invalid_reasons(job, measurement)
    return Result(
        schema_version=RESULT_VERSION,
        status="invalid" if reasons else "valid",
        run_id=job.run_id,
        source_run=None,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        study=study,
        experiment=ExperimentSection(
            id=job.experiment_id, config_hash=job.config_hash, config=_json(encode(job.config))
        ),
        cycle=job.cycle,
        attempt=job.attempt,
        engine=EngineSection(
            name=measurement.engine.name,
            version=measurement.engine.version,
            effective=_json(measurement.engine.effective),
            cache_reset=measurement.engine.cache_reset,
            statistics=_json(measurement.engine.statistics),
            token_times=measurement.engine.capabilities.token_times,
            separable_phases=measurement.engine.capabilities.separable_phases,
        ),
        runner=_runner(job, measurement, run),
        workload=_workload(measurement),
        validity=ValiditySection(valid=not reasons, reasons=reasons, thresholds=dict(job.meter.thresholds)),
        energy=derive_energy(measurement.energy, work, shared_host=_workers(run) > 1),
        tokens=tokens,
        throughput=Throughput(
            output_tokens_per_s=ratio(tokens.output, duration_s),
            total_tokens_per_s=ratio(tokens.input + tokens.output, duration_s),
            requests_per_s=ratio(len(good), duration_s),
        ),
        latency=latency(good),
        steady_state=derive_steady_state(measurement),
        memory=_memory(measurement, device_peak_bytes or {}),
        compute=derive_compute(job, measurement, good, duration_s, environment),
        warmup=measurement.warmup,
        timing=_timing(measurement),
        environment=_environment(job, measurement, run, environment),
        warnings=warnings(job, measurement, run),
    )


def _environment(
    job: Job, measurement: Measurement, run: RunReport, environment: Mapping[str, JsonValue]
) -> Environment:
    facts = identity(
        environment,
        engine=job.config.engine,
        runner=run.name,
        image=run.image_digest or run.image,
        device_kind=job.devices.kind,
        device_count=len(job.devices.uuids),
        meter=job.meter.name,
        inputs=input_facts(job.config) if run.inputs is None else run.inputs,
    )
    return Environment(
        fingerprint=fingerprint(facts),
        comparable=_json(facts),
        host=_json(environment),
        worker=_json(measurement.environment),
    )


def _workers(run: RunReport) -> int:
    """How many cycles of the run may have been measured at a time."""
    count = run.facts.get("concurrent_workers")
    return count if isinstance(count, int) else 1


def _json(value: object) -> dict[str, PydanticJson]:
    return cast("dict[str, PydanticJson]", encode(value))


def _cached(requests: Sequence[RequestRecord]) -> int | None:
    counts = [request.cached_tokens for request in requests]
    return None if not counts or None in counts else sum(count or 0 for count in counts)


def _runner(job: Job, measurement: Measurement, run: RunReport) -> RunnerSection:
    return RunnerSection(
        name=run.name,
        source=run.source,
        isolation=run.isolation,
        start_method=run.start_method or measurement.worker.start_method,
        image=run.image,
        image_digest=run.image_digest,
        device_kind=job.devices.kind,
        device_ids=job.devices.uuids,
        facts=_json(run.facts),
    )


def _workload(measurement: Measurement) -> WorkloadSection:
    first = measurement.repeats[0] if measurement.repeats else None
    requests = [request for request in measurement.requests if first is None or request.repeat == first.index]
    return WorkloadSection(
        prompts_hash=measurement.prompts_hash,
        outputs_hash=first.outputs_hash if first else None,
        load_shape=measurement.load_shape,
        repeats=len(measurement.repeats),
        requests=len(requests),
        input_tokens=sum(request.input_tokens for request in requests),
        output_tokens=sum(request.output_tokens for request in requests if request.error is None),
        failed_requests=sum(request.error is not None for request in measurement.requests),
        failures=failures_by_class(measurement),
    )


def _memory(measurement: Measurement, device_peak_bytes: Mapping[str, int]) -> MemorySection:
    peaks = {**device_peak_bytes, **(measurement.memory.device_peak_bytes or {})}
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
    return {**durations, **measurement.timing}


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
    """Mark a cycle whose repeat holds other work than an earlier valid cycle of its experiment."""
    if not siblings:
        return result
    cycle, work = min(siblings), result.workload
    other = siblings[cycle].workload
    same_input = (other.prompts_hash, other.input_tokens) == (work.prompts_hash, work.input_tokens)
    determined = output_lengths_determined(result.experiment.config)
    if same_input and (other.output_tokens == work.output_tokens or not determined):
        return result
    reason = Note(
        "work_differs",
        f"a repeat holds {work.input_tokens} input and {work.output_tokens} output tokens (prompts "
        f"{work.prompts_hash}); in cycle {cycle} it was {other.input_tokens} and {other.output_tokens} (prompts "
        f"{other.prompts_hash})",
    )
    validity = replace(result.validity, valid=False, reasons=(*result.validity.reasons, reason))
    return result.model_copy(update={"status": "invalid", "validity": validity})


def with_temperature_drift(result: Result, siblings: Mapping[int, Result]) -> Result:
    """The result, with a warning for each device that was warmer or colder than in another valid cycle.

    `siblings` are the other cycles by number. The limit is `temperature_drift_c` of the validity's thresholds.
    """
    limit_c = result.validity.thresholds.get("temperature_drift_c", Thresholds.temperature_drift_c)
    drifts: list[Note] = []
    for device in result.energy.devices:
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
