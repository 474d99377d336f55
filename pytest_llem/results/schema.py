"""`result.json`: the published result of one cycle.

`Result.model_json_schema()` is the JSON Schema that `llem schema result` prints. Every field that was not measured
is `null`. Quantities are SI with their unit as suffix; `wh_per_1000_queries` is the one exception, because AI Energy
Score defines it so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

RESULT_VERSION = 1

Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of a result: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Reason(Section):
    """A stable code for machines and a sentence for people."""

    code: str
    message: str


class Validity(Section):
    """Whether the measurement may be used."""

    valid: bool
    reasons: tuple[Reason, ...] = Field(description="Why not; empty when valid.")
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="Limits that the study set; all others had their defaults."
    )


class Experiment(Section):
    """What was measured."""

    id: str = Field(description="The experiment's id within its study.")
    config_hash: str = Field(description="Hash over every setting that changes the measurement.")
    config: dict[str, JsonValue] = Field(description="The resolved configuration, defaults spelled out.")


class Engine(Section):
    """The inference engine that ran."""

    name: str
    version: str
    effective: dict[str, JsonValue] = Field(
        description="What the engine really ran with: model_path, dtype, device, ..."
    )
    cache_reset: str | None = Field(description="State of the prefix cache before every repeat.")
    statistics: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="What the engine's scheduler counted in the measure window: preemptions, cache use, speculation.",
    )
    token_times: bool = Field(description="Whether the engine reports the time of each token.")
    separable_phases: bool = Field(description="Whether decode energy by difference means something.")


class Runner(Section):
    """Where the cycle ran."""

    name: str
    source: str = Field(description="Who chose the runner: command line, environment, study, ...")
    isolation: str
    start_method: str = Field(description="How the worker process was started.")
    image: str | None
    image_digest: str | None
    device_kind: str
    device_ids: tuple[str, ...] = Field(description="UUIDs of the leased accelerators, as the engine saw them.")
    facts: dict[str, JsonValue]


class Workload(Section):
    """The identity of the work: that of one repeat, however many repeats fitted."""

    prompts_hash: str
    outputs_hash: str | None = Field(description="Hash of the first repeat's output token ids, or texts.")
    load_shape: str = Field(description="offline, or the arrival process of a serving load.")
    repeats: Count
    requests: Count = Field(description="Requests of one repeat.")
    input_tokens: Count = Field(description="Input tokens of one repeat.")
    output_tokens: Count = Field(description="Output tokens of one repeat.")
    failed_requests: Count = Field(description="Requests that failed, over all repeats.")
    failures: dict[str, Count] = Field(
        default_factory=dict, description="The same by class: timeout, stalled, dropped, http_429, http_5xx, ..."
    )


class EnergyDevice(Section):
    """Energy of one metered device over the measure windows."""

    id: str
    name: str | None
    kind: str
    energy_j: float | None
    uncertainty_j: float | None = Field(description="k=2, without the board's gain error.")
    temperature_c: float | None = Field(None, description="Mean over the measure windows, in degrees Celsius.")


class HostEnergy(Section):
    """CPU packages and DRAM beside an accelerator's energy, never added to it."""

    package_j: float | None
    dram_j: float | None
    shared: bool = Field(description="True when other work ran on the host at the same time.")


class EnergyWindow(Section):
    """Energy drawn between two edges on CLOCK_MONOTONIC."""

    name: str
    index: Count
    start_ns: int
    end_ns: int
    energy_j: float | None
    uncertainty_j: float | None = Field(description="k=2, without the board's gain error.")
    estimator: str | None
    samples: Count
    terms: dict[str, float] = Field(description="Parts of the uncertainty in joules, k=2.")


class PhaseEnergy(Section):
    """Energy of one phase of a repeat; `method` says how it was told apart."""

    name: str
    energy_per_repeat_j: float | None
    uncertainty_j: float | None
    method: str


class Energy(Section):
    """Energy of the measure windows, summed over the metered devices."""

    meter: str = Field(description="The source of the readings; `none` when no energy was measured.")
    placement: Literal["host", "worker"] | None
    scope: str | None = Field(description="What a joule covers: gpu_board, module, cpu_package+dram, ...")
    measured: bool = Field(description="False when a model of the hardware stands in for a sensor.")
    source: str | None = Field(description="Where that model is published.")
    energy_j: float | None
    uncertainty_j: float | None = Field(description="k=2; leaves out the board's gain error.")
    gain_uncertainty_rel: float | None = Field(description="Relative gain error of the board's sensor, per board.")
    energy_above_idle_j: float | None = Field(description="energy_j minus idle power times the windows' time.")
    energy_above_idle_uncertainty_j: float | None = Field(description="k=2.")
    idle_power_w: float | None = Field(description="Mean power of the idle window, model loaded.")
    idle_power_uncertainty_w: float | None = Field(description="k=2.")
    idle_power_age_s: float | None = Field(
        None, description="Seconds from its end to the measure window, or to the cycle's end where it was reused."
    )
    idle_power_reused_from: str | None = Field(None, description="The cycle that measured it, where another one did.")
    avg_power_w: float | None = Field(description="energy_j over the measure windows' time.")
    joules_per_output_token: float | None
    joules_per_total_token: float | None = Field(description="Per input and output token together.")
    joules_per_request: float | None
    wh_per_1000_queries: float | None = Field(description="Watt-hours per 1000 requests, as AI Energy Score counts.")
    tokens_per_joule: float | None = Field(description="Output tokens per joule.")
    devices: tuple[EnergyDevice, ...]
    host: HostEnergy | None
    windows: tuple[EnergyWindow, ...]
    phases: tuple[PhaseEnergy, ...]


class Tokens(Section):
    """Totals of the measure windows, over requests that succeeded."""

    input: Count
    output: Count = Field(description="Tokens generated, without padding after the end of sequence.")
    cached_input: Count | None = Field(description="Input tokens served from a prefix cache.")


class Throughput(Section):
    """Rates over the measure windows' time."""

    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    requests_per_s: float | None


class SteadyState(Section):
    """The time in which a serving engine was as full as it gets, between ramp and tail, over all repeats."""

    method: str = Field(
        description="concurrency_limit: as many requests run as can, until the tail drains. "
        "first_answer_or_full_to_last_arrival: for requests that arrive at a rate."
    )
    valid: bool = Field(description="Whether it lasted at least 30 s.")
    reason: str | None = Field(description="Why it is not valid.")
    duration_s: float
    output_tokens: Count = Field(description="Output tokens generated within.")
    output_tokens_per_s: float | None
    energy_j: float | None
    uncertainty_j: float | None = Field(description="k=2, without the board's gain error.")
    avg_power_w: float | None
    joules_per_output_token: float | None


class Distribution(Section):
    """Seconds over the successful requests; percentiles by linear interpolation."""

    mean: float
    p50: float
    p90: float
    p99: float


class Latency(Section):
    """Request latencies; `null` where the engine does not report the times that a definition needs."""

    ttft_s: Distribution | None = Field(description="Time to first token.")
    tpot_s: Distribution | None = Field(description="Time per output token after the first, per request.")
    itl_s: Distribution | None = Field(description="Times between successive tokens, over all requests.")
    e2el_s: Distribution | None = Field(description="End-to-end latency of a request.")


class DeviceMemory(Section):
    """Memory of one device."""

    id: str
    weights_bytes: Count | None = Field(description="The model's weights.")
    peak_allocated_bytes: Count | None = Field(description="The allocator's peak in the measure windows.")
    device_peak_bytes: Count | None = Field(
        description="Peak in use over the whole device and all processes, by NVML's readings in the measure windows."
    )


class Memory(Section):
    """Peaks over the measure windows."""

    devices: tuple[DeviceMemory, ...]
    host_peak_rss_bytes: Count | None


class Compute(Section):
    """Arithmetic work of the measure windows, from the model's architecture."""

    parameters: Count | None
    flops: float | None = Field(description="Floating-point operations of all repeats.")
    flops_per_output_token: float | None
    achieved_flops_per_s: float | None
    peak_flops_per_s: float | None = Field(description="The devices' published peak for the dtype.")
    mfu: float | None = Field(description="achieved_flops_per_s / peak_flops_per_s.")


class Warmup(Section):
    """How the warm-up ended."""

    repeats: Count
    duration_s: float
    converged: bool
    reason: str
    cv: float | None


class Environment(Section):
    """Where and with what it was measured."""

    fingerprint: str = Field(description="Hash over `comparable`.")
    comparable: dict[str, JsonValue] = Field(description="The facts that must be equal for energies to compare.")
    host: dict[str, JsonValue] = Field(description="The machine and packages of the pytest process.")
    worker: dict[str, JsonValue] = Field(description="The worker's own process, node and packages.")


class Result(Section):
    """One cycle of one experiment, measured."""

    schema_version: int = Field(ge=1)
    status: Literal["valid", "invalid"]
    run_id: str
    source_run: str | None = Field(description="The earlier run that measured this, when it was reused.")
    created_at: str = Field(description="When the result was derived, ISO 8601 in UTC.")
    study: str
    experiment: Experiment
    cycle: int = Field(ge=1)
    attempt: int = Field(ge=1)
    engine: Engine
    runner: Runner
    workload: Workload
    validity: Validity
    energy: Energy
    tokens: Tokens
    throughput: Throughput
    latency: Latency
    steady_state: SteadyState | None = Field(default=None, description="For engines that serve.")
    memory: Memory
    compute: Compute
    warmup: Warmup
    timing: dict[str, float | None] = Field(description="Durations in seconds: load_s, warmup_s, measure_s, ...")
    environment: Environment
    warnings: tuple[Reason, ...]
