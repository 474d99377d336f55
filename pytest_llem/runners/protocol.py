"""What a runner is: it executes one cycle, from job directory to job directory.

The session, the cluster's nodes and the servers call runners through this base class. A runner overrides `run`, `close`
and whatever else it can do; a new method must answer "no" or "nothing" here, so that other runners can do without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_llem.engines.signatures import SignatureReport
from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.config import DeviceKind, ExperimentConfig
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.machine.cooldown import Setting as Cooldown
from pytest_llem.machine.leases import Lease

Isolation = Literal["process", "experiment", "load"]
OnEvent = Callable[[Mapping[str, JsonValue]], None]


@dataclass(frozen=True)
class RunnerSettings:
    """What a study says to its runners: sections `docker` and `ray` as written, and the limits that nodes keep to.

    `isolation`: how long engines stay loaded; `cooldown`: seconds or `auto`; `run_dir`: for logs that outlive a cycle.
    """

    run_dir: Path
    isolation: Isolation = "process"
    docker: Mapping[str, JsonValue] = field(default_factory=dict)
    ray: Mapping[str, JsonValue] = field(default_factory=dict)
    residual_memory_bytes: int = 100_000_000
    cooldown: Cooldown = "auto"


@dataclass(frozen=True)
class ReuseTarget:
    """Where a cycle may run, as reuse compares it (`machine.environment.identity`); `image`: its digest, else name."""

    environment: Mapping[str, JsonValue]
    inputs: Mapping[str, JsonValue]
    image: str | None
    device_kind: DeviceKind
    device_count: int


@dataclass(frozen=True)
class PreflightReport:
    """`problems` forbid running, `notices` are worth knowing, `facts` go into the run's record."""

    problems: tuple[LlemError, ...] = ()
    notices: tuple[Note, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ParallelCycles:
    """How many cycles to submit at a time, and what the user should know about that, a sentence each."""

    cycles: int
    notices: tuple[str, ...] = ()


class Runner(ABC):
    """Runs cycles. Never raises for a failed cycle: that is what `error.json` is for."""

    spec: RunnerSpec

    distributed = False
    """Whether other machines measure: they hold the devices themselves, and several cycles may run at a time."""

    @abstractmethod
    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """Run one cycle and return when its process is gone.

        The runner that starts the worker completes the job and writes `job.json` (`hand_over`). On return exactly one
        of `measurement.json` and `error.json` exists, written by the worker or, where it could not, here. `on_event`
        sees each line of `events.jsonl` as it arrives. The measured process inherits the descriptors of `lease`, so
        that the device is free when *it* is dead. A `KeyboardInterrupt` kills the worker, writes an `interrupted` error
        and goes on to the caller.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what outlives a cycle (fork server, containers). Safe to call twice."""

    @staticmethod
    def hand_over(job: Job, job_dir: JobDir) -> None:
        """Write `job.json`, once per attempt: nothing changes the job after this."""
        job_dir.write_job(job)

    def preflight(self, engine: str, configs: Sequence[ExperimentConfig], devices: DeviceSet) -> PreflightReport | None:
        """What would make every cycle of this engine fail, nothing loaded; `None` where there is nothing to check."""
        return None

    def check_settings(
        self, configs: Sequence[ExperimentConfig], directory: Path, devices: DeviceSet
    ) -> SignatureReport | None:
        """Compare one engine's settings with its signatures where cycles run, if possible; files in `directory`."""
        return None

    def known_image(self, engine: str) -> str | None:
        """Digest, else id, of the engine's local image; `None` if not present, no daemon responds, or none is used."""
        return None

    @property
    def loaded(self) -> bool:
        """Whether an engine or a server stays on the devices after a cycle, under the lease that it was loaded with."""
        return False

    def can_serve(self, job: Job) -> bool:
        """Whether what is loaded is what this job needs."""
        return False

    def unload(self) -> None:  # noqa: B027 (nothing is loaded)
        """Take what is loaded off the devices."""

    def parallel_cycles(self, configs: Sequence[ExperimentConfig]) -> ParallelCycles:
        """How many cycles of these experiments to submit at a time."""
        return ParallelCycles(1)

    def reuse_targets(self, config: ExperimentConfig) -> Sequence[ReuseTarget]:
        """The other machines where a cycle of this experiment may run; empty for a runner of this machine."""
        return ()

    def interrupt(self) -> None:  # noqa: B027 (nothing runs in other threads)
        """End what other threads run; each `run` then returns."""
