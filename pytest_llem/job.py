"""The job directory: the one exchange format between the pytest process and a worker, whatever the runner.

In: `job.json`. Out: `events.jsonl` while the cycle runs, `measurement.json` or `error.json` at its end, and
`worker.log`. Standard library only, because a worker runs inside any image.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pytest_llem.decode import decode, encode
from pytest_llem.errors import JsonValue, LlemError, StoreError
from pytest_llem.redaction import redacted, secrets_of

SCHEMA_VERSION = 1
T = TypeVar("T")

# It belongs to the process and can be read only by setting it: once, before there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)

Weights = Literal["real", "dummy"]
DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Lengths:
    """Token lengths drawn per prompt: `uniform` uses `low..high`, `lognormal` `mean` and `sigma` (of the log)
    clipped to `low..high`. A fixed length is written as a plain integer instead."""

    distribution: Literal["uniform", "lognormal"]
    low: int
    high: int
    mean: float | None = None
    sigma: float | None = None


@dataclass(frozen=True)
class Arrival:
    """How requests arrive at an engine that serves: `constant` and `poisson` at `rate_per_s`, `burst` in groups of
    `burst_size`, `concurrency` with a fixed number of requests in flight."""

    process: Literal["constant", "poisson", "burst", "concurrency"]
    rate_per_s: float | None = None
    burst_size: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class WorkloadSettings:
    """What the engine is fed in one repeat. `input_tokens` of `None` keeps a data set's own prompt lengths."""

    dataset: str
    prompts: int
    input_tokens: int | Lengths | None
    output_tokens: int | Lengths
    seed: int
    ignore_eos: bool = True
    column: str | None = None
    split: str | None = None
    revision: str | None = None
    order: Literal["interleaved", "grouped", "shuffled"] = "interleaved"
    chat_template: bool = False
    arrival: Arrival | None = None


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. Greedy when `do_sample` is false; `None` leaves a setting to the engine."""

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class WarmupSettings:
    """Repeats of the measured workload before the measure window: at least `min_repeats`, then until the coefficient
    of variation of the last `window` repeat durations is at most `cv`, at most `max_repeats` or `max_s` seconds."""

    min_repeats: int = 1
    max_repeats: int = 10
    max_s: float = 60.0
    cv: float = 0.05
    window: int = 3


@dataclass(frozen=True)
class IdleSettings:
    """The idle window with the model loaded: `duration_s` of quiet, after waiting at most `max_wait_s` for power to
    settle; a duration of 0 measures no idle power. With `reuse` of `matching` that of an earlier cycle is taken where
    the device's conditions match."""

    duration_s: float = 2.0
    max_wait_s: float = 30.0
    reuse: Literal["never", "matching"] = "never"


@dataclass(frozen=True)
class MeasurementSettings:
    """How the workload is measured: repeated until `min_duration_s`, with extra windows for `phases`."""

    min_duration_s: float
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    idle: IdleSettings = field(default_factory=IdleSettings)
    phases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExperimentConfig:
    """One fully resolved configuration, every default spelled out.

    `settings` is the section of the study that belongs to `engine`; `trust_remote_code` is off unless the study
    says otherwise. `dtype` of `None` means the checkpoint's own.
    """

    model: str
    engine: str
    dtype: str | None
    weights: Weights
    workload: WorkloadSettings
    decoding: Decoding
    measurement: MeasurementSettings
    settings: Mapping[str, JsonValue]
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    lora: str | None = None


@dataclass(frozen=True)
class DeviceSet:
    """The accelerators leased to a cycle, by UUID in the order the engine sees them, or the CPU."""

    kind: DeviceKind
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeterSettings:
    """Which meter a cycle uses. `explicit` is true when the user named it: then it measures all visible GPUs, `uuids`,
    which the worker cannot see by itself where the engine is kept from them.

    With `placement` `host` the runner measures, and the worker only reports its windows. `thresholds` replaces
    defaults of `energy.validity.Thresholds`, by name.
    """

    name: str = "auto"
    explicit: bool = False
    placement: Literal["host", "worker"] = "worker"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deadlines:
    """Limits in seconds: for the whole cycle, for loading the engine, and between two events.

    The worker gives a sign of life every `heartbeat_s`; one that is silent for `silence_s` hangs.
    """

    timeout_s: float
    load_timeout_s: float | None = None
    heartbeat_s: float = 5.0
    silence_s: float = 300.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that the pytest side started, now or before, ready at `settings["base_url"]` after `ready_s` seconds.

    `pid` is the root of its process tree on this machine, `None` where unknown; `started_ns` is CLOCK_MONOTONIC."""

    pid: int | None
    started_as: Literal["command", "container"]
    log: str
    started_ns: int
    ready_s: float


@dataclass(frozen=True)
class IdleReference:
    """Idle power of the same loaded model on the same devices, as a cycle of this run measured it (`origin`).

    Total power in watts with its k=2 uncertainty, the conditions it was measured under, and when (Unix seconds).
    """

    power_w: float
    uncertainty_w: float
    temperature_c: float
    sm_clock_mhz: float
    driver: str
    measured_at: float
    origin: str


@dataclass(frozen=True)
class Job:
    """`job.json`: everything that a worker needs to run one cycle, and nothing secret."""

    run_id: str
    study: str
    experiment_id: str
    config_hash: str
    config: ExperimentConfig
    cycle: int
    attempt: int
    devices: DeviceSet
    meter: MeterSettings
    deadlines: Deadlines
    environment: Mapping[str, str] = field(default_factory=dict)
    server: ServerProcess | None = None
    idle_reference: IdleReference | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class JobDir:
    """The files of one job, by name."""

    path: Path

    @property
    def job(self) -> Path:
        """What to do: written by the pytest side before the worker starts."""
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        """The worker's progress, a JSON object per line, each flushed as it happens."""
        return self.path / "events.jsonl"

    @property
    def measurement(self) -> Path:
        """The raw measurement: written once, at the end of a successful cycle."""
        return self.path / "measurement.json"

    @property
    def error(self) -> Path:
        """Why there is no measurement."""
        return self.path / "error.json"

    @property
    def log(self) -> Path:
        """Standard output and standard error of the worker and its engine."""
        return self.path / "worker.log"

    @property
    def samples(self) -> Path:
        """The sampler's raw readings, from which the pytest side writes `power.parquet`."""
        return self.path / "samples.jsonl"

    @property
    def power(self) -> Path:
        """The time series of the readings, with units in its schema's metadata."""
        return self.path / "power.parquet"

    @property
    def result(self) -> Path:
        """The derived result, validated before it is written."""
        return self.path / "result.json"

    def write_job(self, job: Job) -> None:
        """Create the directory and write `job.json`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.job, encode(job))

    def read_job(self) -> Job:
        """Read `job.json`; `StoreError` when it is absent, broken, or of a newer version."""
        return load_job(self.job)

    def write_error(self, error: LlemError, **more: JsonValue) -> None:
        """Write `error.json` from an error and further facts (`phase`, `traceback`, `log_tail`, `origin`), redacted."""
        secrets = secrets_of(os.environ).values()
        write_json(self.error, redacted({"schema_version": SCHEMA_VERSION, **error.to_dict(), **more}, secrets))

    def log_tail(self, lines: int = 15) -> list[str]:
        """The last lines of `worker.log`, at most the last 64 KiB of it; empty when there is no log."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 65536))
                return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []


def load_job(path: Path) -> Job:
    """Read a job file; `StoreError` when it is absent, broken, or of a newer version."""
    return read_versioned(Job, path, SCHEMA_VERSION, "job")


def read_versioned(cls: type[T], path: Path, newest: int, what: str) -> T:
    """Read a JSON file into a dataclass that states its `schema_version`.

    `what` names the format in messages. `StoreError` when the file is absent, broken, or newer than `newest`.
    """
    data = read_json(path)
    version = data.get("schema_version")
    if isinstance(version, int) and version > newest:
        raise StoreError(
            f"{path}: {what} format {version} is newer than {newest}, the newest this version reads",
            fix="use the version of pytest-llem that wrote it, or a newer one",
        )
    try:
        return decode(cls, data)
    except ValueError as problem:
        raise StoreError(f"{path}: {problem}") from None


def write_json(path: Path, data: JsonValue, *, durable: bool = True) -> None:
    """Write JSON atomically, as `write_text` does. NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n", durable=durable)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file atomically: a temporary file in the same directory, fsync, rename. Threads may do so at a time.

    Without `durable` there is no fsync, which takes longer than all the rest: for what only the present run looks at.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_UMASK)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, JsonValue]:
    """Read a JSON object; `StoreError` names the file when it is absent or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise StoreError(f"{path}: {problem.strerror or problem}") from None
    except ValueError as problem:
        raise StoreError(f"{path}: not JSON: {problem}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data
