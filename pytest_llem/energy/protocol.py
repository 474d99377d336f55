"""What a meter is: one source of energy readings, serving one cycle and all its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pytest_llem.energy.calibration import Calibration
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.report import Note

Scope = Literal["gpu_board", "module", "cpu_package+dram", "cpu_package", "process_estimate"]


@dataclass(frozen=True)
class Window:
    """A measured interval on CLOCK_MONOTONIC, in nanoseconds.

    `index` counts windows of one name from 0. `quiet_before_s` and `quiet_after_s` say how long the device was left
    idle, confirmed synchronised, on each side; `None` means busy or unknown. `repeats` counts the whole repeats of the
    workload inside, where it holds such.
    """

    name: str
    start_ns: int
    end_ns: int
    index: int = 0
    quiet_before_s: float | None = None
    quiet_after_s: float | None = None
    repeats: int | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class MeteredDevice:
    """One thing with a sensor: a GPU (by UUID) or a CPU package."""

    id: str
    name: str | None
    kind: Literal["gpu", "cpu", "dram", "process"]


@dataclass(frozen=True)
class DeviceEnergy:
    """Energy of one device in one window, in joules; `None` where it was not measured."""

    id: str
    energy_j: float | None
    uncertainty_j: float | None


@dataclass(frozen=True)
class WindowEnergy:
    """Energy drawn between a window's two edges, summed over the devices.

    `uncertainty_j` is k=2 and leaves out the board's gain error; `terms` are its parts in joules (k=2). `samples` is
    how many readings the estimate rests on, `estimator` how it was made.
    """

    name: str
    index: int
    start_ns: int
    end_ns: int
    energy_j: float | None
    uncertainty_j: float | None
    estimator: str | None
    samples: int = 0
    terms: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[DeviceEnergy, ...] = ()


@dataclass(frozen=True)
class HostEnergy:
    """CPU packages and DRAM over the `measure` windows, beside the accelerator's energy and never added to it."""

    package_j: float | None
    dram_j: float | None
    shared: bool = False


@dataclass(frozen=True)
class EnergyReport:
    """All that a meter knows about a cycle.

    `measured` is false when the numbers come from a model of the hardware instead of a sensor; `source` then names
    where that model is published. `invalid` holds reason codes that forbid using the numbers (`sensor_gap`, ...).
    """

    meter: str
    measured: bool
    scope: Scope
    placement: Literal["host", "worker"]
    devices: tuple[MeteredDevice, ...]
    windows: tuple[WindowEnergy, ...]
    host: HostEnergy | None = None
    gain_uncertainty_rel: float | None = None
    source: str | None = None
    notes: tuple[Note, ...] = ()
    invalid: tuple[Note, ...] = ()
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


class Meter(Protocol):
    """One source of energy readings. `start` once, then `stop` once with every window of the cycle."""

    name: ClassVar[str]

    def start(self) -> None:
        """Begin reading. Raises `MeterError` when the source cannot be read, with the remedy."""

    def mark(self) -> int:
        """The edge of a window: reads the source where it needs that, and returns CLOCK_MONOTONIC in ns."""

    def power_w(self) -> float | None:
        """The latest power in watts, for settling and convergence; `None` where the source has no such reading."""

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """End reading and account every window's energy."""


@runtime_checkable
class OwnsContainers(Protocol):
    """A meter that tells the measured processes from others by their container (an optional part of the protocol)."""

    def owns_container(self, identity: str) -> None:
        """What runs in the container with this id is measured."""


@runtime_checkable
class Calibrated(Protocol):
    """A meter that knows its sensors (an optional part of the meter protocol)."""

    def calibrations(self) -> tuple[Calibration, ...]:
        """Those of the metered devices that were calibrated, once the meter has started."""


class ServerTree(Protocol):
    """A server that works for the measured process, wherever it came from."""

    @property
    def pid(self) -> int | None:
        """The root of its process tree on this machine, `None` where unknown."""


@dataclass(frozen=True)
class MeterRequest:
    """The cycle's meter settings and devices, the directory that receives `samples.jsonl`, and the server, if any."""

    settings: MeterSettings
    devices: DeviceSet
    out_dir: Path
    server: ServerTree | None = None

    @property
    def samples_path(self) -> Path:
        """The raw series of this cycle."""
        return self.out_dir / "samples.jsonl"
