"""Removes containers: one, all of a session, and those of sessions whose process is dead, found by their labels.

Runners and servers call it. A container of a process that may still live is never removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import docker
import requests
from docker.errors import APIError, DockerException
from docker.models.containers import Container

from pytest_llem.containers.daemon import NO_IMAGE, docker_errors
from pytest_llem.containers.identity import SESSION_LABEL, owner_is_dead


def remove_orphans(client: docker.DockerClient) -> list[str]:
    """Remove every container whose session's process is known to be gone; returns their names.

    Containers of live processes, and of other machines that share the daemon, are left alone.
    """
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
