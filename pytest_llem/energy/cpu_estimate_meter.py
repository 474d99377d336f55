"""The meter of last resort: CPU time of the worker's and its server's processes, times published watts per thread.

`registry` opens it by name, and as `auto` where no sensor can be read; `llem doctor` shows its figure. Results state
that nothing was measured. The table may grow, but a changed figure makes runs incomparable with earlier ones.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import hypot, inf
from pathlib import Path
from statistics import median
from typing import ClassVar

from pytest_llem.energy.protocol import EnergyEstimate, Meter, MeterRequest, window_energy
from pytest_llem.energy.readings import Sample, SampleWriter, read_samples
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Window, WindowEnergy
from pytest_llem.job.report import Note

DEVICE_ID = "process-tree"
NOT_COUNTED = "the server's process is not known here, so its CPU time cannot be counted: no energy is stated"

LOST = Note("sensor_gap", f"{DEVICE_ID}: a process left the tree, and its CPU time is lost (window measure)")

_CPU_CLOCK_STEP_NS = 10_000_000
"""The scheduler's tick on Linux with HZ=100 (time(7)), the resolution of CPU times of children in `/proc/PID/stat`."""


class EstimateMeter(Meter):
    """Estimates the energy of this process, its server, and their children; `measured` is false.

    If the server's process is unknown, no energy is stated, because a part would pass for the whole. A window is
    accounted only between edges that `mark` returned, because CPU time cannot be read afterwards. The uncertainty is
    that of the published watts.
    """

    name: ClassVar[str] = "estimate"
    sees_standstill: ClassVar[bool] = True

    def __init__(self, request: MeterRequest) -> None:
        super().__init__(request)
        self._power = thread_power()
        self._marks: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._latest: tuple[int, int] | None = None
        server_pid = request.server.pid if request.server is not None else None
        self._beside = (DEVICE_ID,) if request.devices.on_gpu else ()
        self._server_unknown = request.server is not None and server_pid is None
        self._clock = ProcessTreeClock(os.getpid(), *([server_pid] if server_pid is not None else []))
        self._writer: SampleWriter | None = None

    def start(self) -> None:
        """Take the first reading."""
        self._writer = SampleWriter(self._request.samples_path)
        self.mark()

    def mark(self) -> int:
        """Read the CPU time of the process tree at an edge."""
        t_ns, used_ns = self._read()
        self._marks[t_ns] = used_ns
        self._lost[t_ns] = self._clock.lost_ns
        return t_ns

    def power_w(self) -> float | None:
        """Mean estimated power since the reading before; `None` when both lie less than 10 ms apart."""
        before, after = self._latest, self._read()
        if before is None or after[0] - before[0] < _CPU_CLOCK_STEP_NS:
            return None
        return self._power.watts * (after[1] - before[1]) / (after[0] - before[0])

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Account the windows whose edges were marked."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        watts, generation = self._power.watts, self._power.generation
        notes = [
            Note(
                "estimated",
                f"energy is CPU time times {watts:.2f} W per thread, not a measurement; "
                "idle power, memory and accelerators are not in it",
            )
        ]
        if self._server_unknown:
            notes.append(Note("server_not_counted", NOT_COUNTED))
        return EnergyReport(
            meter=self.name,
            measured=False,
            scope="process_estimate",
            placement="worker",
            devices=(MeteredDevice(DEVICE_ID, self._power.processor, "process", not self._beside),),
            windows=tuple(self._account(window) for window in windows),
            source=self._power.source,
            notes=tuple(notes),
            invalid=(LOST,) if any(w.name == "measure" and self._loses(w) for w in windows) else (),
            facts={"watts_per_thread": watts, "generation": generation},
        )

    def account_again(self, report: EnergyReport, windows: Sequence[Window]) -> EnergyReport:
        """Account other windows of a report's readings, with its watts: between two readings by their mean power."""
        readings = [(s.t_ns, s.counter_mj / 1e3) for s in read_samples(self._request.samples_path) if s.counter_mj]
        shares = [w.uncertainty_j / w.energy_j for w in report.windows if w.energy_j and w.uncertainty_j]
        again = tuple(
            window_energy(window, {DEVICE_ID: between(readings, window, max(shares, default=inf))}, self._beside)
            for window in windows
        )
        return replace(report, windows=again)

    def _read(self) -> tuple[int, int]:
        before = time.monotonic_ns()
        used_ns = self._clock.read_ns()
        t_ns = (before + time.monotonic_ns()) // 2
        previous, self._latest = self._latest, (t_ns, used_ns)
        if self._writer is not None:
            power = None
            if previous is not None and t_ns > previous[0]:
                power = self._power.watts * (used_ns - previous[1]) / (t_ns - previous[0])
            counter_mj = self._power.watts * used_ns / 1e6
            self._writer.sample(Sample(t_ns, DEVICE_ID, power_w=power, counter_mj=counter_mj))
        return t_ns, used_ns

    def _account(self, window: Window) -> WindowEnergy:
        first, last = self._marks.get(window.start_ns), self._marks.get(window.end_ns)
        if first is None or last is None or self._server_unknown or self._loses(window):
            return window_energy(window, {DEVICE_ID: None})
        seconds = (last - first) / 1e9
        bound = seconds * max(self._power.watts - self._power.low, self._power.high - self._power.watts)
        energy = EnergyEstimate(seconds * self._power.watts, bound, self.name, 2, {"watts_per_thread": bound})
        return window_energy(window, {DEVICE_ID: energy}, self._beside)

    def _loses(self, window: Window) -> bool:
        return self._lost.get(window.start_ns) != self._lost.get(window.end_ns)


def between(readings: Sequence[tuple[int, float]], window: Window, share: float) -> EnergyEstimate | None:
    """The energy in a window by readings of time (ns) and joules so far; `None` where they do not surround it.

    `share` is the uncertainty of the watts. At an edge between two readings, power may have been at either side alone.
    """
    ends: list[tuple[float, float]] = []
    for t_ns in (window.start_ns, window.end_ns):
        after = bisect_left(readings, (t_ns, 0.0))
        if not 0 < after < len(readings):
            return None
        (before_ns, before_j), (after_ns, after_j) = readings[after - 1], readings[after]
        part = (t_ns - before_ns) / (after_ns - before_ns)
        ends.append((before_j + part * (after_j - before_j), max(part, 1 - part) * (after_j - before_j)))
    (first_j, first_bound), (last_j, last_bound) = ends
    energy_j = last_j - first_j
    terms = {"watts_per_thread": share * energy_j, "edges": hypot(first_bound, last_bound)}
    return EnergyEstimate(energy_j, hypot(*terms.values()), "estimate", len(readings), terms)


_SCHED_CLOCK = 2
"""Type of a process's CPU clock in its clock id (`CPUCLOCK_SCHED`, linux/posix-timers.h)."""

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class ProcessTreeClock:
    """A monotonic clock of the CPU time of the processes `roots` and all their descendants.

    A living process is read through its own CPU clock (`clock_getcpuclockid(3)`: nanoseconds, finished threads
    included); the time of reaped children comes from fields 16 and 17 of `/proc/PID/stat` (proc(5)), in ticks.
    The clock never goes back: what it held when a process left the tree unreaped is in `lost_ns` from then on.
    """

    LOST_NS = 250_000_000
    """Chosen: times of reaped children are cut to two ticks in each process, and a dozen have them."""

    def __init__(self, *roots: int) -> None:
        self._roots = roots
        self._highest_ns = 0
        self.lost_ns = 0

    def read_ns(self) -> int:
        """CPU time used by the tree so far."""
        total_ns = self.lost_ns + self._sum_ns()
        if total_ns < self._highest_ns - self.LOST_NS:
            # Or was a child reaped between the two looks at it?
            total_ns = self.lost_ns + self._sum_ns()
            self.lost_ns += max(0, self._highest_ns - total_ns)
        self._highest_ns = max(self._highest_ns, total_ns)
        return self._highest_ns

    def _sum_ns(self) -> int:
        children: dict[int, list[int]] = {}
        reaped_ns: dict[int, int] = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with suppress(OSError):
                    stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                    fields = stat.rpartition(")")[2].split()
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
                    reaped_ns[int(entry.name)] = (int(fields[13]) + int(fields[14])) * _TICK_NS
        total_ns = 0
        tree = set(self._roots)
        todo = list(tree)
        while todo:
            pid = todo.pop()
            with suppress(OSError):
                total_ns += time.clock_gettime_ns((~pid << 3) | _SCHED_CLOCK) + reaped_ns.get(pid, 0)
            new = set(children.get(pid, ())) - tree
            tree |= new
            todo.extend(new)
        return total_ns


SOURCE = (
    "Cloud Carbon Footprint coefficients of 2026-03 (github.com/cloud-carbon-footprint/ccf-coefficients, "
    "output/coefficients-aws-use.csv, from SPECpower_ssj2008 results): watts per thread at full load"
)

MAX_WATTS_PER_THREAD: Mapping[str, float] = {
    "Broadwell": 3.685,
    "Cascade Lake": 4.063,
    "Coffee Lake": 5.422,
    "EPYC 1st Gen": 2.604,
    "EPYC 2nd Gen": 1.693,
    "EPYC 3rd Gen": 1.957,
    "EPYC 4th Gen": 2.282,
    "EPYC 5th Gen": 8.961,
    "Emerald Rapids": 4.482,
    "Granite Rapids": 2.527,
    "Graviton": 1.693,
    "Haswell": 5.595,
    "Ice Lake": 3.758,
    "Ivy Bridge": 5.557,
    "Sandy Bridge": 8.631,
    "Sapphire Rapids": 4.160,
    "Skylake": 4.104,
}
"""Watts per hardware thread at full load, from `SOURCE`."""

_INTEL_MODELS = {
    "Sandy Bridge": (42, 45),
    "Ivy Bridge": (58, 62),
    "Haswell": (60, 63, 69, 70),
    "Broadwell": (61, 71, 79, 86),
    "Skylake": (78, 85, 94),
    "Coffee Lake": (142, 158),
    "Ice Lake": (106, 108),
    "Sapphire Rapids": (143,),
    "Emerald Rapids": (207,),
    "Granite Rapids": (173, 174),
}
"""CPUID models of family 6 (arch/x86/include/asm/intel-family.h of the Linux kernel)."""

_ARM_PARTS = ("0xd0c", "0xd40", "0xd4f")
"""Neoverse N1, V1 and V2, the cores of Graviton 2 to 4 (arch/arm64/include/asm/cputype.h of the Linux kernel)."""

_CASCADE_LAKE_STEPPING = 5
"""Cascade Lake shares model 85 with Skylake, from stepping 5 on (Intel specification updates)."""


@dataclass(frozen=True)
class ThreadPower:
    """Watts of one busy hardware thread, the processor's name, and the row of the table that applies.

    `generation` is `None` for a processor without a row; `watts` is then the table's median. The true value is expected
    between `low` and `high`.
    """

    watts: float
    low: float
    high: float
    generation: str | None
    processor: str

    @property
    def source(self) -> str:
        """Where the watts come from, for the result."""
        row = f"row {self.generation!r}" if self.generation else "median of the table, as this processor is not in it"
        return f"{SOURCE}; {row}; processor: {self.processor}"


def thread_power(cpuinfo: Path = Path("/proc/cpuinfo")) -> ThreadPower:
    """The table's entry for this machine's processor.

    The published figures are those of whole servers at full load. A thread alone on its core draws up to twice as much,
    and a server's fans and disks are not the processor's: hence bounds from half to twice the figure (chosen).
    """
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    name = facts.get("model name") or facts.get("CPU part") or "unknown"
    generation = _generation(facts)
    if generation is None:
        values = sorted(MAX_WATTS_PER_THREAD.values())
        return ThreadPower(median(values), values[0] / 2, values[-1], None, name)
    watts = MAX_WATTS_PER_THREAD[generation]
    return ThreadPower(watts, watts / 2, watts * 2, generation, name)


def _generation(facts: Mapping[str, str]) -> str | None:
    vendor, family, model = facts.get("vendor_id"), _number(facts.get("cpu family")), _number(facts.get("model"))
    if vendor == "AuthenticAMD" and family == 0x17:
        return "EPYC 2nd Gen" if model >= 0x30 else "EPYC 1st Gen"
    if vendor == "AuthenticAMD" and family == 0x19:
        return "EPYC 3rd Gen" if model < 0x10 else "EPYC 4th Gen"
    if vendor == "AuthenticAMD":
        return "EPYC 5th Gen" if family == 0x1A else None
    if vendor == "GenuineIntel" and family == 6:
        if model == 85 and _number(facts.get("stepping")) >= _CASCADE_LAKE_STEPPING:
            return "Cascade Lake"
        return next((name for name, models in _INTEL_MODELS.items() if model in models), None)
    return "Graviton" if facts.get("CPU part") in _ARM_PARTS else None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else -1
