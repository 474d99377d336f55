"""Docker knowledge: images, preflight, error translation, long-lived containers."""

from __future__ import annotations


def remove_orphaned_containers() -> None:
    """Remove the containers of dead sessions; nothing where no daemon answers, for then none of them runs."""
    import contextlib

    from pytest_llem.containers.daemon import connect
    from pytest_llem.containers.orphaned_containers import remove_orphans
    from pytest_llem.errors import LlemError

    with contextlib.suppress(LlemError):
        client = connect()
        try:
            remove_orphans(client)
        finally:
            client.close()
