"""`measurement.json`: what a worker observed, raw, with the records that meters and engines exchange.

Meters, engines and workloads fill it in, the worker writes it, runners complete it, `results` derives from it. Stored
files must stay readable: fields are only added, with defaults. Times are CLOCK_MONOTONIC ns of the worker's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json
from pytest_llem.job.job import SCHEMA_VERSION
from pytest_llem.job.redaction import redacted
from pytest_llem.job.report import Note
from pytest_llem.job.wire import decode, encode, read_versioned

Scope = Literal["gpu_board", "module", "cpu_package+dram", "cpu_package", "process_estimate"]


@dataclass(frozen=True)
class Window:
    """A measured interval on CLOCK_MONOTONIC, in nanoseconds.

    `index` counts windows of one name from 0. `quiet_before_s` and `quiet_after_s` are the idle padding: how long the
    device rested, confirmed synchronised, on each side; `None` means busy or unknown. `repeats` counts the whole
    repeats of the workload that end inside, if any; `reset_s` is the time in which caches were emptied between them.
    """

    name: str
    start_ns: int
    end_ns: int
    index: int = 0
    quiet_before_s: float | None = None
    quiet_after_s: float | None = None
    repeats: int | None = None
    reset_s: float = 0.0
    step_s: float | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class MeteredDevice:
    """A device with a sensor: a GPU (by UUID), a CPU package or its DRAM; or a process tree.

    One that is not `leased` was read beside the cycle's own devices: its energy is in no sum.
    """

    id: str
    name: str | None
    kind: Literal["gpu", "cpu", "dram", "process"]
    leased: bool = True


@dataclass(frozen=True)
class DeviceEnergy:
    """Energy of one device in one window, in joules; `None` where it was not measured."""

    id: str
    energy_j: float | None
    uncertainty_j: float | None


@dataclass(frozen=True)
class AccountedWindow:
    """Energy in joules drawn between a window's two edges, as a result holds it.

    `samples` is how many readings the estimate rests on, `estimator` how it was made.
    """

    name: str
    index: int = field(metadata={"ge": 0})
    start_ns: int
    end_ns: int
    energy_j: float | None
    uncertainty_j: float | None = field(metadata={"description": "k=2, without the board's gain error."})
    estimator: str | None
    samples: int = field(metadata={"ge": 0})
    terms: Mapping[str, float] = field(metadata={"description": "Parts of the uncertainty in joules, k=2."})


@dataclass(frozen=True)
class WindowEnergy(AccountedWindow):
    """The energy of one window, summed over the leased devices and for each device."""

    samples: int = 0
    terms: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[DeviceEnergy, ...] = ()


@dataclass(frozen=True)
class CpuEnergy:
    """CPU packages and DRAM over the `measure` windows, beside the accelerator's energy and never added to it."""

    package_j: float | None
    dram_j: float | None
    shared: bool = field(metadata={"description": "True when other work ran on the host at the same time."})


@dataclass(frozen=True)
class IdlePower:
    """Idle power of the metered devices with the model loaded, in watts with its k=2 uncertainty.

    `settled` is false if power still changed (`slope_w_per_s`). Temperature and clock are means, `measured_at` is Unix
    time. `age_s` runs to the first measure window, or to the cycle's end where it was `reused_from` another cycle.
    """

    power_w: float
    uncertainty_w: float | None = None
    settled: bool = True
    slope_w_per_s: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    end_ns: int | None = None
    measured_at: float | None = None
    age_s: float | None = None
    reused_from: str | None = None


@dataclass(frozen=True)
class EnergyReport:
    """What a meter reports of a cycle.

    `measured` is false when the numbers come from a model of the hardware instead of a sensor; `source` then names
    where that model is published. `invalid` holds reason codes that forbid using the numbers (`sensor_gap`, ...).
    """

    meter: str
    measured: bool
    scope: Scope
    placement: Literal["host", "worker"]
    devices: tuple[MeteredDevice, ...]
    windows: tuple[WindowEnergy, ...]
    host: CpuEnergy | None = None
    gain_uncertainty_rel: float | None = None
    source: str | None = None
    notes: tuple[Note, ...] = ()
    invalid: tuple[Note, ...] = ()
    facts: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def idle(self) -> IdlePower | None:
        """The idle power that the meter states in `facts`; `None` where it states none."""
        stated = self.facts.get("idle")
        if not isinstance(stated, Mapping) or "power_w" not in stated:
            return None
        return decode(IdlePower, {f.name: stated[f.name] for f in fields(IdlePower) if f.name in stated}, "idle")


@dataclass(frozen=True)
class Capabilities:
    """What an engine can tell beyond its outputs. What it lacks is `null` in the result, never a guess."""

    token_times: bool = False
    separable_phases: bool = False
    memory_counters: bool = False
    prefix_cache: bool = False
    serves: bool = False


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device in bytes: the model's weights, and the allocator's peak since `reset_peak_memory`."""

    id: str
    weights_bytes: int | None = field(metadata={"ge": 0, "description": "The model's weights."})
    peak_allocated_bytes: int | None = field(
        metadata={"ge": 0, "description": "The allocator's peak in the measure windows."}
    )


@dataclass(frozen=True)
class ModelShape:
    """The architecture numbers from which FLOPs and cache sizes follow; `None` where the model has no such notion."""

    model_type: str | None
    parameters: int | None
    layers: int | None
    hidden_size: int | None
    intermediate_size: int | None
    vocab_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    experts: int | None = None
    experts_per_token: int | None = None
    config: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A value with its expanded uncertainty (k=2), both in the unit that the name of the field or function states.

    `uncertainty` is infinite where the source states none: sums and quotients then keep it so.
    """

    value: float
    uncertainty: float


@dataclass(frozen=True)
class EngineFacts:
    """Which engine ran, with which effective settings; `statistics` are its own counts over the measure window."""

    name: str
    version: str
    effective: Mapping[str, JsonValue]
    capabilities: Capabilities
    cache_reset: str | None = None
    statistics: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerFacts:
    """The process that measured. `start_method` is `forkserver`, `spawn` or `command` (by hand, container)."""

    pid: int
    hostname: str
    start_method: str
    isolation: str


@dataclass(frozen=True)
class RequestRecord:
    """One request of a measured repeat. `token_times_ns` has one entry per output token, or is `None`.

    In that case `first_token_ns` is the time of the first one, if known. `chunk_times_ns` are those of arrivals, where
    they are not the distinct `token_times_ns`; `failure` is the class of an `error`. The last fields are as
    in `Request` and `Completion`.
    """

    repeat: int
    index: int
    input_tokens: int
    output_tokens: int
    start_ns: int
    end_ns: int
    finish_reason: str
    token_times_ns: tuple[int, ...] | None = None
    cached_tokens: int | None = None
    error: str | None = None
    first_token_ns: int | None = None
    failure: str | None = None
    chunk_times_ns: tuple[int, ...] | None = None
    due_ns: int | None = None
    sent_ns: int | None = None
    retries: int = 0
    session: str | None = None
    turn: int | None = None


@dataclass(frozen=True)
class Repeat:
    """One pass over the workload in the measure window, with a hash of its outputs (ids or texts, in request order)."""

    index: int
    start_ns: int
    end_ns: int
    outputs_hash: str


@dataclass(frozen=True)
class Interval:
    """When something ran."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class WarmupOutcome:
    """How the warm-up ended, with the `cv` of the last durations.

    `reason` is `converged`, `max_repeats`, `max_s`, `fixed` or `thermal_max_s`. `judged_by` says what has converged:
    `latency`, or `latency and power`.
    """

    repeats: int = field(metadata={"ge": 0})
    duration_s: float
    converged: bool
    reason: str
    cv: float | None
    judged_by: str | None = None


@dataclass(frozen=True)
class MemoryPeaks:
    """Peaks in bytes over the measure window. `device_peak_bytes` is the sensor's view of the whole device."""

    devices: tuple[DeviceMemory, ...]
    device_peak_bytes: Mapping[str, int] | None
    host_peak_rss_bytes: int | None


@dataclass(frozen=True)
class TruncatedPrompts:
    """Prompts of one repeat that were cut to `workload.input_tokens`, and the tokens of these before and after."""

    prompts: int = field(default=0, metadata={"ge": 0})
    tokens_before: int = field(default=0, metadata={"ge": 0})
    tokens_after: int = field(default=0, metadata={"ge": 0})


@dataclass(frozen=True)
class CpuTime:
    """CPU time in the measure window, in seconds; what the kernel does not tell is `None`.

    `ran_s` and `waited_s` are sums over the threads of the worker, its local server and their children. On the `cpus`
    that the worker may use, `busy_s` was worked and `stolen_s` given to other machines by a hypervisor; all CPUs of the
    machine worked `machine_busy_s`. `pressure_s` is the time in which some task of the whole machine waited,
    `throttled_s` that in which CPU quotas held tasks back.
    """

    duration_s: float
    ran_s: float
    waited_s: float
    cpus: int
    busy_s: float | None = None
    stolen_s: float | None = None
    pressure_s: float | None = None
    throttled_s: float | None = None
    machine_busy_s: float | None = None


@dataclass(frozen=True)
class Measurement:
    """Everything that one cycle observed; `clock` is `events.clock_facts` after its windows."""

    engine: EngineFacts
    worker: WorkerFacts
    windows: tuple[Window, ...]
    repeats: tuple[Repeat, ...]
    requests: tuple[RequestRecord, ...]
    prompts_hash: str
    warmup: WarmupOutcome
    memory: MemoryPeaks
    timing: Mapping[str, float | None]
    load_shape: str = "offline"
    arrivals_hash: str | None = None
    prompts_truncated: TruncatedPrompts | None = None
    rows_skipped: int | None = None
    cache: str | None = None
    dataset_format: str | None = None
    rows_broken: int | None = None
    cpu: CpuTime | None = None
    energy: EnergyReport | None = None
    model: ModelShape | None = None
    environment: Mapping[str, JsonValue] = field(default_factory=dict)
    clock: Mapping[str, JsonValue] = field(default_factory=dict)
    warnings: tuple[Note, ...] = ()
    invalid: tuple[Note, ...] = ()
    warmup_repeats: tuple[Interval, ...] = ()
    schema_version: int = SCHEMA_VERSION


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Write `measurement.json` atomically, redacted."""
    write_json(path, redacted(encode(measurement)))


def read_measurement(path: Path) -> Measurement:
    """Read `measurement.json`; `StoreError` when it is absent, broken, or of a newer version."""
    return read_versioned(Measurement, path, SCHEMA_VERSION, "measurement")
