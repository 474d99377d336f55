"""The base class of the sampler's sources, and `samples.jsonl`, the raw readings of a cycle: one JSON object per line.

The sampler process and in-process meters write that file; meters, calibration and `results` read it, also of old runs:
keys may be added, never renamed. Cheap to import (no dataclasses), because the sampler process does.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from pytest_llem.errors import JsonValue

UNITS: Mapping[str, str] = {
    "t_ns": "ns (CLOCK_MONOTONIC)",
    "device": "",
    "power_w": "W",
    "counter_mj": "mJ",
    "temperature_c": "degC",
    "sm_clock_mhz": "MHz",
    "utilisation": "1 (share of time)",
    "memory_bytes": "B",
    "bracket_ns": "ns",
    "memory_clock_mhz": "MHz",
    "clock_events": "",
    "power_limit_w": "W",
}


class Sample(NamedTuple):
    """One reading of one device; `None` where the quantity was not read at that time.

    `t_ns` is CLOCK_MONOTONIC. A `counter_mj` with `bracket_ns` took this value within `t_ns` plus or minus
    `bracket_ns`; without, it was read at `t_ns`. `utilisation` is a share from 0 to 1. `clock_events` is NVML's mask of
    what holds the clocks down (`nvml_devices.CLOCK_EVENTS`), `power_limit_w` the limit that is in force.
    """

    t_ns: int
    device: str
    power_w: float | None = None
    counter_mj: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None
    bracket_ns: int | None = None
    memory_clock_mhz: float | None = None
    clock_events: int | None = None
    power_limit_w: float | None = None


class GpuFacts(NamedTuple):
    """A GPU as the sampler process found it when it opened it.

    With `mig` the whole GPU is metered for one of its instances; with `module` the sensor covers a CPU as well. One
    that is not `leased` is read beside the cycle's own.
    """

    uuid: str
    name: str
    driver: str
    mig: bool = False
    module: bool = False
    memory_used_bytes: int | None = None
    power_limit_w: float | None = None
    leased: bool = True


class SensorError(Exception):
    """A GPU's sensors cannot be opened; `fix` is the remedy where one is known."""

    def __init__(self, message: str, fix: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class Source(ABC):
    """A sensor that the sampler process polls, next at `due_ns`. Up to `known_until_ns` its readings are complete."""

    due_ns: int = 0
    known_until_ns: float = 0.0
    power_w: float | None = None
    """The latest power reading."""
    counted: bool = True
    """Whether its power is that of the devices that the cycle runs on."""

    @abstractmethod
    def poll(self, writer: SampleWriter) -> None:
        """Read now, write what is new, and set `due_ns`."""

    def finish(self, writer: SampleWriter) -> None:
        """Read once more at the end."""
        self.poll(writer)


class SampleWriter:
    """Writes `samples.jsonl`, a whole line at a time, each flushed."""

    def __init__(self, path: Path) -> None:
        self._stream: IO[str] = path.open("w", encoding="utf-8", buffering=1)

    def sample(self, sample: Sample) -> None:
        """Append one reading."""
        fields = {name: value for name, value in sample._asdict().items() if value is not None}
        self._stream.write(json.dumps(fields) + "\n")

    def event(self, t_ns: int, event: str, **more: JsonValue) -> None:
        """Append an event."""
        self._stream.write(json.dumps({"t_ns": t_ns, "event": event, **more}) + "\n")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()


def read_samples(path: Path) -> Iterator[Sample]:
    """The readings in the order in which they were written; none if the file does not exist."""
    for line in _lines(path):
        if (
            "event" not in line
            and line.keys() <= UNITS.keys()
            and isinstance(line.get("t_ns"), int)
            and "device" in line
        ):
            yield Sample(**line)


def read_sample_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events (`sensor`, `error`, `processes`, `throttle`, `clock`, `profiles`) in the order of their writing."""
    for line in _lines(path):
        if "event" in line:
            yield line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; one that a full disk or another's meter has spoilt is a gap in the readings like any other."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines(keepends=True):
        try:
            found = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found
