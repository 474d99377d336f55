"""The meter of last resort: CPU time of the worker's and its server's processes, times published watts per thread."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.readings import Sample, SampleWriter
from pytest_llem.energy.watts import thread_power
from pytest_llem.job.measurement import DeviceEnergy, EnergyReport, MeteredDevice, Window, WindowEnergy
from pytest_llem.job.report import Note

DEVICE_ID = "process-tree"

NOT_COUNTED = "the server's process is not known here, so its CPU time cannot be counted: no energy is stated"

_CPU_CLOCK_STEP_NS = 10_000_000


class EstimateMeter:
    """Estimates the energy of this process, the server that works for it, and their children; `measured` is false.

    A server whose process is not known is not counted, and neither is the rest then: a part would pass for the whole.
    A window is accounted only between edges that `mark` returned, because CPU time cannot be read afterwards. The
    uncertainty is that of the published watts.
    """

    name: ClassVar[str] = "estimate"

    def __init__(self, setup: MeterRequest) -> None:
        self._setup = setup
        self._power = thread_power()
        self._marks: dict[int, int] = {}
        self._latest: tuple[int, int] | None = None
        server = setup.server
        self._server_unknown = server is not None and server.pid is None
        self._server_pids = (server.pid,) if server is not None and server.pid is not None else ()
        self._clock = ProcessTreeClock(os.getpid(), also=self._server_pids)
        self._writer: SampleWriter | None = None

    def start(self) -> None:
        """Take the first reading."""
        self._clock = ProcessTreeClock(os.getpid(), also=self._server_pids)
        self._writer = SampleWriter(self._setup.samples_path)
        self.mark()

    def mark(self) -> int:
        """Read the CPU time of the process tree at an edge."""
        t_ns, used_ns = self._read()
        self._marks[t_ns] = used_ns
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
        accounted = tuple(self._account(window) for window in windows)
        return EnergyReport(
            meter=self.name,
            measured=False,
            scope="process_estimate",
            placement="worker",
            devices=(MeteredDevice(DEVICE_ID, self._power.processor, "process"),),
            windows=accounted,
            source=self._power.source,
            notes=(
                Note(
                    "estimated",
                    f"energy is CPU time times {self._power.watts:.2f} W per thread, not a measurement; "
                    "idle power, memory and accelerators are not in it",
                ),
                *([Note("server_not_counted", NOT_COUNTED)] if self._server_unknown else []),
            ),
            facts={"watts_per_thread": self._power.watts, "generation": self._power.generation},
        )

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
        energy = bound = None
        terms: dict[str, float] = {}
        if first is not None and last is not None and not self._server_unknown:
            seconds = (last - first) / 1e9
            energy = seconds * self._power.watts
            bound = seconds * max(self._power.watts - self._power.low, self._power.high - self._power.watts)
            terms = {"watts_per_thread": bound}
        return WindowEnergy(
            name=window.name,
            index=window.index,
            start_ns=window.start_ns,
            end_ns=window.end_ns,
            energy_j=energy,
            uncertainty_j=bound,
            estimator=None if energy is None else self.name,
            samples=0 if energy is None else 2,
            terms=terms,
            devices=(DeviceEnergy(DEVICE_ID, energy, bound),),
        )


_SCHED_CLOCK = 2

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class ProcessTreeClock:
    """A clock that only ever advances: CPU time of `root_pid`, of the roots in `also`, and of all their descendants.

    A living process is read through its own CPU clock (`clock_getcpuclockid(3)`: nanoseconds, all threads, also
    finished ones); what children used that were reaped comes from field 16 and 17 of `/proc/PID/stat`, in scheduler
    ticks. A child that was seen alive and then vanished unreaped keeps what it was last seen to have used.
    """

    def __init__(
        self,
        root_pid: int,
        exclude: frozenset[int] = frozenset(),
        proc: Path = Path("/proc"),
        also: tuple[int, ...] = (),
    ) -> None:
        self._roots = (root_pid, *also)
        self._exclude = exclude
        self._proc = proc
        self._highest_ns = 0

    def read_ns(self) -> int:
        """CPU time used by the tree so far."""
        processes = self._processes()
        parents = {pid: parent for pid, parent, _ in processes}
        reaped = {pid: used for pid, _, used in processes}
        total = 0
        for pid in self._tree(parents):
            own = _cpu_clock_ns(pid)
            if own is not None:
                total += own + reaped.get(pid, 0)
        self._highest_ns = max(self._highest_ns, total)
        return self._highest_ns

    def _tree(self, parents: dict[int, int]) -> list[int]:
        children: dict[int, list[int]] = {}
        for pid, parent in parents.items():
            children.setdefault(parent, []).append(pid)
        found: dict[int, None] = {}
        todo = list(self._roots)
        while todo:
            pid = todo.pop()
            if pid not in self._exclude and pid not in found:
                found[pid] = None
                todo.extend(children.get(pid, ()))
        return list(found)

    def _processes(self) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for entry in os.scandir(self._proc):
            if entry.name.isdigit():
                try:
                    stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                except OSError:
                    continue
                fields = stat.rpartition(")")[2].split()
                found.append((int(entry.name), int(fields[1]), (int(fields[13]) + int(fields[14])) * _TICK_NS))
        return found


def _cpu_clock_ns(pid: int) -> int | None:
    try:
        return time.clock_gettime_ns((~pid << 3) | _SCHED_CLOCK)
    except OSError:
        return None
