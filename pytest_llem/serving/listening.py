"""Who listens at a port of this machine."""

from __future__ import annotations

import psutil


def listens_below(pid: int, port: int) -> bool:
    """Whether a process of the tree below `pid` listens at a TCP port; true where that may not be known."""
    try:
        root = psutil.Process(pid)
        tree = (root, *root.children(recursive=True))
    except psutil.NoSuchProcess:
        return False
    for process in tree:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            continue
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
            return True
    return False
