"""The energy of a benchmark's own time, out of the readings of a run of `llem attach` that was measured beside it.

`command` calls `join`. The two are tied by a clock that both have; where that cannot be shown, or the benchmark did not
run within the command that was measured, it refuses: a wrong window has a plausible energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pytest_llem.energy import checked
from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.registry import meter_class
from pytest_llem.errors import StoreError
from pytest_llem.job.job import DeviceSet, JobDir, MeterSettings
from pytest_llem.job.measurement import Measurement, RequestRecord, Window, read_measurement
from pytest_llem.job.report import Note
from pytest_llem.results.attach.command import STUDY
from pytest_llem.results.derive import realtime_offset_ns, time_of_day
from pytest_llem.results.imports.benchmark import Benchmark
from pytest_llem.results.layout import cycle_directories
from pytest_llem.results.reading import read_result
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import IDLE, MEASURE

STEPPED_NS = 50_000_000
"""Chosen: as much as the time of day may be set by between the tool's reading and the meter's (NTP slews 0.5 ms a
second; RFC 5905 steps from 128 ms on)."""

WRITTEN_LATE_S = 600.0
"""Chosen: vLLM states the second in which it has counted all tokens anew, which takes long for many texts."""

JUDGED_ANEW = ("window_too_short",)
"""Reasons against the whole command that depend on its length alone."""


@dataclass(frozen=True)
class AttachedRun:
    """A run of `llem attach`: its one cycle's result, what was observed, and its readings."""

    result: Result
    measurement: Measurement
    directory: JobDir

    @classmethod
    def of(cls, run: Path) -> AttachedRun:
        """The run at a path; `StoreError` for one that is none of `llem attach`, or has no readings."""
        found = [JobDir(path) for path in cycle_directories(run)]
        directory = found[0] if len(found) == 1 else None
        result = read_result(directory.result) if directory is not None and directory.result.exists() else None
        if directory is None or result is None or result.study != STUDY:
            raise StoreError(f"{run}: no run of llem attach that has ended", fix="name the directory that it wrote")
        if result.energy.energy_j is None or not directory.samples.exists():
            raise StoreError(f"{run}: it has no energy, so there is nothing to join", fix="import without --power")
        return cls(result, read_measurement(directory.measurement), directory)

    @property
    def devices(self) -> DeviceSet:
        """What was measured."""
        return DeviceSet(self.result.runner.device_kind, self.result.runner.device_ids)  # type: ignore[arg-type]

    @property
    def meter(self) -> MeterSettings:
        """The meter by its own name, as its readings are those of no other."""
        return MeterSettings(self.result.energy.meter)


def join(benchmark: Benchmark, beside: AttachedRun) -> tuple[Measurement, tuple[RequestRecord, ...]]:
    """What was measured in the benchmark's time, and its requests on the same clock. `StoreError`, `MeterError`."""
    measurement = beside.measurement
    shift_ns = _shift_ns(benchmark, measurement)
    window = _window(benchmark, measurement, shift_ns)
    windows = [*(each for each in measurement.windows if each.name == IDLE), window]
    request = MeterRequest(beside.meter, beside.devices, beside.directory.path)
    meter = meter_class(beside.meter.name, beside.devices)(request)
    assert measurement.energy is not None
    energy = checked.account_again(meter, measurement.energy, windows)
    of_all = tuple(note for note in measurement.energy.invalid if note.code not in JUDGED_ANEW)
    energy = replace(energy, invalid=tuple(dict.fromkeys((*energy.invalid, *of_all))))
    joined = replace(measurement, windows=tuple(windows), energy=energy, timing={})
    return joined, shifted(benchmark.requests or (), shift_ns)


def shifted(requests: Sequence[RequestRecord], by_ns: int) -> tuple[RequestRecord, ...]:
    """The requests at other times of another clock."""

    def moved(t_ns: int | None) -> int | None:
        return None if t_ns is None else t_ns + by_ns

    return tuple(
        replace(
            each,
            start_ns=each.start_ns + by_ns,
            end_ns=each.end_ns + by_ns,
            first_token_ns=moved(each.first_token_ns),
            sent_ns=moved(each.sent_ns),
            chunk_times_ns=None if each.chunk_times_ns is None else tuple(t + by_ns for t in each.chunk_times_ns),
        )
        for each in requests
    )


def _shift_ns(benchmark: Benchmark, measurement: Measurement) -> int:
    """What to add to the benchmark's times to have those of the readings."""
    offset_ns = realtime_offset_ns(measurement.clock)
    if offset_ns is None:
        raise StoreError("the run of llem attach does not say what time of day its readings are of")
    if benchmark.end_ns is None:
        raise StoreError(
            f"{benchmark.tool}: the file does not say when it ran, but for a second",
            fix="run it with --save-detailed, which has the time of each request; or import without --power",
        )
    if benchmark.clock == "realtime":
        return -offset_ns
    # Monotonic clocks of two machines, or boots, look alike: the date that the tool wrote tells them apart.
    ended_s = (benchmark.end_ns + offset_ns) / 1e9
    try:
        stated_s = datetime.strptime(benchmark.date or "", "%Y%m%d-%H%M%S").astimezone().timestamp()
    except ValueError:
        stated_s = float("nan")
    if not -1.0 <= stated_s - ended_s <= WRITTEN_LATE_S:
        raise StoreError(
            f"{benchmark.tool}: its clock cannot be tied to the readings: its requests would have ended at "
            f"{time_of_day(measurement.clock, benchmark.end_ns)}, and it says {benchmark.date}",
            fix="run tool and llem attach on one machine, in one boot and time zone: llem attach -- vllm bench serve",
        )
    return 0


def _window(benchmark: Benchmark, measurement: Measurement, shift_ns: int) -> Window:
    assert benchmark.start_ns is not None
    assert benchmark.end_ns is not None
    start_ns, end_ns = benchmark.start_ns + shift_ns, benchmark.end_ns + shift_ns
    command = next((window for window in measurement.windows if window.name == MEASURE), None)
    if command is None or start_ns < command.start_ns - STEPPED_NS or end_ns > command.end_ns + STEPPED_NS:
        times = [time_of_day(measurement.clock, t_ns) for t_ns in (start_ns, end_ns)]
        of_run = [] if command is None else [command.start_ns, command.end_ns]
        ran = " to ".join(str(time_of_day(measurement.clock, t_ns)) for t_ns in of_run)
        raise StoreError(
            f"{benchmark.name} ran from {times[0]} to {times[1]}, and llem attach measured from {ran or 'never'}",
            fix="name the run of llem attach that ran this benchmark, or that was measured beside it",
        )
    return Window(MEASURE, max(start_ns, command.start_ns), min(end_ns, command.end_ns))


def failures(benchmark: Benchmark) -> tuple[Note, ...]:
    """The reason against a benchmark with failed requests, as in studies: their energy is in no token."""
    if not benchmark.failed:
        return ()
    asked = benchmark.failed + benchmark.succeeded
    return (Note("failed_requests", f"{benchmark.failed} of {asked} requests failed, or were not waited for"),)
