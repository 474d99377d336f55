"""RAPL counters as the kernel's powercap tree shows them.

Layout and units: Documentation/power/powercap/powercap.rst of the Linux kernel (`energy_uj` in microjoules, wraps at
`max_energy_range_uj`). Standard library only and cheap to import, because the sampler process reads it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT_VARIABLE = "LLEM_POWERCAP_ROOT"
DEFAULT_ROOT = Path("/sys/class/powercap")
CONTROL_TYPES = ("intel-rapl:", "intel-rapl-msr:")


class Domain(NamedTuple):
    """One counter: `id` such as `package-0` or `dram-0`, its file, and the value at which it wraps."""

    id: str
    kind: str
    path: str
    range_uj: int


def domains(root: Path | None = None) -> list[Domain]:
    """The package and DRAM counters of this machine, in order; empty where there is no powercap tree.

    Only these two are independent: core and uncore are parts of the package, psys contains everything, and the
    mmio interface repeats the package.
    """
    root = root or Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    found: list[Domain] = []
    try:
        zones = sorted(path for path in root.iterdir() if path.name.startswith(CONTROL_TYPES))
    except OSError:
        return []
    for zone in zones:
        name = _text(zone / "name")
        package = _package_number(zone)
        if name.startswith("package"):
            found.append(Domain(name, "cpu", str(zone / "energy_uj"), _range(zone)))
        elif name == "dram" and package is not None:
            found.append(Domain(f"dram-{package}", "dram", str(zone / "energy_uj"), _range(zone)))
    return found


def read_uj(domain: Domain) -> int:
    """The counter's value in microjoules. Raises `OSError`."""
    with open(domain.path, "rb", buffering=0) as stream:  # noqa: PTH123 (called ten times a second)
        return int(stream.read(32))


def unwrapped(values: Sequence[int], range_uj: int) -> list[int]:
    """A series of readings with every wrap undone; right while two readings lie less than one range apart."""
    total = values[0] if values else 0
    found: list[int] = []
    previous = total
    for value in values:
        step = value - previous
        total += step if step >= 0 else step + range_uj
        previous = value
        found.append(total)
    return found


def _package_number(zone: Path) -> str | None:
    parts = zone.name.split(":")
    return parts[1] if len(parts) == 3 else None


def _range(zone: Path) -> int:
    text = _text(zone / "max_energy_range_uj")
    return int(text) if text.isdigit() else 2**32


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
