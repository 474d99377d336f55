"""A stay on leased devices: found free when it begins, and left as they were found when it ends."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pytest_llem.errors import JsonValue, NotReleasedError
from pytest_llem.job import DeviceSet
from pytest_llem.runners.lease import Lease, OnWait, take_lease
from pytest_llem.runners.occupancy import Occupancy, released, require_free


class Tenancy:
    """From taking devices to giving them back: for one cycle, or for as long as an engine is kept loaded."""

    def __init__(self, devices: DeviceSet, lease: Lease, before: Sequence[Occupancy]) -> None:
        self.devices = devices
        self.lease = lease
        self._before = before

    @classmethod
    def begin(cls, devices: DeviceSet, *, residual_bytes: int, timeout_s: float, on_wait: OnWait) -> Tenancy:
        """Take the lease and check that at most `residual_bytes` are in use on each GPU.

        Raises `DeviceError` without a lease in time, `ResidualMemoryError` for devices that others use.
        """
        lease = take_lease(devices, timeout_s=timeout_s, on_wait=on_wait)
        told = {name: facts.get("not_released") for name, facts in lease.previous.items()}
        left_by = {name: str(title) for name, title in told.items() if title is not None}
        try:
            before = require_free(devices.uuids, residual_bytes, left_by) if devices.kind == "cuda" else ()
        except BaseException:
            if left_by:
                lease.occupied_by(pid=os.getpid(), not_released=next(iter(left_by.values())))
            lease.release()
            raise
        return cls(devices, lease, before)

    @property
    def facts(self) -> dict[str, JsonValue]:
        """For the result's `runner.facts`: the leased devices, or `none`, and the memory found in use on them."""
        used: dict[str, JsonValue] = {one.uuid: one.used_bytes for one in self._before}
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
