"""Whether GPUs have the temperature that their load keeps, and how far their energy may still move.

The warm-up asks `SettlingWatch` while it goes on, and `results` calls `thermal_reading` on the whole cycle. Both must
judge by the same rule, which docs/energy.md states and simulated dies test.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp, sqrt
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any, Literal, Protocol

from pytest_llem.energy.attribution import own_pids
from pytest_llem.energy.idle_power import STATE_NS
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import ticks_from

RANGE_C = 2.0
"""Chosen: two steps of NVML's temperature, which is in whole degrees."""

RANGE_S = 60.0
"""Over which LLenergyMeasure's study of loaded thermal equilibrium (one A100, 2026) takes the range as well."""

HOLD_S = 30.0
"""Chosen: half of the interval, so that a turning point is not taken for rest."""

SETTLED_REL = 0.01
"""Chosen: what a settled figure may still be off; a tenth of what the study above saw of unsettled ones."""

WARM_UP_REL = 0.75 * SETTLED_REL
"""Chosen: with the measure window's readings the bound comes out a little otherwise."""

SLOWEST_S = 200.0
"""Chosen: time constants up to this are allowed for. It is twice what lets temperatures settle 252 s after the load
began, the longest that the study above saw."""

UNSETTLED_REL = 0.129
"""The largest error that the study above found in windows opened on settled power alone (-12.9 % to +4.1 %)."""

LIMIT_C = 90.0
"""Chosen: a load that would warm a die further is held back by slower clocks, which is told as `throttled_thermal`."""

MIN_LOAD_S = 60.0
"""Chosen: what a shorter load shows would be extrapolated tenfold (for `SLOWEST_S`)."""

GROUP_S = 1.0
"""Chosen: ten steps of the counter of an A100 or H100 (arXiv 2312.02741), whose power is then known to a percent."""

MIN_SPAN_C = 5.0
"""Chosen: rounding to whole degrees then changes the slope of power over temperature by a tenth at most."""

ROUNDING_C = 0.8
"""Expanded uncertainty (k=2) of the difference of two readings in whole degrees: 2 * sqrt(2) / sqrt(12)."""

THROTTLED_REL = 0.01
"""As `Thresholds.throttled_thermal_rel`: less is within the noise of the counters."""

WATCH_PERIOD_S = 5.0
"""Chosen: a twelfth of `RANGE_S`; looking takes some milliseconds, in which nothing runs."""


class Span(Protocol):
    """An interval on CLOCK_MONOTONIC, in nanoseconds."""

    @property
    def start_ns(self) -> int:
        """Its begin."""

    @property
    def end_ns(self) -> int:
        """Its end."""


@dataclass(frozen=True)
class ThermalReading:
    """What the readings of a cycle say; fields as in the result's section `thermal`."""

    state: Literal["settled", "unsettled", "unknown"] = "unknown"
    load_s: float | None = None
    temperature_c: float | None = None
    distance_c: float | None = None
    leakage_rel_per_c: float | None = None
    uncertainty_rel: float | None = None


@dataclass(frozen=True)
class Group:
    """Repeats that last `GROUP_S` or more: energy of one over all devices, and each one's mean temperature.

    It is energy and not power that may still change: a board at its power limit only slows down as it warms.
    """

    start_ns: int
    end_ns: int
    repeat_j: float | None
    temperatures_c: tuple[float, ...] | None

    @property
    def mid_ns(self) -> float:
        """The middle."""
        return (self.start_ns + self.end_ns) / 2


Points = Sequence[tuple[float, float]]
"""Times in nanoseconds and what was there."""


def thermal_reading(
    samples: Iterable[Sample],
    events: Iterable[Mapping[str, Any]],
    devices: Collection[str],
    warmup: Sequence[Span],
    measured: Sequence[Span] = (),
    *,
    limit_rel: float = SETTLED_REL,
) -> ThermalReading:
    """The thermal state of GPUs over the repeats of a load, which began with the warm-up.

    Settled: from `HOLD_S` before the measured repeats (or before now) to their end every device's temperature, averaged
    over whole repeats, lay within `RANGE_C` over any `RANGE_S`; heat held no clock down; and the energy
    of a repeat is within `limit_rel` of where it goes.
    """
    by_device: dict[str, list[Sample]] = {device: [] for device in sorted(devices)}
    for sample in samples:
        if sample.device in by_device:
            by_device[sample.device].append(sample)
    spans = [*warmup, *measured]
    if not spans or not any(by_device.values()):
        return ThermalReading(uncertainty_rel=UNSETTLED_REL if devices else None)
    series = [DeviceSeries(device, read) for device, read in by_device.items()]
    groups = [_group(span, series) for part in (warmup, measured) for span in _joined(part)]
    begin_ns, end_ns = spans[0].start_ns, spans[-1].end_ns
    since_ns = measured[0].start_ns if measured else end_ns
    load_s = (end_ns - begin_ns) / 1e9
    energies = [(group.mid_ns, group.repeat_j) for group in groups if group.repeat_j]
    to_come_rel = None
    if energies and (to_come_j := to_come(energies, begin_ns, since_ns)) is not None:
        to_come_rel = to_come_j / _late(energies, since_ns)
    temperatures = [
        [(group.mid_ns, group.temperatures_c[i]) for group in groups if group.temperatures_c]
        for i in range(len(series))
    ]
    state: Literal["settled", "unsettled", "unknown"] = "unknown"
    if all(temperatures):
        hold_ns = since_ns - HOLD_S * 1e9
        held = begin_ns <= hold_ns - RANGE_S * 1e9 and all(_steady(points, hold_ns) for points in temperatures)
        cool = held and not _throttled(events, devices, hold_ns - RANGE_S * 1e9, end_ns)
        state = "settled" if cool and to_come_rel is not None and to_come_rel <= limit_rel else "unsettled"
    distances = [to_come(points, begin_ns, since_ns, ROUNDING_C) for points in temperatures]
    temperature_c = max((_late(points, since_ns) for points in temperatures if points), default=None)
    leakage = _leakage(groups[1:])
    most_rel = UNSETTLED_REL
    if leakage is not None and temperature_c is not None:
        most_rel = (abs(leakage[0]) + leakage[1]) * max(MIN_SPAN_C, LIMIT_C - temperature_c)
    return ThermalReading(
        state=state,
        load_s=load_s,
        temperature_c=temperature_c,
        distance_c=max((far for far in distances if far is not None), default=None) if load_s >= MIN_LOAD_S else None,
        leakage_rel_per_c=None if leakage is None else leakage[0],
        uncertainty_rel=most_rel if to_come_rel is None else min(most_rel, to_come_rel),
    )


def to_come(points: Points, begin_ns: float, since_ns: float, resolution: float = 0.0) -> float | None:
    """How far, at most, the late mean still lies from where the quantity goes; `None` for fewer than four points.

    Late is the last quarter of the load, or all since `since_ns` where that is longer; early is as long before, within
    the second half of what was before. An exponential exp(-t / tau) keeps the more of its early mean in the late one,
    the larger tau is; so a sum of them, of one sign and none slower than `SLOWEST_S`, has at most the difference of the
    two means divided by (ratio of means of exp(-t / SLOWEST_S)) - 1 before it. The difference is taken with its
    uncertainty (k=2) from the scatter of the points, and with that of the sensor's resolution.
    """
    end_ns = points[-1][0] if points else begin_ns
    late_ns = min(since_ns, begin_ns + 0.75 * (end_ns - begin_ns))
    early_ns = max((begin_ns + late_ns) / 2, 2 * late_ns - end_ns)
    early = [point for point in points if early_ns <= point[0] < late_ns]
    late = [point for point in points if point[0] >= late_ns]
    freedom = len(early) + len(late) - 2
    if not early or not late or freedom < 2:
        return None
    means, decays, squares = [], [], 0.0
    for part in (early, late):
        means.append(fmean(value for _, value in part))
        decays.append(fmean(exp((begin_ns - t_ns) / 1e9 / SLOWEST_S) for t_ns, _ in part))
        squares += sum((value - means[-1]) ** 2 for _, value in part)
    error = _coverage(freedom) * sqrt(squares / freedom * (1 / len(early) + 1 / len(late)))
    return (abs(means[1] - means[0]) + error + resolution) / (decays[0] / decays[1] - 1)


class DeviceSeries:
    """The readings of one GPU by time: energy up to a moment, and temperatures."""

    def __init__(self, device: str, samples: Sequence[Sample]) -> None:
        ticks = ticks_from(samples, device)
        self._times: Sequence[int] = ticks.mid_ns
        self._energy_j: Sequence[float] = ticks.energy_j
        if not len(ticks):
            powers = [(s.t_ns, s.power_w) for s in samples if s.power_w is not None]
            steps = [(a[1] + b[1]) / 2 * (b[0] - a[0]) / 1e9 for a, b in pairwise(powers)]
            self._times = [t_ns for t_ns, _ in powers]
            self._energy_j = list(accumulate(steps, initial=0.0))
        temperatures = [(s.t_ns, s.temperature_c) for s in samples if s.temperature_c is not None]
        self._temperature_times = [t_ns for t_ns, _ in temperatures]
        self._temperatures_c = [celsius for _, celsius in temperatures]

    def power_w(self, start_ns: int, end_ns: int) -> float | None:
        """Mean power between two times; `None` where readings do not surround them."""
        start_j, end_j = self._energy_at(start_ns), self._energy_at(end_ns)
        return None if start_j is None or end_j is None else (end_j - start_j) / (end_ns - start_ns) * 1e9

    def temperature_c(self, start_ns: int, end_ns: int) -> float | None:
        """Mean temperature between two times, or over the second before; `None` without a reading there."""
        times, until = self._temperature_times, bisect_right(self._temperature_times, end_ns)
        first = bisect_left(times, start_ns)
        if first == until:
            first = bisect_left(times, start_ns - 2 * STATE_NS)
        return fmean(self._temperatures_c[first:until]) if first < until else None

    def _energy_at(self, t_ns: int) -> float | None:
        after = bisect_right(self._times, t_ns)
        if not 0 < after < len(self._times):
            return None
        (t0, t1), (e0, e1) = self._times[after - 1 : after + 1], self._energy_j[after - 1 : after + 1]
        return e0 + (e1 - e0) * (t_ns - t0) / (t1 - t0)


class SettlingWatch:
    """Tells a warm-up, from what the sampler writes meanwhile, whether the GPUs have settled."""

    def __init__(self, path: Path, leased: Collection[str]) -> None:
        self._path = path
        self._leased = leased
        self._read_bytes = 0
        self._samples: list[Sample] = []
        self._events: list[Mapping[str, Any]] = []
        self._next_s = 0.0

    def __call__(self, repeats: Sequence[Span]) -> bool | None:
        """Whether they have; `None` where no temperature is read. Between two looks it has not."""
        if time.monotonic() < self._next_s:
            return False
        self._next_s = time.monotonic() + WATCH_PERIOD_S
        self._read()
        devices = {sample.device for sample in self._samples if sample.temperature_c is not None}
        if devices and (repeats[-1].end_ns - repeats[0].start_ns) / 1e9 < RANGE_S + HOLD_S:
            return False
        # A server may compute on other GPUs than those leased.
        listed = [event for event in self._events if event["event"] == "processes"]
        own = {event["device"] for event in listed if own_pids(event, frozenset())}
        chosen = devices & (own or {*self._leased}) or devices
        reading = thermal_reading(self._samples, self._events, chosen, repeats, limit_rel=WARM_UP_REL)
        return None if reading.state == "unknown" else reading.state == "settled"

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._read_bytes)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._read_bytes += len(whole) + len(newline)
        for line in map(json.loads, whole.splitlines()):
            if "event" in line:
                self._events.append(line)
            else:
                self._samples.append(Sample(**line))


def _joined(spans: Sequence[Span]) -> list[Sequence[Span]]:
    """Successive repeats that take `GROUP_S` or more; what remains is left out, unless it is all there is."""
    joined: list[Sequence[Span]] = []
    first = 0
    for index, span in enumerate(spans):
        if span.end_ns - spans[first].start_ns >= GROUP_S * 1e9:
            joined.append(spans[first : index + 1])
            first = index + 1
    return joined or ([spans] if spans else [])


def _group(repeats: Sequence[Span], series: Sequence[DeviceSeries]) -> Group:
    span = (repeats[0].start_ns, repeats[-1].end_ns)
    powers = [power_w for device in series if (power_w := device.power_w(*span)) is not None]
    temperatures = [celsius for device in series if (celsius := device.temperature_c(*span)) is not None]
    return Group(
        *span,
        sum(powers) * (span[1] - span[0]) / 1e9 / len(repeats) if len(powers) == len(series) else None,
        tuple(temperatures) if len(temperatures) == len(series) else None,
    )


def _late(points: Points, since_ns: float) -> float:
    return fmean([value for mid_ns, value in points if mid_ns >= since_ns] or [points[-1][1]])


def _steady(points: Points, hold_ns: float) -> bool:
    """Whether every interval of `RANGE_S`, or of three points, that ends after `hold_ns` is within `RANGE_C`."""
    for index, (mid_ns, _) in enumerate(points):
        if mid_ns < hold_ns and index < len(points) - 1:
            continue
        first = min(index - 2, next(i for i, (t_ns, _) in enumerate(points) if t_ns >= mid_ns - RANGE_S * 1e9))
        near = [value for _, value in points[max(0, first) : index + 1]]
        if len(near) < 3 or max(near) - min(near) > RANGE_C:
            return False
    return True


def _throttled(events: Iterable[Mapping[str, Any]], devices: Collection[str], start_ns: float, end_ns: float) -> bool:
    """Whether heat held down the clocks of a device in an interval, by its cumulative counter."""
    for device in devices:
        counts = [
            (event["t_ns"], event["thermal_ns"])
            for event in events
            if event["event"] == "throttle" and event["device"] == device and event["thermal_ns"] is not None
        ]
        before = [count for t_ns, count in counts if t_ns <= start_ns][-1:] or [count for _, count in counts[:1]]
        until = [count for t_ns, count in counts if t_ns <= end_ns][-1:]
        if before and until and until[0] - before[0] > THROTTLED_REL * (end_ns - start_ns):
            return True
    return False


def _leakage(groups: Sequence[Group]) -> tuple[float, float] | None:
    """Slope of energy over mean temperature and its uncertainty (k=2), as shares of mean energy per degree."""
    points = [
        (fmean(group.temperatures_c), group.repeat_j) for group in groups if group.temperatures_c and group.repeat_j
    ]
    celsius, joules = [point[0] for point in points], [point[1] for point in points]
    freedom = len(points) - 2
    if freedom < 2 or max(celsius) - min(celsius) < MIN_SPAN_C:
        return None
    slope, intercept = linear_regression(celsius, joules)
    squares = sum((j - slope * c - intercept) ** 2 for c, j in points)
    error = _coverage(freedom) * sqrt(squares / freedom / sum((c - fmean(celsius)) ** 2 for c in celsius))
    return slope / fmean(joules), error / fmean(joules)


def _coverage(freedom: int) -> float:
    """Exceeds the 97.5 % quantile of Student's distribution from two degrees of freedom on."""
    return 2 + 5 / freedom
