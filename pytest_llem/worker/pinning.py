"""Confines an experiment on the CPU to the CPUs and the NUMA node that `device.cpus` and `device.numa_node` name.

A worker pins itself before it opens its engine, `servers` what it starts, and `containers` asks for the CPUs; studies
and `machine` check the names. Affinity is sched_setaffinity(2), a node's memory set_mempolicy(2): both are a thread's
own, and what it starts inherits them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_llem.errors import DeviceError, SettingsError
from pytest_llem.job.config import DeviceSettings

SYSTEM = Path("/sys/devices/system")

MPOL_BIND = 2
"""Memory of these nodes and no other (linux/mempolicy.h)."""

MEMPOLICY_CALLS = {"x86_64": (238, 239), "aarch64": (237, 236), "riscv64": (237, 236)}
"""Numbers of set_mempolicy and get_mempolicy, which the C library does not offer, by machine."""

NODE_BITS = 1024
"""Bits of a mask of nodes: more than any kernel has (CONFIG_NODES_SHIFT is at most 10)."""

MAX_CPUS = 65536
"""Chosen: far more than any machine has; `0-9999999999` must not fill the memory."""

_PART = re.compile(r"(\d+)(?:-(\d+))?")


def parse_cpus(text: str) -> frozenset[int]:
    """The CPUs of a list as the kernel and `taskset` write it, such as `0-3,8`. `SettingsError` for anything else."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high >= MAX_CPUS:
            raise SettingsError(f"device.cpus {text}: {part.strip()!r} is no CPU or range of CPUs", fix="write 0-3,8")
        cpus |= set(range(low, high + 1))
    return frozenset(cpus)


def cpus_text(cpus: Collection[int]) -> str:
    """A list of CPUs as the kernel writes it."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def pinned_cpus(device: DeviceSettings, *, system: Path = SYSTEM, allowed: Collection[int] | None = None) -> list[int]:
    """The CPUs that an experiment is pinned to, none where it is not.

    `DeviceError` for a CPU or node that this machine lacks, that is offline, or that this process may not use
    (`allowed`, by default its own affinity).
    """
    if device.cpus is None and device.numa_node is None:
        return []
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            raise DeviceError(f"{sys.platform} cannot pin a process to CPUs", fix="leave device.cpus out")
        allowed = os.sched_getaffinity(0)
    node = None if device.numa_node is None else _cpus_of_node(device.numa_node, system)
    if device.cpus is None:
        usable = sorted((node or frozenset()) & set(allowed))
        if not usable:
            why = f"this process may use the CPUs {cpus_text(allowed)}" if node else "it has no CPUs"
            raise DeviceError(f"device.numa_node {device.numa_node}: {why}", fix="name another node")
        return usable
    cpus, here = parse_cpus(device.cpus), platform.node()
    present = _list(system / "cpu/present") or frozenset(allowed)
    online = _list(system / "cpu/online") or frozenset(allowed)
    for known, what in (
        (present, f"there is no CPU {{}} on {here}, which has {cpus_text(present)}"),
        (online, f"CPU {{}} of {here} is offline, {cpus_text(online)} are online"),
        (allowed, f"this process may not use CPU {{}} of {here}, only {cpus_text(allowed)}"),
        (online if node is None else node, f"CPU {{}} is not in device.numa_node {device.numa_node}"),
    ):
        lacking = cpus - set(known)
        if lacking:
            of_node = f" (CPUs {cpus_text(node)})" if node is not None and known is node else ""
            raise DeviceError(
                f"device.cpus {device.cpus}: {what.format(cpus_text(lacking))}{of_node}",
                fix="name CPUs that `lscpu --extended` shows as online, and that a cpuset or taskset leaves",
                details={"cpus": device.cpus, "lacking": cpus_text(lacking)},
            )
    return sorted(cpus)


def pin(device: DeviceSettings, *, in_container: bool) -> None:
    """Pin this process, before it starts threads; the memory of a container is bound by its cpuset already.

    A torch that is loaded already has counted the CPUs before: it gets no more threads than there are left, unless
    OMP_NUM_THREADS says how many. `DeviceError` as `pinned_cpus`, or where the kernel refuses.
    """
    cpus = pinned_cpus(device)
    if not cpus:
        return
    _confine(cpus, None if in_container else device.numa_node)
    torch = sys.modules.get("torch")
    if torch is not None and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), len(cpus)))


@contextmanager
def pinned(device: DeviceSettings) -> Iterator[None]:
    """Pin this thread, for what it starts meanwhile. Raises as `pin`."""
    cpus = pinned_cpus(device)
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    policy = _mempolicy() if device.numa_node is not None and _many_nodes() else None
    try:
        _confine(cpus, device.numa_node)
        yield
    finally:
        os.sched_setaffinity(0, before)
        if policy is not None:
            _set_mempolicy(*policy)


def _confine(cpus: Collection[int], node: int | None) -> None:
    os.sched_setaffinity(0, cpus)
    if node is None or not _many_nodes():
        return
    mask = _mask()
    mask[node // 64] = 1 << node % 64
    problem = _set_mempolicy(MPOL_BIND, mask)
    if problem is not None:
        raise DeviceError(
            f"device.numa_node {node}: memory cannot be bound to it here ({problem})",
            fix="where a container forbids set_mempolicy, add its capability SYS_NICE; or leave numa_node out and name "
            "the node's CPUs in device.cpus, so that memory comes from where it is first used",
        )


def _many_nodes(system: Path = SYSTEM) -> bool:
    return len(_list(system / "node/online")) > 1


def _mask() -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * (NODE_BITS // 64))()


def _set_mempolicy(mode: int, mask: ctypes.Array[ctypes.c_uint64]) -> str | None:
    """Why the kernel refused, `None` where it did not."""
    calls = MEMPOLICY_CALLS.get(platform.machine())
    if calls is None:
        return f"not known how on {platform.machine()}"
    library = ctypes.CDLL(None, use_errno=True)
    # The kernel takes the number of bits plus one.
    failed = library.syscall(calls[0], mode, mask, ctypes.c_ulong(NODE_BITS + 1))
    return os.strerror(ctypes.get_errno()) if failed else None


def _mempolicy() -> tuple[int, ctypes.Array[ctypes.c_uint64]]:
    """This thread's policy: its mode and nodes."""
    mode, mask = ctypes.c_int(), _mask()
    calls = MEMPOLICY_CALLS.get(platform.machine())
    if calls is not None:
        library = ctypes.CDLL(None, use_errno=True)
        library.syscall(calls[1], ctypes.byref(mode), mask, ctypes.c_ulong(NODE_BITS + 1), None, ctypes.c_ulong(0))
    return mode.value, mask


def _cpus_of_node(node: int, system: Path) -> frozenset[int]:
    nodes = _list(system / "node/online")
    if node not in nodes:
        there = f"its nodes are {cpus_text(nodes)}" if nodes else "it tells none"
        raise DeviceError(f"device.numa_node {node}: {platform.node()} has no such node, {there}", fix="see `lscpu`")
    return _list(system / f"node/node{node}/cpulist")


def _list(path: Path) -> frozenset[int]:
    """A list in sysfs; empty where there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return frozenset()
    return parse_cpus(text) if text else frozenset()
