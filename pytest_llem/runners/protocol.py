"""What a runner is: a place where one cycle executes, from job directory to job directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.config import DeviceKind, ExperimentConfig
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.machine.leases import Lease

Isolation = Literal["process", "experiment", "load"]

OnEvent = Callable[[Mapping[str, JsonValue]], None]


@dataclass(frozen=True)
class ReuseTarget:
    """Where a cycle may run, as far as it must be equal for a result to be reused: see `machine.environment.identity`.

    `image` is known by its digest where it lies there already, else by its name.
    """

    environment: Mapping[str, JsonValue]
    inputs: Mapping[str, JsonValue]
    image: str | None
    device_kind: DeviceKind
    device_count: int


@dataclass(frozen=True)
class PreflightReport:
    """What was found: `problems` forbid running, `notices` are worth knowing, `facts` go into the run's record."""

    problems: tuple[LlemError, ...] = ()
    notices: tuple[Note, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """Runs cycles one at a time. Never raises for a failed cycle: that is what `error.json` is for."""

    spec: RunnerSpec

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """Run one cycle and return when its process is gone.

        `job.json` has been written. On return exactly one of `measurement.json` and `error.json` exists, written by
        the worker or, where it could not, here. `on_event` sees each line of `events.jsonl` as it arrives. The
        measured process inherits the descriptors of `lease`, so that the device is free when *it* is dead. A
        `KeyboardInterrupt` kills the worker, writes an `interrupted` error and goes on to the caller.
        """

    def close(self) -> None:
        """Release what outlives a cycle (fork server, containers). Safe to call twice."""


@runtime_checkable
class ChecksFirst(Protocol):
    """A runner that can tell beforehand what would make every cycle fail (an optional part of the protocol)."""

    def preflight(self, engine: str, configs: Sequence[ExperimentConfig], devices: DeviceSet) -> PreflightReport:
        """Everything that stands against cycles of this engine, without loading anything."""


@runtime_checkable
class KnowsImage(Protocol):
    """A runner whose cycles run in an image (an optional part of the protocol)."""

    def known_image(self, engine: str) -> str | None:
        """The digest, else the id, of an engine's image as it lies here; `None` where it does not."""


@dataclass(frozen=True)
class ParallelCycles:
    """How many cycles to begin at a time, and what the user should know about that, a sentence each."""

    cycles: int
    notices: tuple[str, ...] = ()


@runtime_checkable
class RunsMany(Protocol):
    """A runner that has room for several cycles at a time; threads may share its `run` (an optional part)."""

    def room(self, configs: Sequence[ExperimentConfig]) -> ParallelCycles:
        """How many cycles of these experiments to begin at a time."""

    def places(self, config: ExperimentConfig) -> Sequence[ReuseTarget]:
        """Where a cycle of this experiment may run, each place by what must be equal for its result to be reused."""

    def interrupt(self) -> None:
        """End what is being run; each `run` then returns."""
