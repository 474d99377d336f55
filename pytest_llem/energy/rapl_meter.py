"""CPU packages and DRAM through RAPL: counters read in-process at every edge, wraps watched by the sampler process.

Opened by `registry`; the GPU meters use `RaplEdges` and `cpu_energy` for the host's CPUs, and `llem doctor` asks
`obstacle`. An edge is read in the measured process, so `mark` must take no more than microseconds.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import hypot
from pathlib import Path
from typing import Any, ClassVar

from pytest_llem.energy import rapl_source
from pytest_llem.energy.protocol import EnergyEstimate, Meter, MeterRequest, window_energy
from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.errors import JsonValue, MeterError
from pytest_llem.job.measurement import CpuEnergy, EnergyReport, Measured, MeteredDevice, Window
from pytest_llem.job.report import Note

STILL_NS = 500_000_000
"""Chosen: five readings of the sampler. A counter advances every millisecond, so that one stands still."""

NEAR_NS = 10_000_000
"""Chosen: over ten updates of the counter, power is known to a tenth, whatever their phase."""


@dataclass(frozen=True)
class DomainSeries:
    """Readings of one domain over a cycle, wraps undone: times in ns and values in joules, both ascending.

    Each was read at its time plus or minus `halves_ns`. `faults` are stretches in which the counter is not believed.
    """

    domain: rapl_source.Domain
    times_ns: tuple[int, ...]
    energies_j: tuple[float, ...]
    halves_ns: tuple[int, ...] = ()
    faults: tuple[rapl_source.Fault, ...] = ()

    @classmethod
    def of(cls, domain: rapl_source.Domain, readings: Sequence[rapl_source.RaplReading]) -> DomainSeries:
        """The series of a domain's readings, in any order."""
        course, faults = rapl_source.followed(sorted(readings), domain.range_uj)
        moved_ns = course[0].t_ns if course else 0
        for before, now in pairwise(course):
            if now.value_uj == before.value_uj and now.t_ns - moved_ns > STILL_NS:
                faults.append(rapl_source.Fault(moved_ns, now.t_ns, "sensor_gap", "it stood still"))
            if now.value_uj != before.value_uj:
                moved_ns = now.t_ns
        return cls(
            domain,
            tuple(reading.t_ns for reading in course),
            tuple(reading.value_uj / 1e6 for reading in course),
            tuple(reading.half_ns for reading in course),
            tuple(faults),
        )

    def faults_in(self, window: Window) -> list[Note]:
        """Why the counter's energy in a window is not believed."""
        # The reading at an edge is not of the same moment as the edge, nor is what it shows.
        last_ns = window.end_ns - min(rapl_source.UPDATE_NS, (window.end_ns - window.start_ns) // 2)
        within = [fault for fault in self.faults if fault.start_ns < last_ns and fault.end_ns > window.start_ns]
        if not within and self.between(window.start_ns, window.end_ns) is None:
            return [Note("sensor_gap", f"{self.domain.id}: no readings on both sides of {window.name}")]
        return [Note(fault.code, f"{self.domain.id}: {fault.message} in {window.name}") for fault in within[:1]]

    @property
    def absent(self) -> bool:
        """Whether it is a DRAM counter that a processor shows and does not keep: it never moves."""
        moved = len(set(self.energies_j)) > 1 or not self.times_ns
        return self.domain.kind == "dram" and not moved and self.times_ns[-1] - self.times_ns[0] > STILL_NS

    def energy(self, window: Window) -> EnergyEstimate | None:
        """The window's energy; `None` outside the series, and where the counter is not believed."""
        return None if self.faults_in(window) else self.between(window.start_ns, window.end_ns)

    def between(self, start_ns: int, end_ns: int) -> EnergyEstimate | None:
        """Energy between two times; `None` outside the series.

        An edge without a reading of its own is interpolated between its neighbours. A reading is up to one update
        old; between readings the power may have been anything that yields their difference.
        """
        first, last = self._at(start_ns), self._at(end_ns)
        if first is None or last is None:
            return None
        inside = bisect_left(self.times_ns, end_ns) - bisect_left(self.times_ns, start_ns) + 1
        bound = hypot(first.uncertainty, last.uncertainty)
        return EnergyEstimate(
            last.value - first.value, bound, "rapl_counter", max(2, inside), {"counter_update": bound}
        )

    def _at(self, t_ns: int) -> Measured | None:
        index = bisect_left(self.times_ns, t_ns)
        near = [i for i in (index - 1, index) if 0 <= i < len(self.times_ns)]
        if not near:
            return None
        nearest = min(near, key=lambda i: abs(self.times_ns[i] - t_ns))
        away_ns = abs(self.times_ns[nearest] - t_ns)
        if away_ns <= rapl_source.UPDATE_NS:
            half_ns = self.halves_ns[nearest] if self.halves_ns else 0
            before_w, after_w = (self._power_w(nearest, step) for step in (-1, 1))
            # A value is as old as the counter's update, and was read before or after the edge.
            old_w = before_w if nearest > 0 else after_w
            bound_j = (old_w * rapl_source.UPDATE_NS + max(before_w, after_w) * (away_ns + half_ns)) / 1e9
            return Measured(self.energies_j[nearest], bound_j)
        if len(near) < 2:
            return None
        gap_ns = self.times_ns[index] - self.times_ns[index - 1]
        step_j = self.energies_j[index] - self.energies_j[index - 1]
        share = (t_ns - self.times_ns[index - 1]) / gap_ns
        late_ns = max(self.halves_ns[index - 1 : index + 1], default=0) + rapl_source.UPDATE_NS
        bound = step_j * (min(share, 1 - share) + late_ns / gap_ns)
        return Measured(self.energies_j[index - 1] + share * step_j, bound)

    def _power_w(self, index: int, step: int) -> float:
        """Mean power before a reading (`step` -1) or after it (1), over some updates of the counter if it can.

        The other reading is so far away that the power between them is known although both have times of their own.
        """
        other = index + step
        while 0 <= other + step < len(self.times_ns) and self._apart_ns(index, other) < NEAR_NS:
            other += step
        if not 0 <= other < len(self.times_ns) or (gap_ns := self._apart_ns(index, other)) <= 0:
            return 0.0
        return abs(self.energies_j[index] - self.energies_j[other]) / gap_ns * 1e9

    def _apart_ns(self, one: int, other: int) -> int:
        """The shortest time that may have passed between two readings."""
        halves_ns = self.halves_ns[one] + self.halves_ns[other] if self.halves_ns else 0
        return abs(self.times_ns[one] - self.times_ns[other]) - halves_ns


class RaplEdges:
    """Readings of all domains at the edges of windows, taken in the measured process (a few microseconds each).

    Each has its own time, because the process may be kept from running between two of them.
    """

    def __init__(self, domains: Sequence[rapl_source.Domain]) -> None:
        self.domains = tuple(domains)
        self._readings: dict[str, list[rapl_source.RaplReading]] = {domain.id: [] for domain in domains}

    @classmethod
    def stored(cls, report: EnergyReport) -> RaplEdges:
        """The domains of a report, which may be another machine's; what was read at its edges is gone."""
        facts: Any = report.facts
        return cls([rapl_source.Domain(*domain) for domain in facts["domains"]])

    @property
    def facts(self) -> list[JsonValue]:
        """The domains, for a report."""
        return [list(domain) for domain in self.domains]

    def mark(self) -> int:
        """Read every domain; returns the time of the edge."""
        begin = time.monotonic_ns()
        for domain in self.domains:
            with suppress(OSError, ValueError):
                self._readings[domain.id].append(rapl_source.read_timed(domain))
        return (begin + time.monotonic_ns()) // 2

    def finish(self) -> None:
        """Read until every counter has moved since the last edge, for as long as one may take to stand still."""
        last = {name: readings[-1].value_uj for name, readings in self._readings.items() if readings}
        until_ns = time.monotonic_ns() + STILL_NS + NEAR_NS
        self.mark()
        while time.monotonic_ns() < until_ns and any(self._readings[n][-1].value_uj == last[n] for n in last):
            time.sleep(NEAR_NS / 1e9)
            self.mark()

    def series(self, samples_path: Path) -> tuple[DomainSeries, ...]:
        """The edges' readings merged with what the sampler process wrote, wraps undone; without absent counters."""
        merged = {name: list(readings) for name, readings in self._readings.items()}
        for sample in read_samples(samples_path):
            if sample.device in merged and sample.counter_mj is not None:
                value_uj = round(sample.counter_mj * 1e3)
                merged[sample.device].append(rapl_source.RaplReading(sample.t_ns, sample.bracket_ns or 0, value_uj))
        found = [DomainSeries.of(domain, merged[domain.id]) for domain in self.domains]
        return tuple(series for series in found if not series.absent)


class RaplMeter(Meter):
    """Energy of the CPU packages and their DRAM: of the whole machine, also of what else runs on it."""

    name: ClassVar[str] = "rapl"
    reads_machine: ClassVar[bool] = True
    sees_standstill: ClassVar[bool] = True

    def __init__(self, request: MeterRequest) -> None:
        super().__init__(request)
        self._edges = RaplEdges(rapl_source.domains())
        self._sampler: SamplerProcess | None = None

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why RAPL cannot be read on this machine, or `None`."""
        return obstacle(rapl_source.domains())

    def start(self) -> None:
        """Start the sampler process."""
        problem = self.obstacle()
        if problem is not None:
            raise problem
        self._sampler = SamplerProcess(self._request.samples_path, None, self._edges.domains)
        self._edges.mark()

    def mark(self) -> int:
        """Read the counters at an edge."""
        return self._edges.mark()

    def power_w(self) -> float | None:
        """Mean power of the packages over the last 100 ms."""
        return self._sampler.power_w() if self._sampler is not None else None

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """End sampling and account every window."""
        self._edges.finish()
        problem = self._sampler.stop() if self._sampler is not None else "the meter was never started"
        self._sampler = None
        return self._accounted(windows, problem)

    def account_again(self, report: EnergyReport, windows: Sequence[Window]) -> EnergyReport:
        """Account other windows of a report's readings: those of the sampler, ten a second."""
        self._edges = RaplEdges.stored(report)
        return self._accounted(windows, None)

    def _accounted(self, windows: Sequence[Window], problem: str | None) -> EnergyReport:
        series = self._edges.series(self._request.samples_path)
        notes = [Note("whole_machine", "RAPL counts everything that ran on these processors, not this process alone")]
        read = [one.domain for one in series]
        for domain in self._edges.domains:
            if domain not in read:
                notes.append(Note("dram_not_counted", f"{domain.id}: its counter never moves, and is left out"))
        beside = [d.id for d in read] if self._request.devices.on_gpu else []
        return EnergyReport(
            meter=self.name,
            measured=True,
            scope="cpu_package+dram" if any(d.kind == "dram" for d in read) else "cpu_package",
            placement=self._request.settings.placement,
            devices=tuple(MeteredDevice(d.id, d.id, d.kind, d.id not in beside) for d in read),
            windows=tuple(window_energy(w, {s.domain.id: s.energy(w) for s in series}, beside) for w in windows),
            host=cpu_energy(windows, series),
            notes=tuple(notes),
            invalid=(*((Note("sensor_gap", problem),) if problem else ()), *faults(windows, series)),
            facts={"domains": self._edges.facts},
        )


def faults(windows: Sequence[Window], series: Sequence[DomainSeries]) -> tuple[Note, ...]:
    """Why the energy of the `measure` windows is not believed, nor that of the idle windows, which is taken off it."""
    return tuple(note for w in windows if w.name in ("measure", "idle") for s in series for note in s.faults_in(w))


def cpu_energy(windows: Sequence[Window], series: Sequence[DomainSeries]) -> CpuEnergy | None:
    """Packages and DRAM over the `measure` windows; `None` when no domain was read."""
    if not any(domain.times_ns for domain in series):
        return None
    measured = [window for window in windows if window.name == "measure"]
    return CpuEnergy(_total(measured, series, "cpu"), _total(measured, series, "dram"), shared=False)


def obstacle(domains: Sequence[rapl_source.Domain]) -> MeterError | None:
    """Why these domains cannot be read, with the exact remedy, or `None`."""
    if not domains:
        return MeterError(
            "no RAPL counters: /sys/class/powercap has no intel-rapl package (virtual machines and containers rarely "
            "show one)",
            fix="run on the bare machine with the kernel module intel_rapl_msr (`sudo modprobe intel_rapl_msr`), mount "
            "/sys/class/powercap into the container, or use --llem-meter=estimate",
        )
    for domain in domains:
        try:
            rapl_source.read_uj(domain)
        except PermissionError:
            return MeterError(
                f"RAPL counters are readable by root only: {domain.path} (since CVE-2020-8694)",
                fix=f"sudo chmod a+r {' '.join(d.path for d in domains)} (until the next boot; docs/energy.md has a "
                "udev rule that stays)",
                details={"path": domain.path},
            )
        except (OSError, ValueError) as problem:
            return MeterError(f"RAPL counter cannot be read: {domain.path}: {problem}", details={"path": domain.path})
    for domain in domains:
        if domain.kind == "cpu" and not moves(domain):
            return MeterError(
                f"RAPL counter never moves: {domain.path} (as in some virtual machines)",
                fix="run on the bare machine, or use --llem-meter=estimate",
                details={"path": domain.path},
            )
    return None


@cache
def moves(domain: rapl_source.Domain) -> bool:
    """Whether a counter that was just readable moves, which takes a millisecond; asked once in a process."""
    with suppress(OSError, ValueError):
        first, until_ns = rapl_source.read_uj(domain), time.monotonic_ns() + STILL_NS
        while time.monotonic_ns() < until_ns:
            if rapl_source.read_uj(domain) != first:
                return True
            time.sleep(rapl_source.UPDATE_NS / 1e9)
    return False


def _total(windows: Sequence[Window], series: Sequence[DomainSeries], kind: str) -> float | None:
    parts = [s.energy(w) for w in windows for s in series if s.domain.kind == kind]
    energies_j = [part.energy_j for part in parts if part is not None]
    return sum(energies_j) if energies_j and len(energies_j) == len(parts) else None
