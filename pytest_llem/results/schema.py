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
from pytest_llem.job.percentiles import written
from pytest_llem.job.report import Note
from pytest_llem.results.energy_schema import SENSOR_ALONE, Energy, ThermalSection, about

RESULT_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""

Count = Annotated[int, Field(ge=0)]


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
    """The identity of the work: that of one repeat, however many repeats fitted."""

    prompts_hash: str
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
    requests: Count = field(metadata=about("Requests of one repeat."))
    sessions: Count | None = field(
        default=None, metadata=about("Sessions that they are turns of; null where they are of none.")
    )
    input_tokens: Count = field(metadata=about("Input tokens of one repeat."))
    output_tokens: Count = field(metadata=about("Output tokens of one repeat."))
    failed_requests: Count = field(metadata=about("Requests that failed, over all repeats."))
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
    """Totals of the measure windows, over requests that succeeded."""

    input: Count
    output: Count = field(metadata=about("Tokens generated, without padding after the end of sequence."))
    cached_input: Count | None = field(metadata=about("Input tokens served from a prefix cache."))


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Rates over the measure windows' time."""

    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    requests_per_s: float | None
    duration_s: float | None = field(
        default=None, metadata=about("The measure windows' time without resets of caches between repeats.")
    )


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """The time in which a serving engine was as full as it gets, between ramp and tail, over all repeats.

    With B the most requests that run at once and N those of a repeat, each repeat's window is [opens, closes), and
    joules_per_output_token = sum of the windows' energy / sum of the output tokens that arrived within them.
    """

    method: str = field(
        metadata=about(
            "concurrency_limit: opens when B requests run (first to last token), closes when that many do for the "
            "last time. first_answer_or_full_to_last_arrival: for requests that arrive at a rate: opens with the first "
            "answer or B running, closes with the last arrival or, if later, as before. ml_energy: opens with the B-th "
            "first token, closes when N - B - 1 requests have ended."
        )
    )
    valid: bool = field(metadata=about("Whether it lasted at least 30 s."))
    reason: str | None = field(metadata=about("Why it is not valid."))
    duration_s: float
    output_tokens: Count = field(metadata=about("Output tokens generated within."))
    output_tokens_per_s: float | None
    energy_j: float | None
    uncertainty_j: float | None = field(metadata=about("k=2, without the board's gain error."))
    avg_power_w: float | None
    avg_power_w_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_output_token: float | None
    joules_per_output_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)


def _checked_percentile(text: str) -> str:
    if not 0 < float(text) < 100 or written(float(text)) != text:
        raise ValueError("not a percentile, such as 95 or 99.9")
    return text


Percentile = Annotated[str, Field(pattern=r"^\d{1,2}(\.\d{1,3})?$"), AfterValidator(_checked_percentile)]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Seconds over the successful requests; percentiles by linear interpolation between order statistics."""

    n: Count | None = field(default=None, metadata=about("How many values it is over; null in older results."))
    mean: float
    std: float | None = field(
        default=None, metadata=about("Standard deviation of these values (divided by n); null in older results.")
    )
    p50: float
    p90: float | None = field(metadata=about("Null below 10 values: none of them would be expected beyond it."))
    p99: float | None = field(metadata=about("Null below 100 values, for the same reason."))
    percentiles: dict[Percentile, float | None] = field(
        default_factory=dict,
        metadata=about("Others that the study chose, such as 95 and 99.9; null below 1/(1 - p) values, as above."),
    )

    @property
    def statistics(self) -> dict[str, float | None]:
        """The mean and every percentile by its name: `mean`, `p50`, `p99.9`."""
        chosen = {f"p{name}": value for name, value in self.percentiles.items()}
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99, **chosen}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Request latencies; `null` where the engine does not report the times that a definition needs."""

    ttft_s: Distribution | None = field(metadata=about("Time to first token."))
    tpot_s: Distribution | None = field(metadata=about("Time per output token after the first, per request."))
    itl_s: Distribution | None = field(
        metadata=about("Times between successive tokens, over all requests; 0 between tokens that arrive together.")
    )
    itl_chunk_s: Distribution | None = field(
        default=None,
        metadata=about(
            "Times between successive arrivals, however many tokens each brought, over all requests: the itl of "
            "`vllm bench serve`, and so that of exports in its format."
        ),
    )
    e2el_s: Distribution | None = field(metadata=about("End-to-end latency of a request."))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """Those that the study chose beside p50, p90 and p99, in rising order."""
        known = (self.ttft_s, self.tpot_s, self.itl_s, self.e2el_s)
        return tuple(sorted({float(name) for each in known if each is not None for name in each.percentiles}))


@dataclass(frozen=True, kw_only=True)
class SloSection:
    """The study's limits on latencies, how many requests kept them, and what serving those cost.

    A request is good when it succeeded, its answer is not empty, and it kept every limit; a failed one kept none.
    """

    ttft_s: float | None
    tpot_s: float | None
    itl_s: float | None = field(metadata=about("Of the longest gap between two arrivals of an answer."))
    e2el_s: float | None
    at: float = field(metadata=about("The share of the requests that must be good."))
    requests: Count = field(metadata=about("All that were due over all repeats, failed ones included."))
    good: Count | None = field(metadata=about("Null where the times that a limit needs are not known."))
    met: dict[str, float | None] = field(metadata=about("Share of the requests that kept a limit, by its name."))
    share: float | None = field(metadata=about("good / requests."))
    effective_requests: float | None = field(
        default=None,
        metadata=about("Independent requests that would tell the share as well: neighbours wait in one queue."),
    )
    share_low: float | None = field(metadata=about("Lower bound of its two-sided 95 % interval, of those."))
    share_high: float | None = field(metadata=about("Upper bound of the same."))
    reached: bool | None = field(metadata=about("Whether the share is at least `at`; null if the interval holds it."))
    offered_per_s: float | None = field(
        default=None,
        metadata=about("Requests, or sessions, due per second between the first and the last of a repeat."),
    )
    goodput_requests_per_s: float | None = field(metadata=about("good / throughput.duration_s."))
    goodput_output_tokens_per_s: float | None = field(metadata=about("Output tokens of good requests over the same."))
    joules_per_good_request: float | None = field(metadata=about("energy_j / good: all other requests cost as well."))
    joules_per_good_request_uncertainty: float | None = field(metadata=SENSOR_ALONE)
    good_requests_per_joule: float | None
    good_requests_per_joule_uncertainty: float | None = field(metadata=SENSOR_ALONE)
    reason: str | None = field(metadata=about("Why figures of this section are null."))


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """The largest load under the SLO, found in windows of different loads, and what is known of it."""

    setting: str = field(metadata=about("The setting that was searched."))
    low: float
    high: float
    tolerance: float
    ending: str = field(
        metadata=about(
            "found, not_converged (the windows were used up), at_least (no upper end is known: that of the bracket "
            "still keeps the SLO), none (not even its lower end does) or given_up (two windows in a row told nothing)."
        )
    )
    reason: str
    answer: float | None = field(metadata=about("The largest load: where the share of good requests is `slo.at`."))
    answer_low: float | None = field(metadata=about("Lower bound of its 95 % interval; 0: perhaps below the bracket."))
    answer_high: float | None = field(metadata=about("Upper bound; null where it is not known how much more it is."))
    met: float | None = field(metadata=about("The highest load of a window that kept the SLO: that of this result."))
    not_met: float | None = field(metadata=about("The lowest load above it of a window that did not."))
    step: int | None = field(metadata=about("The window of this result."))
    windows: Count = field(metadata=about("How many were measured."))
    max_rate_per_s: float | None = field(
        metadata=about("The answer in requests per second; of a number in flight, what that window served.")
    )


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
    tokens: Tokens
    throughput: Throughput
    latency: Latency
    search: SearchSection | None = Field(
        default=None,
        description="The search that this result answers: it is that of the window that did.",
    )
    slo: SloSection | None = Field(default=None, description="Where the study limits latencies.")
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
