"""What a meter is: one source of energy readings, serving one cycle and all its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from pytest_llem.energy.calibration import Calibration
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import EnergyReport, Window


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
