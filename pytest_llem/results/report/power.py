"""Power over time of one cycle, thinned for a chart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from pytest_llem.results.schema import Result

POINTS = 240


@dataclass(frozen=True)
class PowerTrace:
    """Seconds from the first window's start, watts and device per point, and the windows as name, start, end."""

    points: tuple[tuple[float, float, str], ...]
    windows: tuple[tuple[str, float, float], ...]


def power_trace(path: Path, result: Result) -> PowerTrace | None:
    """The readings of `power.parquet` as mean power per interval; `None` when there are none.

    Where the sensor gives no power, the counter's differences are used. Each point is the mean of the readings of
    its interval, so that thinning keeps the energy.
    """
    table = pq.read_table(path, columns=["t_ns", "device", "power_w", "counter_mj"]).to_pylist()
    by_device: dict[str, list[tuple[int, float]]] = {}
    counters: dict[str, list[tuple[int, float]]] = {}
    for row in table:
        if row["power_w"] is not None:
            by_device.setdefault(row["device"], []).append((row["t_ns"], row["power_w"]))
        if row["counter_mj"] is not None:
            counters.setdefault(row["device"], []).append((row["t_ns"], row["counter_mj"]))
    for device, readings in counters.items():
        if device not in by_device:
            by_device[device] = [
                (later, (after - before) / 1e3 / ((later - earlier) / 1e9))
                for (earlier, before), (later, after) in pairwise(readings)
                if later > earlier and after >= before
            ]
    times = [time for readings in by_device.values() for time, _ in readings]
    if not times:
        return None
    origin = min([window.start_ns for window in result.energy.windows] or times)
    points = [
        ((time - origin) / 1e9, watts, device)
        for device, readings in by_device.items()
        for time, watts in _thinned(readings)
    ]
    windows = [
        (window.name, (window.start_ns - origin) / 1e9, (window.end_ns - origin) / 1e9)
        for window in result.energy.windows
    ]
    return PowerTrace(tuple(points), tuple(windows))


def _thinned(readings: list[tuple[int, float]]) -> list[tuple[float, float]]:
    size = -(-len(readings) // POINTS)
    groups = [readings[place : place + size] for place in range(0, len(readings), size)]
    return [
        (sum(time for time, _ in group) / len(group), sum(watts for _, watts in group) / len(group)) for group in groups
    ]
