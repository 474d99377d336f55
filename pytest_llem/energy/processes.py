"""Which processes belong to a measurement: the worker's tree, a container, or whoever serves a port.

The sampler process lists foreign processes with it, and `worker.servers` finds the server of a cycle. It must stay
cheap to import (no dataclasses), because the sampler process does.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pytest_llem.errors import JsonValue

_CONTAINER = re.compile(r"[0-9a-f]{64}")


def listing(pids: Sequence[int], owners: Sequence[int]) -> dict[str, JsonValue]:
    """The fields of an event `processes`: of the `pids` on a device, those outside the trees of `owners` with their
    containers, and those unknown in this PID namespace.

    In a container NVML may report ids of the host's namespace: nothing follows from an unknown id.
    """
    trees = {pid: ancestors(pid) for pid in pids}
    foreign = [pid for pid, tree in trees.items() if tree and not set(owners) & set(tree)]
    return {
        "pids": tuple(pids),
        "foreign": tuple(foreign),
        "unknown": tuple(pid for pid, tree in trees.items() if not tree),
        "containers": {str(pid): name for pid, name in containers_of(foreign).items()},
    }


def containers_of(pids: Sequence[int], proc: Path = Path("/proc")) -> dict[int, str | None]:
    """The container id of each process that still runs, by its control group; `None` outside of containers."""
    containers: dict[int, str | None] = {}
    for pid in pids:
        try:
            groups = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        ids = _CONTAINER.findall(groups)
        containers[pid] = ids[-1] if ids else None
    return containers


def ancestors(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """The process itself and its parents up to init; empty if it does not exist here."""
    line: list[int] = []
    while pid > 0 and pid not in line:
        try:
            stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return line
        line.append(pid)
        pid = int(stat.rpartition(")")[2].split()[1])
    return line


LISTENING = "0A"
"""State TCP_LISTEN in /proc/net/tcp (proc(5), linux/net/tcp_states.h)."""

TUNNELS = ("ssh", "sshd", "sshd-session", "autossh", "kubectl", "cloudflared", "tailscaled", "chisel")
"""Programs whose listening port usually leads to another machine."""

PROXIES = (
    *("docker-proxy", "rootlessport", "slirp4netns", "pasta", "systemd", "init"),
    *("nginx", "haproxy", "envoy", "traefik", "caddy", "socat"),
)
"""Programs that forward requests to a process that is not their child, or hold sockets for others."""


def is_here(host: str) -> bool | None:
    """Whether a host is this machine, that is, one of its addresses can be bound. `None` for an unknown name."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    return any(_is_own(family, str(address[0])) for family, _, _, _, address in addresses)


def listening_pid(port: int, proc: Path = Path("/proc")) -> int | None:
    """The topmost listener on a TCP port; `None` if unknown, as for other users and containers' own networks."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port, proc)}
    if not wanted:
        return None
    holders = {int(entry.name) for entry in proc.iterdir() if entry.name.isdigit() and _holds(entry, wanted)}
    for pid in sorted(holders):
        if not holders & set(ancestors(pid, proc)[1:]):
            return pid
    return None


def program(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The name of a process's program; `None` if it has ended."""
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _is_own(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _inodes(port: int, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _holds(process: Path, sockets: set[str]) -> bool:
    try:
        descriptors = [*(process / "fd").iterdir()]
    except OSError:
        return False
    for entry in descriptors:
        with suppress(OSError):  # closed since it was listed, as a busy server closes connections
            if str(entry.readlink()) in sockets:
                return True
    return False
