"""Labels that say which process owns a container, and the removal of containers whose owner is dead.

All that creates containers labels and removes them with it; `servers.reaper` and whoever measures remove with it too. A
container whose process may still live must stay; other versions read the labels, so their names must not change.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import docker
import requests
from docker.errors import APIError, DockerException
from docker.models.containers import Container

from pytest_llem.containers.daemon import NO_IMAGE, connect, docker_errors
from pytest_llem.errors import LlemError
from pytest_llem.machine.processes import pid_scope, start_ticks

SESSION_LABEL = "llem.session"
RUN_LABEL = "llem.run"


@dataclass(frozen=True)
class SessionIdentity:
    """This process as the owner of containers, under a session id of its own."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def labels(self, run_id: str) -> dict[str, str]:
        """The labels of this process's containers; start, namespace and boot tell a reused or foreign pid."""
        boot_id, namespace = pid_scope()
        return {
            SESSION_LABEL: self.id,
            RUN_LABEL: run_id,
            "llem.host": socket.gethostname(),
            "llem.boot": boot_id or "",
            "llem.pid-namespace": namespace or "",
            "llem.pid": str(os.getpid()),
            "llem.pid-start": str(start_ticks(os.getpid()) or 0),
        }


def owner_is_dead(labels: Mapping[str, str]) -> bool | None:
    """Whether the labels' process is gone, or its machine has been booted again; `None` where nobody here can know."""
    try:
        pid, ticks = int(labels["llem.pid"]), int(labels["llem.pid-start"])
        host, boot_id, namespace = labels["llem.host"], labels["llem.boot"], labels["llem.pid-namespace"]
    except (KeyError, ValueError):
        return None
    here_boot_id, here_namespace = pid_scope()
    if boot_id != (here_boot_id or ""):
        return True if host == socket.gethostname() and boot_id else None
    if namespace != (here_namespace or ""):
        return None
    return start_ticks(pid) != ticks


def remove_orphaned_containers() -> None:
    """Remove the containers of dead sessions; nothing where no daemon answers, for then none of them runs."""
    with contextlib.suppress(LlemError), contextlib.closing(connect()) as client:
        remove_orphans(client)


def remove_container(container_id: str) -> None:
    """Remove one container by force, if a daemon answers that has it."""
    with contextlib.suppress(LlemError, APIError, requests.exceptions.RequestException):
        connect().api.remove_container(container_id, force=True, v=True)


def remove_orphans(client: docker.DockerClient) -> list[str]:
    """Remove the containers whose process is known to be gone; returns their names. Other machines' are left alone."""
    with docker_errors(NO_IMAGE):
        listed = client.api.containers(all=True, filters={"label": SESSION_LABEL})
    removed = []
    for entry in listed:
        if owner_is_dead(entry.get("Labels") or {}):
            # Another session's sweep may have been faster
            with contextlib.suppress(APIError, requests.exceptions.RequestException):
                client.api.remove_container(entry["Id"], force=True, v=True)
            removed.append(entry["Names"][0].lstrip("/"))
    return removed


def remove(container: Container) -> bool:
    """Remove a container whatever its state, also through a Ctrl-C that comes meanwhile; false when that failed."""
    interrupted: KeyboardInterrupt | None = None
    done = False
    for _ in range(2):
        try:
            container.remove(force=True, v=True)
            done = True
        except KeyboardInterrupt as interruption:
            interrupted = interruption
            continue
        except APIError as problem:
            # 404: gone; 409: its removal is under way
            done = problem.status_code in (404, 409)
        except (DockerException, requests.exceptions.RequestException):
            done = False
        break
    if interrupted is not None:
        raise interrupted
    return done


@contextlib.contextmanager
def removed_after(container: Container) -> Iterator[None]:
    """Remove the container on every way out of the block."""
    try:
        yield
    finally:
        remove(container)


def remove_session(client: docker.DockerClient, session: str) -> None:
    """Remove every container of one session, as far as the daemon answers."""
    with contextlib.suppress(DockerException, requests.exceptions.RequestException):
        for entry in client.api.containers(all=True, filters={"label": f"{SESSION_LABEL}={session}"}):
            with contextlib.suppress(APIError):
                client.api.remove_container(entry["Id"], force=True, v=True)
