"""Energy of a container, measured from the host: only ever with one clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from pytest_llem.containers.host_meter import HostMeter, clock_difference
from pytest_llem.energy.protocol import Meter
from pytest_llem.engines.protocol import Capabilities
from pytest_llem.job.events import clock_facts
from pytest_llem.job.job import JobDir
from pytest_llem.job.measurement import (
    EnergyReport,
    EngineFacts,
    Measurement,
    MemoryPeaks,
    WarmupOutcome,
    Window,
    WorkerFacts,
    read_measurement,
    write_measurement,
)


class CountingMeter(Meter):
    name: ClassVar[str] = "rapl"
    sees_standstill: ClassVar[bool] = True

    def __init__(self) -> None:
        self.marks = 0
        self.windows: Sequence[Window] | None = None

    def start(self) -> None:
        return

    def mark(self) -> int:
        self.marks += 1
        return time.monotonic_ns()

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        assert self.windows is None, "stopped twice"
        self.windows = windows
        return EnergyReport("rapl", True, "cpu_package", "host", (), ())


@pytest.fixture
def job_dir(tmp_path: Path) -> JobDir:
    made = JobDir(tmp_path)
    measurement = Measurement(
        engine=EngineFacts("scripted", "1", {}, Capabilities()),
        worker=WorkerFacts(1, "host", "command", "container"),
        windows=(Window("measure", 1, 2),),
        repeats=(),
        requests=(),
        prompts_hash="0",
        warmup=WarmupOutcome(0, 0.0, True, "fixed", None),
        memory=MemoryPeaks((), None, None),
        timing={},
    )
    write_measurement(made.measurement, measurement)
    return made


def test_the_windows_of_the_worker_get_the_hosts_energy(job_dir: JobDir) -> None:
    meter = CountingMeter()
    metering = HostMeter(meter)
    for event in ({"event": "clock", **clock_facts()}, {"event": "window_begin"}, {"event": "window_end"}):
        metering.observe(event)

    metering.finish(job_dir)
    metering.abandon()

    measurement = read_measurement(job_dir.measurement)
    assert meter.marks == 2
    assert meter.windows == (Window("measure", 1, 2),)
    assert measurement.energy is not None
    assert measurement.energy.placement == "host"
    assert measurement.invalid == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boot_id": "another"}, "another kernel"),
        ({"time_namespace": "time:[1]"}, "time namespace"),
        ({"monotonic_ns": 5}, "monotonic clock"),
        ({"monotonic_ns": None}, "monotonic clock"),
    ],
)
def test_another_clock_makes_the_energy_unusable(job_dir: JobDir, change: dict[str, object], said: str) -> None:
    """Times of two clock domains must never be compared."""
    metering = HostMeter(CountingMeter())
    metering.observe({"event": "clock", **clock_facts(), **change})  # type: ignore[dict-item]

    metering.finish(job_dir)

    measurement = read_measurement(job_dir.measurement)
    assert measurement.energy is None
    assert [note.code for note in measurement.invalid] == ["clock_domain_differs"]
    assert said in measurement.invalid[0].message


def test_a_clock_that_was_never_seen_is_no_common_clock(job_dir: JobDir) -> None:
    metering = HostMeter(CountingMeter())

    metering.finish(job_dir)

    assert read_measurement(job_dir.measurement).energy is None


def test_a_cycle_without_measurement_stops_the_meter(tmp_path: Path) -> None:
    meter = CountingMeter()

    HostMeter(meter).finish(JobDir(tmp_path))

    assert meter.windows == ()


def test_this_process_has_its_own_clock() -> None:
    assert clock_difference({"event": "clock", **clock_facts()}) is None
