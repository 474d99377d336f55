"""What is in use on GPUs: finds them free before a cycle, and checks afterwards that the cycle released them.

`runners.measure_here` calls it under the devices' lease. Where the driver does not answer, nothing may be refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from pytest_llem.energy import amdsmi_devices
from pytest_llem.energy.nvml_devices import by_uuid, nvml
from pytest_llem.errors import JsonValue, NotReleasedError, ResidualMemoryError

RESIDUAL_WAIT_S = 3.0
"""Chosen: the user before may just be giving memory back, which takes the driver about a second."""

RELEASE_WAIT_S = 30.0
"""Chosen: a process with tens of gigabytes on several GPUs takes seconds to be gone; one that stays does not go."""

RELEASE_SLACK_BYTES = 32 * 2**20
"""Chosen: drivers keep a few megabytes more or less for themselves from one context to the next."""

AMD_DRIVER_BYTES = 512 * 2**20
"""Chosen: `amdsmi` counts what the driver holds itself, 284 MiB of an idle MI300X
(ROCm/legacy-rocm-build#4750), and does not tell how much it is."""

POLL_S = 0.1
"""Chosen: NVML answers within a millisecond, and the wait is part of every cycle."""


@dataclass(frozen=True)
class Occupancy:
    """One GPU: bytes in use without what the driver reserves (`None`: unknown), and bytes per process id.

    Of an AMD GPU the driver's own bytes are among them; `driver_bytes` are those that may be.
    """

    uuid: str
    used_bytes: int | None
    processes: Mapping[int, int | None]
    driver_bytes: int = 0

    @property
    def foreign_bytes(self) -> int:
        """What others than the driver have in use; 0 where that is not known."""
        return max(0, (self.used_bytes or 0) - self.driver_bytes)

    def others(self, known: Mapping[int, int | None]) -> dict[int, int | None]:
        """Its processes beyond the `known` ones."""
        return {pid: used for pid, used in self.processes.items() if pid not in known}

    def text(self, known: Mapping[int, int | None]) -> str:
        """Its processes beyond the `known` ones, for messages."""
        described = [
            f"process {pid} {_name(pid) or '(not of this pid namespace)'}: {_megabytes(used)}"
            for pid, used in self.others(known).items()
        ]
        return ", ".join(described) or "by no process that the driver can name"

    def details(self, known: Mapping[int, int | None]) -> JsonValue:
        """Memory, and the processes beyond the `known` ones as pid, name and bytes; `None` for what is not known."""
        processes: list[JsonValue] = [
            {"pid": pid, "name": _name(pid), "bytes": used} for pid, used in self.others(known).items()
        ]
        return {"uuid": self.uuid, "used_bytes": self.used_bytes, "processes": processes}


def occupancy(uuids: Sequence[str]) -> tuple[Occupancy, ...]:
    """What is on these GPUs at this moment; empty where their driver does not answer."""
    if any(map(amdsmi_devices.is_amd, uuids)):
        with amdsmi_devices.answering(uuids) as gpus:
            return tuple(_of_amd(gpu) for gpu in gpus)
    try:
        with nvml():
            return tuple(_occupancy(uuid) for uuid in uuids)
    except pynvml.NVMLError:
        return ()


def require_free(uuids: Sequence[str], limit_bytes: int, left_by: Mapping[str, str]) -> tuple[Occupancy, ...]:
    """What is on these GPUs, when that is at most `limit_bytes` on each; `left_by` names the cycles to blame.

    Waits for what the user before is just giving back. Raises `ResidualMemoryError`, which names the processes.
    """
    gpus = occupancy(uuids)
    deadline = time.monotonic() + RESIDUAL_WAIT_S
    while any(gpu.foreign_bytes > limit_bytes for gpu in gpus) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        gpus = occupancy(uuids)
    full = [gpu for gpu in gpus if gpu.foreign_bytes > limit_bytes]
    if not full:
        return gpus
    messages = [f"{gpu.uuid}: {_megabytes(gpu.used_bytes)} in use before the cycle ({gpu.text({})})" for gpu in full]
    messages += [f"{left_by[gpu.uuid]} did not release it" for gpu in full if gpu.uuid in left_by]
    raise ResidualMemoryError(
        "; ".join(messages),
        fix=f"end these processes, or allow more with execution.residual_memory_bytes (now {limit_bytes})",
        details={"limit_bytes": limit_bytes, "devices": [gpu.details({}) for gpu in full]},
    )


def released(before: Sequence[Occupancy], title: str) -> NotReleasedError | None:
    """`None` once the GPUs are back to what they were; after `RELEASE_WAIT_S` the error that says what is left."""
    earlier = {gpu.uuid: gpu for gpu in before}
    deadline = time.monotonic() + RELEASE_WAIT_S
    while True:
        full = [gpu for gpu in occupancy(tuple(earlier)) if _grown(earlier[gpu.uuid], gpu)]
        if not full:
            return None
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    messages = [
        f"{gpu.uuid}: {_megabytes(gpu.used_bytes)} in use, {_megabytes(earlier[gpu.uuid].used_bytes)} before "
        f"({gpu.text(earlier[gpu.uuid].processes)})"
        for gpu in full
    ]
    return NotReleasedError(
        f"{title} did not release its devices within {RELEASE_WAIT_S:g} s: {'; '.join(messages)}",
        fix="end these processes; where there is none, the driver holds the memory: look at `dmesg`, and at "
        "`nvidia-smi` or `amd-smi`",
        details={"devices": [gpu.details(earlier[gpu.uuid].processes) for gpu in full]},
    )


def _grown(before: Occupancy, now: Occupancy) -> bool:
    more = (now.used_bytes or 0) - (before.used_bytes or 0)
    return more > RELEASE_SLACK_BYTES or not now.processes.keys() <= before.processes.keys()


def _occupancy(uuid: str) -> Occupancy:
    handle = by_uuid(uuid)
    processes: dict[int, int | None] = {}
    for query in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        entries: Any = _supported(query, handle) or ()
        processes.update({int(entry.pid): entry.usedGpuMemory for entry in entries})
    # Version 2 of the call leaves out what the driver reserves: half a gigabyte on a large board.
    memory: Any = _supported(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return Occupancy(uuid, None if memory is None else int(memory.used), processes)


def _of_amd(gpu: amdsmi_devices.AmdGpu) -> Occupancy:
    used, processes = gpu.used_bytes, gpu.processes or {}
    held = sum(size or 0 for size in processes.values())
    driver = max(0, min((used or 0) - held, AMD_DRIVER_BYTES))
    return Occupancy(gpu.uuid, used, processes, driver)


def _supported(query: Callable[..., object], *arguments: object) -> object:
    """NVML's answer; `None` where this device or driver does not support the query."""
    try:
        return query(*arguments)
    except pynvml.NVMLError as problem:
        if problem.value in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED):
            return None
        raise


def _name(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return None


def _megabytes(size: int | None) -> str:
    return "unknown memory" if size is None else f"{size / 1e6:,.0f} MB"
