"""Runs cycles in Docker containers: images, preflight, containers and the errors of all three.

Whoever measures here sweeps the containers of dead sessions first; `docker` itself is imported only then.
"""

from __future__ import annotations


def remove_orphaned_containers() -> None:
    """See `orphaned_containers.remove_orphaned_containers`."""
    from pytest_llem.containers import orphaned_containers

    orphaned_containers.remove_orphaned_containers()
