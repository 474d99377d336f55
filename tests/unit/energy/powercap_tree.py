"""A powercap tree on disk, whose counters a test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.energy import rapl_meter, rapl_source


class PowercapTree:
    """One package with its DRAM, each wrapping at `range_uj`."""

    def __init__(self, root: Path, range_uj: int = 262_143_328_850) -> None:
        self.package = root / "intel-rapl:0"
        self.dram = root / "intel-rapl:0:0"
        core = root / "intel-rapl:0:1"
        for zone, name in ((self.package, "package-0"), (self.dram, "dram"), (core, "core")):
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "energy_uj").write_text("0\n")
            (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")

    @classmethod
    def shown(cls, root: Path, monkeypatch: pytest.MonkeyPatch, **more: int) -> PowercapTree:
        """A tree that meters find, and do not wait to see move: it does only when a test says so."""
        monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(root))
        monkeypatch.setattr(rapl_meter, "moves", lambda domain: True)
        return cls(root, **more)

    def set_uj(self, package: int, dram: int) -> None:
        for zone, value in ((self.package, package), (self.dram, dram)):
            # Never empty, as the kernel's file is not.
            (zone / "written").write_text(f"{value}\n")
            (zone / "written").replace(zone / "energy_uj")
