"""What every meter is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_llem.job import DeviceSet, MeterSettings, ServerProcess


@dataclass(frozen=True)
class MeterSetup:
    """The cycle's meter settings and devices, the directory that receives `samples.jsonl`, and the started server."""

    settings: MeterSettings
    devices: DeviceSet
    out_dir: Path
    server: ServerProcess | None = None

    @property
    def samples_path(self) -> Path:
        """The raw series of this cycle."""
        return self.out_dir / "samples.jsonl"
