"""`result.json`: the published result of one cycle, and its JSON Schema (`llem schema result`).

`derive` builds it; `results`, `llem schema` and the session read it. Fields may be added; a renamed or removed
one needs a new `RESULT_VERSION` with a migration in `reading`. What was not measured is `null`. Quantities are SI with
their unit as suffix, except `wh_per_1000_queries`, which AI Energy Score defines so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DataclassSchema

from pytest_llem.job.measurement import AccountedWindow, CpuEnergy, DeviceMemory, TruncatedPrompts, WarmupOutcome
from pytest_llem.job.report import Note
from pytest_llem.results.energy_schema import Count, DeviceSection, Energy, ThermalSection, about
from pytest_llem.results.performance_schema import Latency, SearchSection, SloSection, SteadyState, Throughput
from pytest_llem.results.quality_schema import QualitySection

RESULT_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class ValiditySection:
    """Whether the measurement may be used."""

    valid: bool
    reasons: tuple[Note, ...] = field(metadata=about("Why not; empty when valid."))
    thresholds: dict[str, float] = field(
        default_factory=dict, metadata=about("Limits that the study set; all others had their defaults.")
    )


@dataclass(frozen=True, kw_only=True)
class ExperimentSection:
    """What was measured."""

    id: str = field(metadata=about("The experiment's id within its study."))
    config_hash: str = field(metadata=about("Hash over every setting that changes the measurement."))
    config: dict[str, JsonValue] = field(metadata=about("The resolved configuration, defaults spelled out."))


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """The inference engine that ran."""

    name: str
    version: str
    effective: dict[str, JsonValue] = field(
        metadata=about("What it really ran with: model_path, model_fingerprint, dtype, quantization, device, ...")
    )
    cache_reset: str | None = field(
        metadata=about(
            "State of the prefix cache before every repeat: cleared, disabled, none, unknown; kept, if it was warm."
        )
    )
    statistics: dict[str, JsonValue] = field(
        default_factory=dict,
        metadata=about(
            "What the engine's scheduler counted in the measure window: preemptions, cache use, speculation."
        ),
    )
    token_times: bool = field(metadata=about("Whether the engine reports the time of each token."))
    separable_phases: bool = field(metadata=about("Whether decode energy by difference means something."))


@dataclass(frozen=True, kw_only=True)
class RunnerSection:
    """Where the cycle ran."""

    name: str
    source: str = field(metadata=about("Who chose the runner: command line, environment, study, ..."))
    isolation: str
    start_method: str = field(metadata=about("How the worker process was started."))
    image: str | None
    image_digest: str | None
    device_kind: str
    device_ids: tuple[str, ...] = field(metadata=about("UUIDs of the leased accelerators, as the engine saw them."))
    facts: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class WorkloadSection:
    """The identity of the work: that of one repeat, however many repeats fitted. Null: not counted."""

    prompts_hash: str | None
    outputs_hash: str | None = field(metadata=about("Hash of the first repeat's output token ids, or texts."))
    load_shape: str = field(metadata=about("offline, or the arrival process of a serving load."))
    arrivals_hash: str | None = field(
        default=None, metadata=about("Hash of recorded arrival times; null where arrivals follow from the settings.")
    )
    cache: str | None = field(
        default=None,
        metadata=about(
            "What the prefix cache held: cold, emptied before each repeat; warm, kept from the warm-up on. Null where "
            "nothing was to come from it."
        ),
    )
    repeats: Count
    requests: Count | None = field(metadata=about("Requests of one repeat."))
    sessions: Count | None = field(
        default=None, metadata=about("Sessions that they are turns of; null where they are of none.")
    )
    input_tokens: Count | None = field(metadata=about("Input tokens of one repeat."))
    output_tokens: Count | None = field(metadata=about("Output tokens of one repeat."))
    failed_requests: Count | None = field(metadata=about("Requests that failed, over all repeats."))
    failures: dict[str, Count] = field(
        default_factory=dict, metadata=about("The same by class: timeout, stalled, dropped, http_429, http_5xx, ...")
    )
    finish_reasons: dict[str, Count] = field(
        default_factory=dict,
        metadata=about(
            "Answers of all repeats by why they ended: length (output_tokens reached), stop (end of sequence), error."
        ),
    )
    prompts_truncated: TruncatedPrompts | None = field(
        default=None, metadata=about("Prompts of one repeat that were cut; null in results of older versions.")
    )
    rows_skipped: Count | None = field(
        default=None,
        metadata=about("Rows of the data set with nothing to send that were passed over; null as above."),
    )
    dataset_format: str | None = field(
        default=None,
        metadata=about(
            "synthetic, texts, openai_messages, sharegpt, mooncake, azure or burstgpt (see Data sets); null as above."
        ),
    )
    rows_broken: Count | None = field(
        default=None, metadata=about("Lines of sessions or a trace that could not be read; null as above.")
    )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Totals of the measure windows, over requests that succeeded; null where nobody counted them."""

    input: Count | None
    output: Count | None = field(metadata=about("Tokens generated, without padding after the end of sequence."))
    cached_input: Count | None = field(metadata=about("Input tokens served from a prefix cache."))


@dataclass(frozen=True, kw_only=True)
class DeviceMemorySection(DeviceMemory):
    """Memory of one device."""

    device_peak_bytes: Count | None = field(
        metadata=about(
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
        metadata=about("(waited_s + stolen_s) over (ran_s + waited_s + stolen_s); null where nothing ran.")
    )
    ran_s: float = field(metadata=about("CPU time of all threads in the measure window."))
    waited_s: float = field(metadata=about("Time that they were ready to run and waited for a CPU (run-queue delay)."))
    stolen_s: float | None = field(metadata=about("Their part of what a hypervisor gave to other machines (steal)."))
    steal_rel: float | None = field(metadata=about("Steal as a share of the demand on the CPUs that they may use."))
    pressure_rel: float | None = field(
        metadata=about(
            "Share of the window in which some task of the machine waited for a CPU (PSI); null under 10 s, since the "
            "kernel renews it every 2 s."
        )
    )
    throttled_s: float | None = field(metadata=about("Time in which CPU quotas of control groups held them back."))
    cpus: Count = field(metadata=about("CPUs that the worker may use."))
    others_rel: float | None = field(
        default=None,
        metadata=about("Share of the work of all the machine's CPUs that was not that of these processes."),
    )


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Arithmetic work of the measure windows, from the model's architecture."""

    parameters: Count | None
    flops: float | None = field(
        metadata=about("Useful operations of all repeats: no tokens from a prefix cache, no pairs beyond a window.")
    )
    flops_per_output_token: float | None
    achieved_flops_per_s: float | None
    peak_flops_per_s: float | None = field(metadata=about("The devices' published dense peak for `peak_dtype`."))
    peak_dtype: str | None = field(
        default=None,
        metadata=about("What matrices are multiplied in, which quantised weights alone do not change."),
    )
    mfu: float | None = field(metadata=about("achieved_flops_per_s / peak_flops_per_s; null above 1."))


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what it was measured."""

    fingerprint: str = field(metadata=about("Hash over `comparable`."))
    comparable: dict[str, JsonValue] = field(metadata=about("The facts that must be equal for energies to compare."))
    host: dict[str, JsonValue] = field(metadata=about("The machine and packages of the pytest process."))
    worker: dict[str, JsonValue] = field(metadata=about("The worker's own process, node and packages."))


def _checked_moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_checked_moment)]
"""ISO 8601, which exports and pages may take for a time."""


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
    created_at: Moment = Field(description="When the result was derived, ISO 8601 in UTC.")
    measured_from: Moment | None = Field(
        default=None, description="When the first measure window began, as created_at."
    )
    measured_to: Moment | None = Field(default=None, description="When the last measure window ended, as created_at.")
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
    device: DeviceSection = Field(default_factory=DeviceSection)
    tokens: Tokens
    throughput: Throughput
    latency: Latency
    search: SearchSection | None = Field(
        default=None,
        description="The search that this result answers: it is that of the window that did.",
    )
    slo: SloSection | None = Field(default=None, description="Where the study limits latencies.")
    quality: QualitySection | None = Field(default=None, description="Where the study scores answers.")
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
