"""How long the measured processes waited for a CPU while they were measured.

`cycle` puts a `CpuWatch` around the measure window. It may only read counters, and as few as it can: what it costs at
an edge is time of the machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pytest_llem.job.measurement import CpuTime

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class ThreadTime(NamedTuple):
    """What a thread ran and waited in a run queue, in ns: `/proc/PID/task/TID/schedstat` (sched-stats.rst of Linux)."""

    ran_ns: int
    waited_ns: int


@dataclass(frozen=True)
class CpuReading:
    """Counters at one moment; what the kernel does not tell is `None`. CPU times are sums over the allowed CPUs."""

    t_ns: int
    threads: Mapping[tuple[int, int], ThreadTime]
    busy_s: float | None
    stolen_s: float | None
    pressure_s: float | None
    throttled_s: float | None
    machine_busy_s: float | None = None


class CpuWatch:
    """Reads the counters of `roots` and their descendants, found when it is made, as its body begins and ends."""

    def __init__(self, *roots: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
        self._proc, self._cgroups, self._roots = proc, cgroups, roots
        self._pids = tree(roots, proc)
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self._before = self._after = self._read()

    def __enter__(self) -> CpuWatch:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._after = self._read()

    @property
    def time(self) -> CpuTime | None:
        """What was used and waited for in the body; `None` where the kernel counts no waiting."""
        return between(self._before, self._after, len(self._cpus))

    def _read(self) -> CpuReading:
        threads = dict(thread_times(self._pids, self._proc))
        stat = _text(self._proc / "stat")
        return CpuReading(
            time.monotonic_ns(),
            threads,
            *machine_times(stat, self._cpus),
            pressure_s(_text(self._proc / "pressure" / "cpu")),
            throttled_s(self._roots, self._proc, self._cgroups),
            machine_times(stat)[0],
        )


def between(before: CpuReading, after: CpuReading, cpus: int) -> CpuTime | None:
    """The growth from one reading to another; a thread that is new began at zero, one that has ended is not counted."""
    if not before.threads and not after.threads:
        return None
    new = ThreadTime(0, 0)
    grown = [
        (ran - before.threads.get(thread, new).ran_ns, waited - before.threads.get(thread, new).waited_ns)
        for thread, (ran, waited) in after.threads.items()
    ]
    return CpuTime(
        duration_s=(after.t_ns - before.t_ns) / 1e9,
        ran_s=sum(max(0, ran) for ran, _ in grown) / 1e9,
        waited_s=sum(max(0, waited) for _, waited in grown) / 1e9,
        cpus=cpus,
        busy_s=_growth(before.busy_s, after.busy_s),
        stolen_s=_growth(before.stolen_s, after.stolen_s),
        pressure_s=_growth(before.pressure_s, after.pressure_s),
        throttled_s=_growth(before.throttled_s, after.throttled_s),
        machine_busy_s=_growth(before.machine_busy_s, after.machine_busy_s),
    )


def tree(roots: Iterable[int], proc: Path = PROC) -> tuple[int, ...]:
    """The processes `roots` and all their descendants, as far as they exist."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit() and (stat := _text(entry / "stat")):
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: dict[int, None] = {}
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found and (proc / str(pid)).is_dir():
            found[pid] = None
            todo += children.get(pid, ())
    return tuple(found)


def thread_times(pids: Iterable[int], proc: Path = PROC) -> Iterator[tuple[tuple[int, int], ThreadTime]]:
    """The times of every thread by process and thread id; nothing where the kernel keeps none (`CONFIG_SCHED_INFO`)."""
    for pid in pids:
        with suppress(OSError):
            for task in os.scandir(proc / str(pid) / "task"):
                fields = _counters(f"{task.path}/schedstat")
                if len(fields) >= 2:
                    yield (pid, int(task.name)), ThreadTime(int(fields[0]), int(fields[1]))


def _counters(path: str) -> list[bytes]:
    """The words of a short file. An engine may have hundreds of threads, and `Path.read_text` takes twice as long."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return []
    try:
        return os.read(descriptor, 100).split()
    except OSError:
        return []
    finally:
        os.close(descriptor)


def machine_times(stat: str, cpus: Iterable[int] | None = None) -> tuple[float | None, float | None]:
    """Seconds that some CPUs worked (all, without a choice), and that a hypervisor gave to other machines.

    By `/proc/stat` (proc(5)), whose fields are user, nice, system, idle, iowait, irq, softirq and steal; a guest's time
    is in user and nice already.
    """
    wanted = {"cpu"} if cpus is None else {f"cpu{cpu}" for cpu in cpus}
    rows = [[int(field) for field in line.split()[1:9]] for line in stat.splitlines() if line.split(" ")[0] in wanted]
    rows = [row for row in rows if len(row) == 8]
    if not rows:
        return None, None
    busy = sum(sum(row[:3]) + row[5] + row[6] for row in rows)
    return busy * _TICK_S, sum(row[7] for row in rows) * _TICK_S


def pressure_s(text: str) -> float | None:
    """Seconds in which some task of the machine waited for a CPU, by `/proc/pressure/cpu` (psi.rst of Linux)."""
    found = re.search(r"^some .*\btotal=(\d+)", text, re.MULTILINE)
    return int(found[1]) / 1e6 if found else None


def throttled_s(pids: Iterable[int], proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """Seconds that CPU quotas held these processes' control groups back, by `cpu.stat` (cgroup-v2.rst of Linux)."""
    groups = {match[1] for pid in pids if (match := re.search(r"^0::/(.*)$", _text(proc / str(pid) / "cgroup"), re.M))}
    counts = [re.search(r"^throttled_usec (\d+)", _text(cgroups / group / "cpu.stat"), re.M) for group in groups]
    known = [int(count[1]) / 1e6 for count in counts if count is not None]
    return sum(known) if known else None


def _growth(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
