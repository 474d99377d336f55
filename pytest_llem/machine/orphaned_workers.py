"""Ends the workers of dead pytest processes, only where there is no doubt whose they are.

`leases` calls it; containers, servers and `run_results` use its process facts. Any user may write a lease file, so it
must never be proof alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
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


def end_orphaned_worker(facts: LeaseFacts, lease_file: Path) -> int | None:
    """End the worker that a lease file names when its pytest is dead; its pid, or `None` when nothing was ended.

    Only a process whose id and start time both match, that leads its own process group and that holds the lease file
    open is ended, with that group, and only when its pytest is known to be gone: same boot, same pid namespace. The
    worker of a living pytest is never touched.
    """
    worker = facts.pid
    if worker is None or worker == facts.owner or facts.start_ticks is None or not owner_is_gone(facts):
        return None
    try:
        if start_ticks(worker) != facts.start_ticks or os.getpgid(worker) != worker or not _holds(worker, lease_file):
            return None
        os.killpg(worker, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return None
    return worker


def _holds(pid: int, lease_file: Path) -> bool:
    with contextlib.suppress(OSError):
        wanted = lease_file.stat()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                opened = descriptor.stat()
                if (opened.st_dev, opened.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False


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
