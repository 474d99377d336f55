"""Holds devices for a cycle: finds them free, and checks afterwards that the cycle released them.

`runners.measure_here` holds devices for each cycle; the session releases those of a loaded engine. The lease covers the
whole hold, so nothing may be measured outside it. Where NVML does not answer nothing is known, and nothing is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psutil
import pynvml

from pytest_llem.energy.nvml_devices import by_uuid
from pytest_llem.errors import JsonValue, NotReleasedError, ResidualMemoryError
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.leases import Lease, LeaseRequest, OnWait, RemoveContainers, take_lease

LEASE_TIMEOUT_S = 24 * 3600.0
"""Chosen: a day is longer than any other run should hold a device, and ends a wait that nobody looks at."""

RESIDUAL_WAIT_S = 3.0
"""Chosen: the user before may just be giving memory back, which takes the driver about a second."""

RELEASE_WAIT_S = 30.0
"""Chosen: a process with tens of gigabytes on several GPUs takes seconds to be gone; one that stays does not go."""

RELEASE_SLACK_BYTES = 32 * 2**20
"""Chosen: drivers keep a few megabytes more or less for themselves from one context to the next."""

POLL_S = 0.1
"""Chosen: NVML answers within a millisecond, and the wait is part of every cycle."""


@dataclass(frozen=True)
class Occupancy:
    """One GPU: bytes in use without what the driver reserves (`None`: unknown), and bytes per process id."""

    uuid: str
    used_bytes: int | None
    processes: Mapping[int, int | None]

    def others(self, known: Mapping[int, int | None]) -> dict[int, int | None]:
        """Its processes beyond the `known` ones."""
        return {pid: used for pid, used in self.processes.items() if pid not in known}

    def text(self, known: Mapping[int, int | None]) -> str:
        """Its processes beyond the `known` ones, for messages."""
        described = [
            f"process {pid} {_name(pid) or '(not of this pid namespace)'}: {_megabytes(used)}"
            for pid, used in self.others(known).items()
        ]
        return ", ".join(described) or "by no process that NVML can name"

    def details(self, known: Mapping[int, int | None]) -> JsonValue:
        """Memory, and the processes beyond the `known` ones as pid, name and bytes; `None` for what is not known."""
        processes: list[JsonValue] = [
            {"pid": pid, "name": _name(pid), "bytes": used} for pid, used in self.others(known).items()
        ]
        return {"uuid": self.uuid, "used_bytes": self.used_bytes, "processes": processes}


def occupancy(uuids: Sequence[str]) -> tuple[Occupancy, ...]:
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

    Waits for what the user before is just giving back. Raises `ResidualMemoryError`, which names the processes.
    """
    gpus = occupancy(uuids)
    deadline = time.monotonic() + RESIDUAL_WAIT_S
    while any((gpu.used_bytes or 0) > limit_bytes for gpu in gpus) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        gpus = occupancy(uuids)
    full = [gpu for gpu in gpus if (gpu.used_bytes or 0) > limit_bytes]
    if not full:
        return gpus
    messages = [f"{gpu.uuid}: {_megabytes(gpu.used_bytes)} in use before the cycle ({gpu.text({})})" for gpu in full]
    messages += [f"{left_by[gpu.uuid]} did not release it" for gpu in full if gpu.uuid in left_by]
    raise ResidualMemoryError(
        "; ".join(messages),
        fix=f"end these processes, or allow more with execution.residual_memory_bytes (now {limit_bytes})",
        details={"limit_bytes": limit_bytes, "devices": [gpu.details({}) for gpu in full]},
    )


def released(before: Sequence[Occupancy], title: str, wait_s: float | None = None) -> NotReleasedError | None:
    """`None` once the GPUs are back to what they were; after `wait_s` seconds the error that says what is left."""
    wait_s = RELEASE_WAIT_S if wait_s is None else wait_s
    earlier = {gpu.uuid: gpu for gpu in before}
    deadline = time.monotonic() + wait_s
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
        f"{title} did not release its devices within {wait_s:g} s: {'; '.join(messages)}",
        fix="end these processes; where there is none, the driver holds the memory: look at `nvidia-smi` and `dmesg`",
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


class DeviceHold:
    """From taking devices to giving them back: for one cycle, or for as long as an engine is kept loaded."""

    def __init__(self, lease: Lease, before: Sequence[Occupancy]) -> None:
        self.devices: DeviceSet = lease.devices
        self.lease = lease
        self._before = before

    @classmethod
    def begin(
        cls,
        demand: Demand,
        request: LeaseRequest,
        *,
        residual_bytes: int,
        on_wait: OnWait,
        remove_containers: RemoveContainers | None = None,
    ) -> DeviceHold:
        """Take a lease of what is demanded and check that at most `residual_bytes` are in use on each GPU.

        Raises `DeviceError` without a lease in time, `ResidualMemoryError` for devices that others use.
        """
        lease = take_lease(
            demand, timeout_s=LEASE_TIMEOUT_S, on_wait=on_wait, request=request, remove_containers=remove_containers
        )
        devices = lease.devices
        left_by = {name: facts.not_released for name, facts in lease.previous.items() if facts.not_released is not None}
        try:
            before = require_free(devices.uuids, residual_bytes, left_by) if devices.kind == "cuda" else ()
        except BaseException:
            if left_by:
                lease.occupied_by(pid=os.getpid(), not_released=next(iter(left_by.values())))
            lease.release()
            raise
        return cls(lease, before)

    @property
    def facts(self) -> dict[str, JsonValue]:
        """For the result's `runner.facts`: the leased devices, or `none`, and the memory found in use on them."""
        used: dict[str, JsonValue] = {gpu.uuid: gpu.used_bytes for gpu in self._before}
        return {"lease": list(self.lease.names) or "none", **({"residual_memory_bytes": used} if used else {})}

    def end(self, title: str) -> NotReleasedError | None:
        """Give the devices back; the error when `title` left something on them, which the next holder is told too."""
        try:
            problem = released(self._before, title) if self._before else None
            if problem is not None:
                self.lease.occupied_by(pid=os.getpid(), not_released=title)
        finally:
            self.lease.release()
        return problem

    def abandon(self) -> None:
        """Give the devices back at once, without a look at them: the run is being interrupted."""
        self.lease.release()


class StaysLoaded(Protocol):
    """The part of a runner (`runners.protocol.Runner`) that decides for how long its devices are held."""

    @property
    def loaded(self) -> bool:
        """Whether an engine or a server stays on the devices after a cycle."""

    def can_serve(self, job: Job) -> bool:
        """Whether what is loaded is what this job needs."""

    def unload(self) -> None:
        """Take what is loaded off the devices."""


@dataclass(frozen=True)
class Kept:
    """A hold that outlives its cycle, because the runner keeps something loaded on the devices."""

    runner: StaysLoaded
    hold: DeviceHold
    title: str


class HeldDevices:
    """The devices of one pytest process: at most one hold at a time, for a cycle or for a loaded engine's life.

    `remove_containers` is called where a dead pytest left a container on a device.
    """

    def __init__(self, remove_containers: RemoveContainers | None = None) -> None:
        self._remove_containers = remove_containers
        self._kept: Kept | None = None
        self._last: tuple[str, ...] = ()

    @contextmanager
    def hold_devices(
        self,
        runner: StaysLoaded,
        demand: Demand,
        request: LeaseRequest,
        job_on: Callable[[DeviceSet], Job],
        job_dir: JobDir,
        *,
        residual_bytes: int,
        on_wait: OnWait,
    ) -> Iterator[tuple[DeviceHold, Job]]:
        """The devices for the cycle that the body runs, and the cycle's job on them (`job_on`).

        An engine that is loaded and can serve the cycle keeps its hold; otherwise it is unloaded first. Of several free
        devices those of the last cycle come first: so the cycles of one device follow the study's order. Raises what
        `DeviceHold.begin` raises, and `NotReleasedError` when the devices are not free afterwards and the cycle has no
        error of its own to tell.
        """
        hold, job = self._served_by_kept(runner, demand, job_on) or (None, None)
        if hold is None or job is None:
            self.release()
            wish = replace(demand, preferred=self._last)
            hold = DeviceHold.begin(
                wish,
                request,
                residual_bytes=residual_bytes,
                on_wait=on_wait,
                remove_containers=self._remove_containers,
            )
            self._last = hold.devices.uuids
            try:
                job = job_on(hold.devices)
            except BaseException:
                hold.abandon()
                raise
        title = f"{job.study}/{job.experiment_id} cycle {job.cycle}"
        self._kept = None
        try:
            yield hold, job
        except BaseException:
            try:
                runner.unload()
            finally:
                hold.abandon()
            raise
        if runner.loaded:
            self._kept = Kept(runner, hold, f"the engine of {title}")
            return
        problem = hold.end(title)
        if problem is not None and not job_dir.error.exists():
            raise problem

    def _served_by_kept(
        self, runner: StaysLoaded, demand: Demand, job_on: Callable[[DeviceSet], Job]
    ) -> tuple[DeviceHold, Job] | None:
        """The hold of the engine that is kept, if that can run this cycle, and the cycle's job on its devices."""
        kept = self._kept
        if kept is None or kept.runner is not runner or not demand.met_by(kept.hold.devices):
            return None
        job = job_on(kept.hold.devices)
        return (kept.hold, job) if kept.runner.can_serve(job) else None

    def release(self) -> None:
        """Unload the engine that is kept, if any. Raises `NotReleasedError` when something of it stays behind."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        try:
            kept.runner.unload()
        except BaseException:
            kept.hold.abandon()
            raise
        problem = kept.hold.end(kept.title)
        if problem is not None:
            raise problem
