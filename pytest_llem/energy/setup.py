"""What every meter is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_llem.job import DeviceSet, MeterSettings


class ServerTree(Protocol):
    """A server that works for the measured process, wherever it came from."""

    @property
    def pid(self) -> int | None:
        """The root of its process tree on this machine, `None` where unknown."""


@dataclass(frozen=True)
class MeterSetup:
    """The cycle's meter settings and devices, the directory that receives `samples.jsonl`, and the server, if any."""

    settings: MeterSettings
    devices: DeviceSet
    out_dir: Path
    server: ServerTree | None = None

    @property
    def samples_path(self) -> Path:
        """The raw series of this cycle."""
        return self.out_dir / "samples.jsonl"
