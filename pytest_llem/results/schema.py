"""`result.json`: the published result of one cycle, and its JSON Schema (`llem schema result`).

`derive` builds it; `results`, `llem schema` and the session read it. Fields may be added; a renamed or removed
one needs a new `RESULT_VERSION` with a migration in `reading`. What was not measured is `null`. Quantities are SI with
their unit as suffix, except `wh_per_1000_queries`, which AI Energy Score defines so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DataclassSchema

from pytest_llem.job.measurement import AccountedWindow, CpuEnergy, DeviceMemory, TruncatedPrompts, WarmupOutcome
from pytest_llem.job.report import Note

RESULT_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""

Count = Annotated[int, Field(ge=0)]


def _about(description: str) -> dict[str, str]:
    return {"description": description}


SENSOR_ALONE = _about("k=2, of the sensor alone, without the board's gain error; null where that is unknown.")
"""On the uncertainty of one cycle's figure: scatter and state of the machine show only between cycles and runs."""


@dataclass(frozen=True, kw_only=True)
class ValiditySection:
    """Whether the measurement may be used."""

    valid: bool
    reasons: tuple[Note, ...] = field(metadata=_about("Why not; empty when valid."))
    thresholds: dict[str, float] = field(
        default_factory=dict, metadata=_about("Limits that the study set; all others had their defaults.")
    )


@dataclass(frozen=True, kw_only=True)
class ExperimentSection:
    """What was measured."""

    id: str = field(metadata=_about("The experiment's id within its study."))
    config_hash: str = field(metadata=_about("Hash over every setting that changes the measurement."))
    config: dict[str, JsonValue] = field(metadata=_about("The resolved configuration, defaults spelled out."))


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """The inference engine that ran."""

    name: str
    version: str
    effective: dict[str, JsonValue] = field(
        metadata=_about("What the engine really ran with: model_path, dtype, device, ...")
    )
    cache_reset: str | None = field(metadata=_about("State of the prefix cache before every repeat."))
    statistics: dict[str, JsonValue] = field(
        default_factory=dict,
        metadata=_about(
            "What the engine's scheduler counted in the measure window: preemptions, cache use, speculation."
        ),
    )
    token_times: bool = field(metadata=_about("Whether the engine reports the time of each token."))
    separable_phases: bool = field(metadata=_about("Whether decode energy by difference means something."))


@dataclass(frozen=True, kw_only=True)
class RunnerSection:
    """Where the cycle ran."""

    name: str
    source: str = field(metadata=_about("Who chose the runner: command line, environment, study, ..."))
    isolation: str
    start_method: str = field(metadata=_about("How the worker process was started."))
    image: str | None
    image_digest: str | None
    device_kind: str
    device_ids: tuple[str, ...] = field(metadata=_about("UUIDs of the leased accelerators, as the engine saw them."))
    facts: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class WorkloadSection:
    """The identity of the work: that of one repeat, however many repeats fitted."""

    prompts_hash: str
    outputs_hash: str | None = field(metadata=_about("Hash of the first repeat's output token ids, or texts."))
    load_shape: str = field(metadata=_about("offline, or the arrival process of a serving load."))
    repeats: Count
    requests: Count = field(metadata=_about("Requests of one repeat."))
    input_tokens: Count = field(metadata=_about("Input tokens of one repeat."))
    output_tokens: Count = field(metadata=_about("Output tokens of one repeat."))
    failed_requests: Count = field(metadata=_about("Requests that failed, over all repeats."))
    failures: dict[str, Count] = field(
        default_factory=dict, metadata=_about("The same by class: timeout, stalled, dropped, http_429, http_5xx, ...")
    )
    finish_reasons: dict[str, Count] = field(
        default_factory=dict,
        metadata=_about(
            "Answers of all repeats by why they ended: length (output_tokens reached), stop (end of sequence), error."
        ),
    )
    prompts_truncated: TruncatedPrompts | None = field(
        default=None, metadata=_about("Prompts of one repeat that were cut; null in results of older versions.")
    )
    rows_skipped: Count | None = field(
        default=None,
        metadata=_about("Rows of the data set that held no text and were passed over; null as above."),
    )


@dataclass(frozen=True, kw_only=True)
class EnergyDevice:
    """Energy of one metered device over the measure windows."""

    id: str
    name: str | None
    kind: str
    energy_j: float | None
    uncertainty_j: float | None = field(metadata=_about("k=2, without the board's gain error."))
    temperature_c: float | None = field(
        default=None, metadata=_about("Mean over the measure windows, in degrees Celsius.")
    )
    leased: bool = field(
        default=True, metadata=_about("False for a device that was read beside the cycle's own: it enters no sum.")
    )
    counter_power_ratio: float | None = field(
        default=None, metadata=_about("Energy by the counter over that by the same sensor's power readings.")
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationSection:
    """The calibration of one device's sensor that the bounds rest on."""

    device: str = field(metadata=_about("The metered device's id."))
    id: str
    hash: str = field(metadata=_about("SHA-256 over all that calibration found."))
    made_at: str | None = field(metadata=_about("ISO 8601 in UTC."))
    valid_until: str | None = field(metadata=_about("ISO 8601 in UTC."))
    expired: bool = field(metadata=_about("Whether it was past that when it was used."))
    conditions: dict[str, JsonValue] = field(metadata=_about("Under which it was made: board, clocks, load, ..."))


@dataclass(frozen=True, kw_only=True)
class PhaseEnergy:
    """Energy of one phase of a repeat; `method` says how it was told apart."""

    name: str
    energy_per_repeat_j: float | None
    uncertainty_j: float | None
    method: str


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of the measure windows, summed over the leased devices."""

    meter: str = field(metadata=_about("The source of the readings; `none` when no energy was measured."))
    placement: Literal["host", "worker"] | None
    scope: str | None = field(metadata=_about("What a joule covers: gpu_board, module, cpu_package+dram, ..."))
    measured: bool = field(metadata=_about("False when a model of the hardware stands in for a sensor."))
    source: str | None = field(metadata=_about("Where that model is published."))
    energy_j: float | None = field(metadata=_about("Of the measure windows, less reset_energy_j."))
    uncertainty_j: float | None = field(metadata=_about("k=2; leaves out the board's gain error."))
    gain_uncertainty_rel: float | None = field(metadata=_about("Relative gain error of the board's sensor, per board."))
    energy_above_idle_j: float | None = field(metadata=_about("energy_j minus idle power times its time."))
    energy_above_idle_uncertainty_j: float | None = field(metadata=_about("k=2."))
    idle_power_w: float | None = field(metadata=_about("Mean power of the idle window, model loaded."))
    idle_power_uncertainty_w: float | None = field(metadata=_about("k=2."))
    idle_power_age_s: float | None = field(
        default=None,
        metadata=_about("Seconds from its end to the measure window, or to the cycle's end where it was reused."),
    )
    idle_power_reused_from: str | None = field(
        default=None, metadata=_about("The cycle that measured it, where another one did.")
    )
    avg_power_w: float | None = field(metadata=_about("energy_j over throughput.duration_s."))
    avg_power_w_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    reset_energy_j: float | None = field(
        default=None,
        metadata=_about(
            "Taken off the measure windows: idle power times timing.reset_s, in which caches were emptied between "
            "repeats. Null where nothing is known to take off: what resets drew is then in energy_j, within its bound."
        ),
    )
    reset_energy_uncertainty_j: float | None = field(
        default=None, metadata=_about("k=2, part of uncertainty_j: resets may draw as much as the load.")
    )
    joules_per_output_token: float | None
    joules_per_output_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_total_token: float | None = field(metadata=_about("Per input and output token together."))
    joules_per_total_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_request: float | None
    joules_per_request_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    wh_per_1000_queries: float | None = field(
        metadata=_about("Watt-hours per 1000 requests, as AI Energy Score counts.")
    )
    wh_per_1000_queries_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    tokens_per_joule: float | None = field(metadata=_about("Output tokens per joule."))
    tokens_per_joule_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    devices: tuple[EnergyDevice, ...]
    host: CpuEnergy | None
    windows: tuple[AccountedWindow, ...]
    phases: tuple[PhaseEnergy, ...]
    calibrations: tuple[CalibrationSection, ...] = field(
        default=(), metadata=_about("Of the metered devices; a device that is not calibrated has none.")
    )


@dataclass(frozen=True, kw_only=True)
class ThermalSection:
    """How far the leased GPUs were from the temperature that the load keeps, which leakage and so energy depend on."""

    mode: Literal["settled", "repeatable"] = field(default="repeatable", metadata=_about("What the study asked for."))
    state: Literal["settled", "unsettled", "unknown"] = field(
        default="unknown", metadata=_about("What the readings show; unknown without temperatures.")
    )
    load_s: float | None = field(
        default=None, metadata=_about("Seconds from the warm-up's begin to the measure window's end.")
    )
    temperature_c: float | None = field(
        default=None, metadata=_about("Mean over the measure windows, of the hottest leased GPU.")
    )
    distance_c: float | None = field(
        default=None, metadata=_about("Most that this may lie from the settled temperature; null where unknown.")
    )
    leakage_rel_per_c: float | None = field(
        default=None, metadata=_about("Change of a repeat's energy per degree, as a share; null where unknown.")
    )
    uncertainty_rel: float | None = field(
        default=None,
        metadata=_about("k=2: how far the energy may lie from that of a settled die, as a share of it."),
    )
    hot_idle_power_w: float | None = field(
        default=None, metadata=_about("Idle power right after the load, while the die is still hot.")
    )
    hot_idle_power_uncertainty_w: float | None = field(default=None, metadata=_about("k=2."))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Totals of the measure windows, over requests that succeeded."""

    input: Count
    output: Count = field(metadata=_about("Tokens generated, without padding after the end of sequence."))
    cached_input: Count | None = field(metadata=_about("Input tokens served from a prefix cache."))


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Rates over the measure windows' time."""

    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    requests_per_s: float | None
    duration_s: float | None = field(
        default=None, metadata=_about("The measure windows' time without resets of caches between repeats.")
    )


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """The time in which a serving engine was as full as it gets, between ramp and tail, over all repeats.

    With B the most requests that run at once and N those of a repeat, each repeat's window is [opens, closes), and
    joules_per_output_token = sum of the windows' energy / sum of the output tokens that arrived within them.
    """

    method: str = field(
        metadata=_about(
            "concurrency_limit: opens when B requests run (first to last token), closes when that many do for the "
            "last time. first_answer_or_full_to_last_arrival: for requests that arrive at a rate: opens with the first "
            "answer or B running, closes with the last arrival or, if later, as before. ml_energy: opens with the B-th "
            "first token, closes when N - B - 1 requests have ended."
        )
    )
    valid: bool = field(metadata=_about("Whether it lasted at least 30 s."))
    reason: str | None = field(metadata=_about("Why it is not valid."))
    duration_s: float
    output_tokens: Count = field(metadata=_about("Output tokens generated within."))
    output_tokens_per_s: float | None
    energy_j: float | None
    uncertainty_j: float | None = field(metadata=_about("k=2, without the board's gain error."))
    avg_power_w: float | None
    avg_power_w_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_output_token: float | None
    joules_per_output_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Seconds over the successful requests; percentiles by linear interpolation between order statistics."""

    n: Count | None = field(default=None, metadata=_about("How many values it is over; null in older results."))
    mean: float
    std: float | None = field(
        default=None, metadata=_about("Standard deviation of these values (divided by n); null in older results.")
    )
    p50: float
    p90: float | None = field(metadata=_about("Null below 10 values: none of them would be expected beyond it."))
    p99: float | None = field(metadata=_about("Null below 100 values, for the same reason."))


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Request latencies; `null` where the engine does not report the times that a definition needs."""

    ttft_s: Distribution | None = field(metadata=_about("Time to first token."))
    tpot_s: Distribution | None = field(metadata=_about("Time per output token after the first, per request."))
    itl_s: Distribution | None = field(
        metadata=_about("Times between successive tokens, over all requests; 0 between tokens that arrive together.")
    )
    itl_chunk_s: Distribution | None = field(
        default=None,
        metadata=_about(
            "Times between successive arrivals, however many tokens each brought, over all requests: the itl of "
            "`vllm bench serve`, and so that of exports in its format."
        ),
    )
    e2el_s: Distribution | None = field(metadata=_about("End-to-end latency of a request."))


@dataclass(frozen=True, kw_only=True)
class DeviceMemorySection(DeviceMemory):
    """Memory of one device."""

    device_peak_bytes: Count | None = field(
        metadata=_about(
            "Peak in use over the whole device and all processes, by NVML's readings in the measure windows."
        )
    )


@dataclass(frozen=True, kw_only=True)
class MemorySection:
    """Peaks over the measure windows."""

    devices: tuple[DeviceMemorySection, ...]
    host_peak_rss_bytes: Count | None


@dataclass(frozen=True, kw_only=True)
class CpuSection:
    """How far the measured processes (worker, local server, children) got the CPU time that they asked for."""

    contended_rel: float | None = field(
        metadata=_about("(waited_s + stolen_s) over (ran_s + waited_s + stolen_s); null where nothing ran.")
    )
    ran_s: float = field(metadata=_about("CPU time of all threads in the measure window."))
    waited_s: float = field(metadata=_about("Time that they were ready to run and waited for a CPU (run-queue delay)."))
    stolen_s: float | None = field(metadata=_about("Their part of what a hypervisor gave to other machines (steal)."))
    steal_rel: float | None = field(metadata=_about("Steal as a share of the demand on the CPUs that they may use."))
    pressure_rel: float | None = field(
        metadata=_about(
            "Share of the window in which some task of the machine waited for a CPU (PSI); null under 10 s, since the "
            "kernel renews it every 2 s."
        )
    )
    throttled_s: float | None = field(metadata=_about("Time in which CPU quotas of control groups held them back."))
    cpus: Count = field(metadata=_about("CPUs that the worker may use."))
    others_rel: float | None = field(
        default=None,
        metadata=_about("Share of the work of all the machine's CPUs that was not that of these processes."),
    )


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Arithmetic work of the measure windows, from the model's architecture."""

    parameters: Count | None
    flops: float | None = field(
        metadata=_about("Useful operations of all repeats: no tokens from a prefix cache, no pairs beyond a window.")
    )
    flops_per_output_token: float | None
    achieved_flops_per_s: float | None
    peak_flops_per_s: float | None = field(metadata=_about("The devices' published dense peak for `peak_dtype`."))
    peak_dtype: str | None = field(
        default=None,
        metadata=_about("What matrices are multiplied in, which quantised weights alone do not change."),
    )
    mfu: float | None = field(metadata=_about("achieved_flops_per_s / peak_flops_per_s; null above 1."))


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what it was measured."""

    fingerprint: str = field(metadata=_about("Hash over `comparable`."))
    comparable: dict[str, JsonValue] = field(metadata=_about("The facts that must be equal for energies to compare."))
    host: dict[str, JsonValue] = field(metadata=_about("The machine and packages of the pytest process."))
    worker: dict[str, JsonValue] = field(metadata=_about("The worker's own process, node and packages."))


class Result(BaseModel):
    """One cycle of one experiment, measured."""

    # The sections are read under it as well.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, revalidate_instances="always"
    )

    schema_version: int = Field(ge=1)
    status: Literal["valid", "invalid"]
    run_id: str
    source_run: str | None = Field(description="The earlier run that measured this, when it was reused.")
    created_at: str = Field(description="When the result was derived, ISO 8601 in UTC.")
    measured_from: str | None = Field(default=None, description="When the first measure window began, as created_at.")
    measured_to: str | None = Field(default=None, description="When the last measure window ended, as created_at.")
    study: str
    experiment: ExperimentSection
    cycle: int = Field(ge=1)
    attempt: int = Field(ge=1)
    engine: EngineSection
    runner: RunnerSection
    workload: WorkloadSection
    validity: ValiditySection
    energy: Energy
    thermal: ThermalSection = Field(default_factory=ThermalSection)
    tokens: Tokens
    throughput: Throughput
    latency: Latency
    steady_state: SteadyState | None = Field(default=None, description="For engines that serve.")
    memory: MemorySection
    cpu: CpuSection | None = Field(
        default=None, description="Null where the kernel counts no waiting, and in results of older versions."
    )
    compute: Compute
    warmup: WarmupOutcome
    timing: dict[str, float | None] = Field(description="Durations in seconds: load_s, warmup_s, measure_s, ...")
    environment: Environment
    warnings: tuple[Note, ...]

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The published JSON Schema, under the published names."""
        return super().model_json_schema(*args, **{"schema_generator": PublishedSchema, **options})


SHARED: Mapping[type, tuple[str, str]] = {
    AccountedWindow: ("EnergyWindow", "Energy drawn between two edges on CLOCK_MONOTONIC."),
    CpuEnergy: ("HostEnergy", "CPU packages and DRAM beside an accelerator's energy, never added to it."),
    TruncatedPrompts: ("TruncatedPrompts", "Prompts of one repeat that were cut, and their tokens before and after."),
    Note: ("Reason", "A stable code for machines and a sentence for people."),
    WarmupOutcome: ("Warmup", "How the warm-up ended."),
}
"""The worker's records that are sections as well, with their published name and description."""


class PublishedSchema(GenerateJsonSchema):
    """Names the sections as they are published, whatever their classes are called."""

    def generate(self, *args: Any, **options: Any) -> JsonSchemaValue:
        """The schema with its `$defs` named by their titles."""
        schema = super().generate(*args, **options)
        published = {name: entry.get("title", name) for name, entry in schema["$defs"].items()}
        schema["$defs"] = {published[name]: entry for name, entry in schema["$defs"].items()}
        names = {f"#/$defs/{name}": f"#/$defs/{title}" for name, title in published.items()}
        return self.sort(_renamed(schema, names))

    def dataclass_schema(self, schema: DataclassSchema) -> JsonSchemaValue:
        """A section's schema."""
        published = super().dataclass_schema(schema)
        cls = schema["cls"]
        published["title"] = cls.__name__.removesuffix("Section")
        if cls in SHARED:
            published["title"], published["description"] = SHARED[cls]
        return published


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(entry, entry) if key == "$ref" else _renamed(entry, names) for key, entry in value.items()
        }
    return [_renamed(entry, names) for entry in value] if isinstance(value, list) else value
