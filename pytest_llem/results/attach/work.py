"""What is known of work that no engine of this project did, and the result that it makes with a measurement's energy.

`attach` counts by a server's counters, `import` by another tool's file. What was not counted must stay `None`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import DeviceSettings, ExperimentConfig
from pytest_llem.job.job import Deadlines, DeviceSet, Job, MeterSettings
from pytest_llem.job.measurement import Measurement
from pytest_llem.job.report import Note
from pytest_llem.machine.environment import fingerprint, identity
from pytest_llem.results.derive import as_json, device_peaks, time_of_day
from pytest_llem.results.energy_schema import DeviceSection
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.performance_schema import Latency, Throughput
from pytest_llem.results.schema import (
    RESULT_VERSION,
    Compute,
    DeviceMemorySection,
    EngineSection,
    Environment,
    ExperimentSection,
    MemorySection,
    Result,
    RunnerSection,
    Tokens,
    ValiditySection,
    WorkloadSection,
)
from pytest_llem.results.sections.device import derive_device, device_reasons, with_power_limits
from pytest_llem.results.sections.energy import MEASURE, Work, added, derive_energy, ratio
from pytest_llem.results.state import now

UNKNOWN_LATENCY = Latency(ttft_s=None, tpot_s=None, itl_s=None, e2el_s=None)


@dataclass(frozen=True)
class KnownWork:
    """The work of the measure window. `duration_s` is the time that rates refer to; `load_shape` names its load."""

    duration_s: float
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    requests: int | None = None
    failed: int | None = None
    latency: Latency = UNKNOWN_LATENCY
    load_shape: str = "command"
    notes: tuple[Note, ...] = ()
    invalid: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Circumstances:
    """Where and with what it was measured: everything of a result that is neither work nor energy.

    The devices are not `known` where nothing was measured here.
    """

    run_id: str
    key: CycleKey
    config: Mapping[str, JsonValue]
    devices: DeviceSet
    meter: MeterSettings
    environment: Mapping[str, JsonValue]
    runner: str
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    known: bool = True

    @property
    def device_kind(self) -> str:
        """The kind of device, as the result has it."""
        return self.devices.kind if self.known else "unknown"


def result_of(about: Circumstances, measurement: Measurement, work: KnownWork, samples: Path) -> Result:
    """The result of one measured command; `samples` are the meter's readings."""
    measured = [window for window in measurement.windows if window.name == MEASURE]
    engine, report = measurement.engine, measurement.energy
    energy = derive_energy(
        report,
        Work(work.duration_s, 1, work.requests, work.input_tokens, work.output_tokens, separable_phases=False),
    )
    device = derive_device(_job(about), measurement, samples) if about.known else DeviceSection()
    environment = with_power_limits(about.environment, device)
    of_energy = report.invalid if report else ()
    reasons = tuple(dict.fromkeys((*measurement.invalid, *work.invalid, *device_reasons(device), *of_energy)))
    if report is not None and not reasons and energy.energy_j is None:
        reasons = (Note("sensor_gap", f"{report.meter}: it states no energy of the command's time"),)
    facts = identity(
        environment,
        engine=engine.name,
        runner=about.runner,
        image=None,
        device_kind=about.device_kind,
        device_count=len(about.devices.uuids),
        meter=about.meter.name,
        inputs={},
    )
    peaks = device_peaks(samples, measured)
    memory = tuple(
        DeviceMemorySection(id=id, weights_bytes=None, peak_allocated_bytes=None, device_peak_bytes=peak)
        for id, peak in peaks.items()
    )
    tokens_per_s = (
        ratio(work.output_tokens, work.duration_s),
        ratio(added(work.input_tokens, work.output_tokens), work.duration_s),
    )
    return Result(
        schema_version=RESULT_VERSION,
        status="invalid" if reasons else "valid",
        run_id=about.run_id,
        source_run=None,
        created_at=now(),
        measured_from=time_of_day(measurement.clock, measured[0].start_ns) if measured else None,
        measured_to=time_of_day(measurement.clock, measured[-1].end_ns) if measured else None,
        study=about.key.study,
        experiment=ExperimentSection(
            id=about.key.experiment_id, config_hash=about.key.config_hash, config=as_json(about.config)
        ),
        cycle=about.key.cycle,
        attempt=1,
        engine=EngineSection(
            name=engine.name,
            version=engine.version,
            effective=as_json(engine.effective),
            cache_reset=None,
            statistics=as_json(engine.statistics),
            token_times=False,
            separable_phases=False,
        ),
        runner=RunnerSection(
            name=about.runner,
            source="command line",
            isolation=measurement.worker.isolation,
            start_method=measurement.worker.start_method,
            image=None,
            image_digest=None,
            device_kind=about.device_kind,
            device_ids=about.devices.uuids,
            facts=as_json(about.facts),
        ),
        workload=WorkloadSection(
            prompts_hash=None,
            outputs_hash=None,
            load_shape=work.load_shape,
            repeats=1,
            requests=added(work.requests, work.failed) if work.failed is not None else work.requests,
            input_tokens=work.input_tokens,
            output_tokens=work.output_tokens,
            failed_requests=work.failed,
        ),
        validity=ValiditySection(valid=not reasons, reasons=reasons),
        energy=energy,
        device=device,
        tokens=Tokens(input=work.input_tokens, output=work.output_tokens, cached_input=work.cached_tokens),
        throughput=Throughput(
            output_tokens_per_s=tokens_per_s[0],
            total_tokens_per_s=tokens_per_s[1],
            requests_per_s=ratio(work.requests, work.duration_s),
            duration_s=work.duration_s,
        ),
        latency=work.latency,
        memory=MemorySection(devices=memory, host_peak_rss_bytes=None),
        compute=Compute(
            parameters=None,
            flops=None,
            flops_per_output_token=None,
            achieved_flops_per_s=None,
            peak_flops_per_s=None,
            mfu=None,
        ),
        warmup=measurement.warmup,
        timing={**_timing(measurement), **measurement.timing},
        environment=Environment(
            fingerprint=fingerprint(facts),
            comparable=as_json(facts),
            host=as_json(environment),
            worker={},
        ),
        warnings=tuple(dict.fromkeys((*measurement.warnings, *work.notes, *(report.notes if report else ())))),
    )


def _timing(measurement: Measurement) -> dict[str, float | None]:
    return {f"{window.name}_s": window.duration_s for window in measurement.windows}


def _job(about: Circumstances) -> Job:
    """What the section of devices is derived from: nothing is asked of the devices."""
    config = ExperimentConfig(model="", engine="openai", device=DeviceSettings(kind=about.devices.kind))
    key = about.key
    names = (key.study, key.experiment_id, key.config_hash)
    return Job(about.run_id, *names, config, 1, 1, about.devices, about.meter, Deadlines(0.0))
