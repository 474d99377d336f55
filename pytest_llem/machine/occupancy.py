"""Who is on a GPU: memory in use and processes, before a cycle and after it, as NVML tells the pytest side.

Only leased GPUs are looked at. Where NVML does not answer nothing is known, and nothing is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from pytest_llem.energy.nvml_devices import by_uuid
from pytest_llem.errors import JsonValue, NotReleasedError, ResidualMemoryError

RESIDUAL_WAIT_S = 3.0
RELEASE_WAIT_S = 30.0
RELEASE_SLACK_BYTES = 32 * 2**20
"""Drivers keep a little more or less for themselves from one context to the next."""
POLL_S = 0.1


@dataclass(frozen=True)
class Occupancy:
    """One GPU: bytes in use without what the driver reserves (`None`: unknown), and bytes per process id."""

    uuid: str
    used_bytes: int | None
    processes: Mapping[int, int | None]

    def people(self, besides: Mapping[int, int | None]) -> list[JsonValue]:
        """The processes beyond those in `besides`, as pid, name and bytes; `None` for what is not known."""
        others = {pid: used for pid, used in self.processes.items() if pid not in besides}
        return [{"pid": pid, "name": _name(pid), "bytes": used} for pid, used in others.items()]


def look(uuids: Sequence[str]) -> tuple[Occupancy, ...]:
    """What is on these GPUs at this moment; empty where NVML does not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_occupancy(uuid) for uuid in uuids)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def require_free(uuids: Sequence[str], limit_bytes: int, left_by: Mapping[str, str]) -> tuple[Occupancy, ...]:
    """What is on these GPUs, when that is at most `limit_bytes` on each; `left_by` names the cycles to blame.

    What the user before is just giving back is waited for. Raises `ResidualMemoryError`, which names the processes.
    """
    found = look(uuids)
    deadline = time.monotonic() + RESIDUAL_WAIT_S
    while any((one.used_bytes or 0) > limit_bytes for one in found) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        found = look(uuids)
    full = [one for one in found if (one.used_bytes or 0) > limit_bytes]
    if not full:
        return found
    said = [f"{one.uuid}: {_mb(one.used_bytes)} in use before the cycle ({_said(one, {})})" for one in full]
    said += [f"{left_by[one.uuid]} did not release it" for one in full if one.uuid in left_by]
    raise ResidualMemoryError(
        "; ".join(said),
        fix=f"end these processes, or allow more with execution.residual_memory_bytes (now {limit_bytes})",
        details={"limit_bytes": limit_bytes, "devices": _details(full, {})},
    )


def released(before: Sequence[Occupancy], title: str, wait_s: float | None = None) -> NotReleasedError | None:
    """`None` once the GPUs are back to what they were; after `wait_s` seconds the error that says what is left."""
    wait_s = RELEASE_WAIT_S if wait_s is None else wait_s
    uuids = [one.uuid for one in before]
    known = {one.uuid: one for one in before}
    deadline = time.monotonic() + wait_s
    while True:
        kept = [one for one in look(uuids) if _grown(known[one.uuid], one)]
        if not kept:
            return None
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    left = [
        f"{one.uuid}: {_mb(one.used_bytes)} in use, {_mb(known[one.uuid].used_bytes)} before "
        f"({_said(one, known[one.uuid].processes)})"
        for one in kept
    ]
    return NotReleasedError(
        f"{title} did not release its devices within {wait_s:g} s: {'; '.join(left)}",
        fix="end these processes; where there is none, the driver holds the memory: look at `nvidia-smi` and `dmesg`",
        details={"devices": _details(kept, {uuid: one.processes for uuid, one in known.items()})},
    )


def _grown(before: Occupancy, now: Occupancy) -> bool:
    more = (now.used_bytes or 0) - (before.used_bytes or 0)
    return more > RELEASE_SLACK_BYTES or not now.processes.keys() <= before.processes.keys()


def _occupancy(uuid: str) -> Occupancy:
    handle = by_uuid(uuid)
    processes: dict[int, int | None] = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        processes.update({int(one.pid): one.usedGpuMemory for one in _list(ask, handle)})
    return Occupancy(uuid, _used_bytes(handle), processes)


def _used_bytes(handle: object) -> int | None:
    """Version 2 of the call leaves out what the driver reserves: half a gigabyte on a large board."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)
    except pynvml.NVMLError as problem:
        if problem.value in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED):
            return None
        raise


def _list(ask: Callable[[object], Sequence[Any]], handle: object) -> list[Any]:
    try:
        return list(ask(handle))
    except pynvml.NVMLError as problem:
        if problem.value in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED):
            return []
        raise


def _name(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return None


def _mb(size: int | None) -> str:
    return "unknown memory" if size is None else f"{size / 1e6:,.0f} MB"


def _said(one: Occupancy, besides: Mapping[int, int | None]) -> str:
    people = [
        f"process {pid} {_name(pid) or '(not of this pid namespace)'}: {_mb(used)}"
        for pid, used in one.processes.items()
        if pid not in besides
    ]
    return ", ".join(people) or "by no process that NVML can name"


def _details(found: Sequence[Occupancy], besides: Mapping[str, Mapping[int, int | None]]) -> list[JsonValue]:
    return [
        {"uuid": one.uuid, "used_bytes": one.used_bytes, "processes": one.people(besides.get(one.uuid, {}))}
        for one in found
    ]
