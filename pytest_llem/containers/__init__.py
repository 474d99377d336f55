"""Runs cycles in Docker containers. Whoever measures sweeps dead sessions first; only then `docker` is imported."""

from __future__ import annotations


def remove_orphaned_containers() -> None:
    """See `orphaned_containers.remove_orphaned_containers`."""
    from pytest_llem.containers import orphaned_containers

    orphaned_containers.remove_orphaned_containers()
