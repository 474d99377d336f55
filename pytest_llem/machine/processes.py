"""Processes by id and start time, and whether the pytest that one works for has ended.

`leases` calls it; containers, servers and `run_results` use its process facts. Any user may write a lease file, so that
nothing may be ended for what it says.
"""

from __future__ import annotations

import os
from pathlib import Path

from pytest_llem.job.events import clock_facts
from pytest_llem.machine.lease_files import LeaseFacts


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); `None` for no process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def process_facts(pid: int) -> LeaseFacts:
    """A process by id and start time, and the pytest (this process) that it works for, for a lease file."""
    boot_id, namespace = pid_scope()
    return LeaseFacts(
        pid=pid,
        start_ticks=start_ticks(pid),
        owner=os.getpid(),
        owner_start_ticks=start_ticks(os.getpid()),
        boot_id=boot_id,
        pid_namespace=namespace,
    )


def owner_is_gone(facts: LeaseFacts) -> bool:
    """Whether the pytest that a lease file names is dead; false where that cannot be known from here."""
    if facts.owner is None or (facts.boot_id, facts.pid_namespace) != pid_scope():
        return False
    return start_ticks(facts.owner) != facts.owner_start_ticks


def pid_scope() -> tuple[str | None, str | None]:
    """The boot and the pid namespace in which process ids and start times count."""
    boot_id = clock_facts()["boot_id"]
    try:
        namespace: str | None = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = None
    return (boot_id if isinstance(boot_id, str) else None), namespace
