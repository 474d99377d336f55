"""Runs cycles in Docker containers: images, preflight, containers and the errors of all three.

The session and nodes of a cluster sweep dead sessions' containers with it; `docker` must be imported only then.
"""

from __future__ import annotations


def remove_orphaned_containers() -> None:
    """See `orphaned_containers.remove_orphaned_containers`."""
    from pytest_llem.containers import orphaned_containers

    orphaned_containers.remove_orphaned_containers()
