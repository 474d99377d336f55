"""CPU time of a process tree, in nanoseconds: user and system, threads and children, living and reaped."""

from __future__ import annotations

import os
import time
from pathlib import Path

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
