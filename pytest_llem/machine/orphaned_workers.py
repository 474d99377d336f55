"""What a dead pytest left on a device: told by the lease file, ended only when there is no doubt whose it is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from pytest_llem.containers.identity import start_ticks
from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.events import clock_facts


def described(pid: int) -> dict[str, JsonValue]:
    """A process by id and start time, and the pytest (this process) that it works for, for a lease file."""
    return {
        "pid": pid,
        "start_ticks": start_ticks(pid),
        "owner": os.getpid(),
        "owner_start_ticks": start_ticks(os.getpid()),
        **_world(),
    }


def end_leftover(facts: Mapping[str, JsonValue], lease_file: Path) -> int | None:
    """End the worker that a lease file names when its pytest is dead; its pid, or `None` when nothing was ended.

    Only a process whose id and start time both match, that leads its own process group and that holds the lease file
    open is ended, with that group, and only when its pytest is known to be gone: same boot, same pid namespace. What
    the file says alone is never enough, since every user of the machine may write it. A worker of a living pytest is
    never touched.
    """
    worker, owner = facts.get("pid"), facts.get("owner")
    if not isinstance(worker, int) or not isinstance(owner, int) or worker == owner:
        return None
    if not owner_is_gone(facts) or start_ticks(worker) != facts.get("start_ticks"):
        return None
    try:
        if facts.get("start_ticks") is None or os.getpgid(worker) != worker or not _holds(worker, lease_file):
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
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False


def remove_leftover_container(facts: Mapping[str, JsonValue]) -> None:
    """Remove the containers of dead sessions when the lease file names one whose pytest is gone."""
    if not facts.get("container") or not owner_is_gone(facts):
        return
    from pytest_llem.containers.daemon import connect
    from pytest_llem.containers.orphaned_containers import remove_orphans

    with contextlib.suppress(LlemError):  # no daemon answers: then no container of it runs that we could end
        client = connect()
        try:
            remove_orphans(client)
        finally:
            client.close()


def owner_is_gone(facts: Mapping[str, JsonValue]) -> bool:
    """Whether the pytest that a lease file names is dead; false where that cannot be known from here."""
    owner = facts.get("owner")
    if not isinstance(owner, int) or any(facts.get(key) != value for key, value in _world().items()):
        return False
    return start_ticks(owner) != facts.get("owner_start_ticks")


def _world() -> dict[str, JsonValue]:
    """Where process ids and start times count."""
    try:
        namespace: str | None = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = None
    return {"boot_id": clock_facts()["boot_id"], "pid_namespace": namespace}
