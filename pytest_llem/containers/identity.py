"""Labels that say which process owns a container, and whether that process is still alive.

Everything that creates containers labels them; `orphaned_containers` reads the labels, also those of other versions, so
their names must not change.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.machine.orphaned_workers import start_ticks

SESSION_LABEL = "llem.session"
RUN_LABEL = "llem.run"


@dataclass(frozen=True)
class SessionIdentity:
    """The process that makes containers.

    A pid alone means nothing: `start_ticks` tells a reused pid, `pid_namespace` and `boot_id` the world it counts in.
    """

    id: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int

    def labels(self, run_id: str) -> dict[str, str]:
        """The labels of every container of this process."""
        return {
            SESSION_LABEL: self.id,
            RUN_LABEL: run_id,
            "llem.host": self.host,
            "llem.boot": self.boot_id,
            "llem.pid-namespace": self.pid_namespace,
            "llem.pid": str(self.pid),
            "llem.pid-start": str(self.start_ticks),
        }


def current_identity() -> SessionIdentity:
    """This process, under a new session id."""
    return SessionIdentity(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()) or 0,
    )


def owner_is_dead(labels: Mapping[str, str]) -> bool | None:
    """Whether the process that the labels name is gone; `None` where that cannot be decided from here.

    It can be decided on the same boot of the same machine in the same pid namespace, and when the machine of that name
    has been booted again since.
    """
    try:
        pid, ticks = int(labels["llem.pid"]), int(labels["llem.pid-start"])
        host, boot_id, namespace = labels["llem.host"], labels["llem.boot"], labels["llem.pid-namespace"]
    except (KeyError, ValueError):
        return None
    if boot_id != _boot_id():
        return True if host == socket.gethostname() and boot_id else None
    if namespace != _pid_namespace():
        return None
    return start_ticks(pid) != ticks


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
