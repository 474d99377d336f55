"""Whose process is it: telling the measured process tree from everybody else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_CONTAINER = re.compile(r"[0-9a-f]{64}")


def foreign_pids(pids: Sequence[int], owners: Sequence[int], proc: Path = Path("/proc")) -> tuple[list[int], list[int]]:
    """Of these process ids, the ones outside the trees of `owners`, and those that this namespace does not know.

    In a container NVML may report ids of the host's namespace: such an id is unknown here and nothing follows from it.
    """
    foreign: list[int] = []
    unknown: list[int] = []
    for pid in pids:
        line = ancestors(pid, proc)
        if not line:
            unknown.append(pid)
        elif not set(owners) & set(line):
            foreign.append(pid)
    return foreign, unknown


def containers_of(pids: Sequence[int], proc: Path = Path("/proc")) -> dict[int, str | None]:
    """The id of the container that each process runs in, by its control group, `None` outside of any.

    A process that has ended meanwhile is left out.
    """
    found: dict[int, str | None] = {}
    for pid in pids:
        try:
            groups = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        ids = _CONTAINER.findall(groups)
        found[pid] = ids[-1] if ids else None
    return found


def ancestors(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """The process itself and its parents up to init; empty when it does not exist here."""
    found: list[int] = []
    while pid > 0 and pid not in found:
        try:
            stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return found
        found.append(pid)
        pid = int(stat.rpartition(")")[2].split()[1])
    return found
