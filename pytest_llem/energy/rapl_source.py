"""RAPL counters through the kernel's powercap tree, and the sampler's source that reads them.

The sampler process, meters and `llem doctor` use it: standard library only, no dataclasses, for the sampler's start.
Units (uJ) and wraps (`max_energy_range_uj`): Documentation/power/powercap/powercap.rst of the Linux kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_llem.energy.readings import Sample, SampleWriter, Source

ROOT_VARIABLE = "LLEM_POWERCAP_ROOT"
DEFAULT_ROOT = Path("/sys/class/powercap")
CONTROL_TYPES = ("intel-rapl:", "intel-rapl-msr:")

RAPL_PERIOD_NS = 100_000_000
"""Chosen: a counter wraps after a minute at the earliest (Intel SDM volume 3B, section 15.10), so no wrap is missed."""


class Domain(NamedTuple):
    """One counter: `id` such as `package-0` or `dram-0`, its file, and the value at which it wraps."""

    id: str
    kind: Literal["cpu", "dram"]
    path: str
    range_uj: int


def domains(root: Path | None = None) -> list[Domain]:
    """The package and DRAM counters of this machine, in order; empty where there is no powercap tree.

    Only these two are independent: core and uncore are parts of the package, psys contains everything, and the
    mmio interface repeats the package.
    """
    root = root or Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    counters: list[Domain] = []
    try:
        zones = sorted(path for path in root.iterdir() if path.name.startswith(CONTROL_TYPES))
    except OSError:
        return []
    for zone in zones:
        name, path, limit = _text(zone / "name"), str(zone / "energy_uj"), _text(zone / "max_energy_range_uj")
        range_uj = int(limit) if limit.isdigit() else 2**32
        _, *numbers = zone.name.split(":")
        if name.startswith("package"):
            counters.append(Domain(name, "cpu", path, range_uj))
        elif name == "dram" and len(numbers) == 2:
            counters.append(Domain(f"dram-{numbers[0]}", "dram", path, range_uj))
    return counters


def read_uj(domain: Domain) -> int:
    """The counter's value in microjoules. Raises `OSError`."""
    with open(domain.path, "rb", buffering=0) as stream:  # noqa: PTH123 (called ten times a second)
        return int(stream.read(32))


def unwrapped(values: Sequence[int], range_uj: int) -> list[int]:
    """A series of readings with every wrap undone; right while two readings lie less than one range apart."""
    total = values[0] if values else 0
    totals: list[int] = []
    previous = total
    for value in values:
        step = value - previous
        total += step if step >= 0 else step + range_uj
        previous = value
        totals.append(total)
    return totals


class RaplSource(Source):
    """One RAPL domain, read ten times a second. Its `power_w` is `None` for DRAM."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._previous: tuple[int, int] | None = None

    def poll(self, writer: SampleWriter) -> None:
        """Read the counter, and the mean power since the reading before."""
        begin = time.monotonic_ns()
        self.due_ns = begin + RAPL_PERIOD_NS
        try:
            value = read_uj(self._domain)
        except OSError as problem:
            writer.event(begin, "error", device=self._domain.id, message=str(problem), code=problem.errno)
            return
        t_ns = (begin + time.monotonic_ns()) // 2
        power_w = None
        if self._previous is not None:
            step = (value - self._previous[1]) % self._domain.range_uj
            power_w = step * 1e3 / (t_ns - self._previous[0])
        if self._domain.kind == "cpu":
            self.power_w = power_w
        self._previous = (t_ns, value)
        self.known_until_ns = t_ns
        writer.sample(Sample(t_ns, self._domain.id, power_w=power_w, counter_mj=value / 1e3))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
