"""Measures a container's energy from the host: the sampler runs here and accounts the windows of the worker inside.

`runner.DockerRunner` uses it where the daemon is local; `ephemeral` and `kept` tell it their container. That both share
CLOCK_MONOTONIC must not be assumed: the worker's first event states the boot and the time namespace of its clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pytest_llem.containers.daemon import DaemonFacts
from pytest_llem.energy import checked
from pytest_llem.energy.protocol import Meter
from pytest_llem.energy.registry import meter_class, open_meter
from pytest_llem.errors import JsonValue, MeterError
from pytest_llem.job.events import clock_facts
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import read_measurement, write_measurement
from pytest_llem.job.report import Note
from pytest_llem.runners.protocol import OnEvent
from pytest_llem.worker.servers import find_server

HANDSHAKE_S = 30.0
"""Largest age of the worker's clock event. Chosen: far above a loaded machine's delay, far below an offset of boots."""

CONTAINER_EVENT = "container"
"""Tells the meter which container's processes are measured; of the runner, not of the worker."""


def host_meter_name(job: Job, daemon: DaemonFacts) -> str | None:
    """The meter that should run on the host; `None` where the worker has to measure, or nobody."""
    if not daemon.local or job.meter.placement != "worker" or job.meter.name == "none":
        return None
    if find_server(job).elsewhere is not None:
        return None
    meter = meter_class(job.meter.name, job.devices)
    return meter.name if meter.reads_machine and meter.obstacle() is None else None


@dataclass
class HostMeter:
    """A started meter of this machine; `clock_differs` says why times from inside mean nothing here, else `None`."""

    meter: Meter
    clock_seen: bool = False
    clock_differs: str | None = None
    running: bool = True

    def observe(self, event: Mapping[str, JsonValue]) -> None:
        """Check the worker's clock at its first event, and read the counters near each edge of a window."""
        kind = event.get("event")
        if kind == "clock":
            self.clock_seen = True
            self.clock_differs = clock_difference(event)
        elif kind == CONTAINER_EVENT:
            self.meter.include_container(str(event["id"]))
        elif kind in ("window_begin", "window_end") and self.running:
            checked.edge(self.meter)

    def finish(self, job_dir: JobDir) -> None:
        """Stop, and write the windows' energy into `measurement.json`: `null` and invalid without a common clock."""
        if not job_dir.measurement.exists():
            self.abandon()
            return
        measurement = read_measurement(job_dir.measurement)
        self.running = False
        report = checked.account(self.meter, measurement.windows)
        difference = self.clock_differs if self.clock_seen else "the worker's clock event never arrived"
        if difference is None:
            measurement = replace(measurement, energy=report)
        else:
            note = Note("clock_domain_differs", f"energy was measured on the host, and {difference}")
            measurement = replace(measurement, invalid=(*measurement.invalid, note))
        write_measurement(job_dir.measurement, measurement)

    def abandon(self) -> None:
        """Stop without a use for the readings."""
        if self.running:
            self.running = False
            checked.account(self.meter, ())


def start_host_meter(job: Job, job_dir: JobDir, daemon: DaemonFacts) -> tuple[Job, HostMeter | None]:
    """Start the meter where the host can measure; the job for the worker then says so."""
    name = host_meter_name(job, daemon)
    if name is None:
        return job, None
    moved = replace(job, meter=replace(job.meter, placement="host"))
    meter = open_meter(replace(moved.meter, name=name), job.devices, job_dir.path, find_server(job).tree)
    if meter is None:
        return job, None
    try:
        meter.start()
    except MeterError:
        # What opens on the host and does not start there may still work inside
        return job, None
    return moved, HostMeter(meter)


@contextlib.contextmanager
def host_metering(job: Job, job_dir: JobDir, daemon: DaemonFacts) -> Iterator[tuple[Job, OnEvent]]:
    """Measure from the host in the block where possible; yields the worker's job, and who must see the events."""
    job, metering = start_host_meter(job, job_dir, daemon)
    if metering is None:
        yield job, lambda event: None
        return
    try:
        yield job, metering.observe
        metering.finish(job_dir)
    finally:
        metering.abandon()


def clock_difference(event: Mapping[str, JsonValue]) -> str | None:
    """Why a `clock` event has another clock; `None` for the same boot and time namespace and a reading of just now."""
    mine = clock_facts()
    if not mine["boot_id"] or event.get("boot_id") != mine["boot_id"]:
        return "the container runs under another kernel"
    if event.get("time_namespace") != mine["time_namespace"]:
        return "the container has a time namespace of its own"
    then = event.get("monotonic_ns")
    age_s = (time.monotonic_ns() - then) / 1e9 if isinstance(then, int) else None
    if age_s is None or not 0 <= age_s <= HANDSHAKE_S:
        return "the container's monotonic clock is far from the host's"
    return None
