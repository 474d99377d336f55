"""The job directory: the exchange format between the pytest process and a worker, for every runner.

In: `job.json`. Out: `events.jsonl` while the cycle runs, `measurement.json` or `error.json` at its end, and
`worker.log`. All rooms but `study` and `workload` use it. Its format is a contract with workers of other versions, and
it must need the standard library alone, because a worker runs inside any image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.config import DeviceKind, ExperimentConfig
from pytest_llem.job.files import write_json
from pytest_llem.job.gpu_setting import GpuSetting
from pytest_llem.job.percentiles import STANDARD
from pytest_llem.job.redaction import name_secrets, redacted
from pytest_llem.job.request import Texts
from pytest_llem.job.wire import encode, read_versioned

SCHEMA_VERSION = 1
"""Version of the files of a job directory; readers refuse a newer one."""


AMD_NOT_VERIFIED = (
    "measuring on AMD GPUs follows AMD's documentation and was never tried on hardware (docs/device.md, AMD GPUs)"
)
"""What the terminal says once per run, and each result."""


@dataclass(frozen=True)
class DeviceSet:
    """The accelerators leased to a cycle, by UUID in the order the engine sees them, or the CPU."""

    kind: DeviceKind
    uuids: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether these are GPUs, of whichever maker."""
        return self.kind != "cpu"


@dataclass(frozen=True)
class MeterSettings:
    """Which meter a cycle uses.

    `explicit` is true if the user named it: it then reads all visible GPUs, `uuids`, which a worker whose engine is
    kept from them cannot see itself; those that are not leased enter no sum. With `placement` `host` the runner
    measures, and the worker only reports its windows. `thresholds` replaces defaults of `job.config.Thresholds`, by
    name. With `named_gpus` the study says which GPUs are the cycle's, and a server is not asked for its own.
    """

    name: str = "auto"
    explicit: bool = False
    placement: Literal["host", "worker"] = "worker"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    uuids: tuple[str, ...] = ()
    named_gpus: bool = False


@dataclass(frozen=True)
class Deadlines:
    """Limits in seconds: for the whole cycle, for loading the engine, and between two events.

    The worker emits an event at least every `heartbeat_s`; without one for `silence_s` it counts as hanging.
    """

    timeout_s: float
    load_timeout_s: float | None = None
    heartbeat_s: float = 5.0
    silence_s: float = 300.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that the pytest side started, which was ready at `settings["base_url"]` after `ready_s` seconds.

    `pid` is the root of its process tree on this machine, `None` where unknown; `started_ns` is CLOCK_MONOTONIC."""

    pid: int | None
    started_as: Literal["command", "container"]
    log: str
    started_ns: int
    ready_s: float


@dataclass(frozen=True)
class IdleReference:
    """Idle power of the same loaded model on the same devices, measured by an earlier cycle of this run (`origin`).

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
    """`job.json`: everything that a worker needs to run one cycle, and nothing secret.

    `texts` are those of a data set that the worker cannot read: in a Parquet file, or of another package. `percentiles`
    are those that the result states of each latency. `gpu_settings` holds what was set on the devices for it.
    """

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
    texts: Texts | None = None
    percentiles: tuple[float, ...] = STANDARD
    gpu_settings: tuple[GpuSetting, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Whoever has the job hides the keys that it names."""
        name_secrets(self.config.settings)


class JobDir:
    """The files of one job, by name; not all of them exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path / "job.json"  # written by the pytest side before the worker starts
        self.events = path / "events.jsonl"  # the worker's progress, a JSON object per line, flushed as it happens
        self.measurement = path / "measurement.json"  # raw; written once, at the end of a successful cycle
        self.error = path / "error.json"  # the error, if there is no measurement
        self.log = path / "worker.log"  # standard output and standard error of the worker and its engine
        self.samples = path / "samples.jsonl"  # the sampler's raw readings, from which the pytest side writes `power`
        self.power = path / "power.parquet"  # the readings over time, with units in the schema's metadata
        self.answers = path / "answers.jsonl"  # the answers of scored questions, a JSON object per line (`job.answers`)
        self.requests = path / "requests.parquet"  # a row per request, with units in the schema's metadata
        self.result = path / "result.json"  # the derived result, validated before it is written

    def write_job(self, job: Job) -> None:
        """Create the directory and write `job.json`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.job, encode(job))

    def write_error(self, error: LlemError, **more: JsonValue) -> None:
        """Write `error.json` from an error and further facts (`phase`, `traceback`, `log_tail`, `origin`), redacted."""
        write_json(self.error, redacted({"schema_version": SCHEMA_VERSION, **error.to_dict(), **more}))


def load_job(path: Path) -> Job:
    """Read a job file; `StoreError` when it is absent, broken, or of a newer version."""
    return read_versioned(Job, path, SCHEMA_VERSION, "job")
