"""Power over time of a report's cycles, thinned so that a page of many stays small.

`content` calls it. The mean over an interval keeps the energy; single peaks may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import ArrowException

from pytest_llem.errors import StoreError
from pytest_llem.job.files import open_regular
from pytest_llem.job.job import JobDir
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result

COLUMNS = ["t_ns", "device", "power_w", "counter_mj"]
MAX_TRACES = 120
"""Chosen: with `POINTS` each, they add about a megabyte to the page."""
POINTS = 240
"""Points of a device's trace. Chosen: enough to show the edges of windows."""


@dataclass(frozen=True)
class PowerTrace:
    """Seconds from the first window's start, watts and device per point, and the windows as name, start, end."""

    points: tuple[tuple[float, float, str], ...]
    windows: tuple[tuple[str, float, float], ...]


def power_traces(results: Results, runs: Mapping[str, Path]) -> tuple[dict[str, PowerTrace], int]:
    """The traces of the first cycles by their name, and how many further ones have readings."""
    traces: dict[str, PowerTrace] = {}
    left_out = 0
    for result in results:
        run = runs.get(result.source_run or result.run_id)
        if run is None:
            continue
        key = CycleKey(result.study, result.experiment.id, result.experiment.config_hash, result.cycle)
        power = JobDir(run / key.directory).power
        if not power.exists():
            continue
        if len(traces) >= MAX_TRACES:
            left_out += 1
            continue
        trace = _trace(power, result)
        if trace is not None:
            traces[f"{result.run_id}/{result.study}/{result.experiment.id}/c{result.cycle}"] = trace
    return traces, left_out


def _trace(path: Path, result: Result) -> PowerTrace | None:
    """The readings of `power.parquet` as mean power per interval; `None` when there are none.

    Where the sensor gives no power, the counter's differences are used. Each point is the mean of the readings of
    its interval, so that thinning keeps the energy.
    """
    try:
        with open_regular(path) as stream:
            file = pq.ParquetFile(stream, pre_buffer=False)  # in this thread, as `read_requests`
            table = file.read(COLUMNS, use_threads=False).select(COLUMNS).to_pylist()
    except (OSError, KeyError, ArrowException) as problem:
        raise StoreError(f"{path}: not the readings of a cycle: {problem}", fix="remove the file") from None
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
    points: list[tuple[float, float, str]] = []
    for device, readings in by_device.items():
        size = -(-len(readings) // POINTS) or 1
        for start in range(0, len(readings), size):
            moments, watts = zip(*readings[start : start + size], strict=True)
            points.append(((sum(moments) / len(moments) - origin) / 1e9, sum(watts) / len(watts), device))
    windows = [(w.name, (w.start_ns - origin) / 1e9, (w.end_ns - origin) / 1e9) for w in result.energy.windows]
    return PowerTrace(tuple(points), tuple(windows))
