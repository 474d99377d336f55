"""Holds devices for a cycle: finds them free, and checks afterwards that the cycle released them.

`runners.measure_here` holds devices for each cycle; the session releases those of a loaded engine. The lease covers the
whole hold, so nothing may be measured outside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from pytest_llem.errors import JsonValue, NotReleasedError
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.leases import Lease, LeaseRequest, OnWait, RemoveContainers, take_lease
from pytest_llem.machine.occupancy import Occupancy, released, require_free

LEASE_TIMEOUT_S = 24 * 3600.0
"""Chosen: a day is longer than any other run should hold a device, and ends a wait that nobody looks at."""


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
