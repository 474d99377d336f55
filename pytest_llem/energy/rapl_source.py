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


UPDATE_NS = 1_000_000
"""RAPL counters advance about every millisecond (Intel SDM volume 3B, section 15.10.2)."""

PLAUSIBLE_W = 2000.0
"""Chosen: four times the 500 W at which the largest packages are rated; a counter that shows more is not believed."""

AMBIGUOUS_NS = 10_000_000_000
"""Chosen: a hundred readings of the sampler. Where that is longer than a wrap takes, one may have been missed."""


class Domain(NamedTuple):
    """One counter: `id` such as `package-0` or `dram-0`, its file, and the value at which it wraps."""

    id: str
    kind: Literal["cpu", "dram"]
    path: str
    range_uj: int


def domains(root: Path | None = None) -> list[Domain]:
    """The package and DRAM counters of this machine, in order; empty where there is no powercap tree.

    Only these two are independent: core and uncore are parts of the package, psys contains everything, and the
    mmio interface repeats the package. A package that two control types show counts once.
    """
    root = root or Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    counters: dict[str, Domain] = {}
    try:
        zones = sorted(path for path in root.iterdir() if path.name.startswith(CONTROL_TYPES))
    except OSError:
        return []
    for zone in zones:
        name, path, limit = _text(zone / "name"), str(zone / "energy_uj"), _text(zone / "max_energy_range_uj")
        range_uj = int(limit) if limit.isdigit() else 2**32
        _, *numbers = zone.name.split(":")
        if name.startswith("package"):
            counters.setdefault(name, Domain(name, "cpu", path, range_uj))
        elif name == "dram" and len(numbers) == 2:
            id = f"dram-{numbers[0]}"
            counters.setdefault(id, Domain(id, "dram", path, range_uj))
    return list(counters.values())


def read_uj(domain: Domain) -> int:
    """The counter's value in microjoules. Raises `OSError`."""
    with open(domain.path, "rb", buffering=0) as stream:  # noqa: PTH123 (called ten times a second)
        return int(stream.read(32))


class RaplReading(NamedTuple):
    """A counter's value in microjoules, read at `t_ns` (CLOCK_MONOTONIC) plus or minus `half_ns`."""

    t_ns: int
    half_ns: int
    value_uj: int


def read_timed(domain: Domain) -> RaplReading:
    """The counter's value with the time at which it was read. Raises `OSError` or `ValueError`."""
    begin = time.monotonic_ns()
    value = read_uj(domain)
    end = time.monotonic_ns()
    return RaplReading((begin + end) // 2, (end - begin + 1) // 2, value)


class Fault(NamedTuple):
    """Why a counter says nothing between two times: a reason's code, and the reason in words."""

    start_ns: int
    end_ns: int
    code: Literal["counter_reset", "implausible_power", "sensor_gap"]
    message: str


def followed(readings: Sequence[RaplReading], range_uj: int) -> tuple[list[RaplReading], list[Fault]]:
    """Readings in the order of their times with every wrap undone, and where they cannot be followed.

    A fall is a wrap only where the energy up to the wrap is plausible for the time between the readings. Two readings
    whose times overlap may have been made in the other order: the later one is then left out.
    """
    course = list(readings[:1])
    faults: list[Fault] = []
    previous = readings[0] if readings else None
    for now in readings[1:]:
        assert previous is not None
        between, apart_ns = (previous.t_ns, now.t_ns), now.t_ns - previous.t_ns
        halves_ns, step = now.half_ns + previous.half_ns, now.value_uj - previous.value_uj
        most, swapped = _most_uj(apart_ns + halves_ns), _most_uj(max(0, halves_ns - apart_ns))
        if apart_ns > max(AMBIGUOUS_NS, range_uj * 1e3 / PLAUSIBLE_W):
            faults.append(Fault(*between, "sensor_gap", f"not read for {apart_ns / 1e9:.0f} s: it may have wrapped"))
        if step < 0 and step + range_uj <= most:
            step += range_uj
        elif (step < 0 and -step <= swapped) or (step > most and range_uj - step <= swapped):
            continue
        elif step < 0:
            faults.append(Fault(*between, "counter_reset", f"it jumped back by {-step / 1e6:.3g} J"))
            step = 0
        elif step > most:
            power = f"{step / 1e6:.3g} J in {apart_ns / 1e9:.3g} s"
            faults.append(Fault(*between, "implausible_power", f"{power}, more than {PLAUSIBLE_W:.0f} W"))
        previous = now
        course.append(now._replace(value_uj=course[-1].value_uj + step))
    return course, faults


def _most_uj(length_ns: int) -> int:
    """The most microjoules that a counter may advance within a time."""
    return round((length_ns + UPDATE_NS) * PLAUSIBLE_W / 1e3)


class RaplSource(Source):
    """One RAPL domain, read ten times a second. Its `power_w` is `None` for DRAM."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._previous: RaplReading | None = None

    def poll(self, writer: SampleWriter) -> None:
        """Read the counter, and the mean power since the reading before."""
        begin = time.monotonic_ns()
        self.due_ns = begin + RAPL_PERIOD_NS
        try:
            now = read_timed(self._domain)
        except (OSError, ValueError) as problem:
            code = problem.errno if isinstance(problem, OSError) else None
            writer.event(begin, "error", device=self._domain.id, message=str(problem), code=code)
            return
        power_w = None
        if self._previous is not None:
            course, faults = followed((self._previous, now), self._domain.range_uj)
            if len(course) == 2 and not faults:
                power_w = (course[1].value_uj - course[0].value_uj) * 1e3 / max(1, course[1].t_ns - course[0].t_ns)
        if self._domain.kind == "cpu":
            self.power_w = power_w
        self._previous = now
        self.known_until_ns = now.t_ns
        sample = Sample(now.t_ns, self._domain.id, power_w, now.value_uj / 1e3, bracket_ns=now.half_ns)
        writer.sample(sample)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
