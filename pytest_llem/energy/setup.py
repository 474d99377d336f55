"""What every meter is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_llem.job import DeviceSet, MeterSettings


@dataclass(frozen=True)
class MeterSetup:
    """The cycle's meter settings and devices, and the directory that receives `samples.jsonl`."""

    settings: MeterSettings
    devices: DeviceSet
    out_dir: Path

    @property
    def samples_path(self) -> Path:
        """The raw series of this cycle."""
        return self.out_dir / "samples.jsonl"
