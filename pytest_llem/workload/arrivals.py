"""Schedules of when requests arrive at an engine that serves.

The engines `openai` and `vllm` call `schedule` and send by it; `build_workload` reads the times of a file. A seed must
give the same times on every machine: of Python's random numbers only `Random.random` is guaranteed to stay.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Arrival, WorkloadSettings
from pytest_llem.job.files import expanded, open_regular, reason
from pytest_llem.job.request import Recorded, Request

Uniform = Callable[[], float]

ARRIVAL_STREAM = 1 << 32
"""Added to the seed for arrivals, so that no gap follows a length. Chosen: far from any seed that is counted up."""


@dataclass(frozen=True)
class Schedule:
    """Arrival times in seconds from the start, one per request; at most `in_flight` requests are open.

    Times rise, unless recorded sessions overlap. A later turn of a session has its own recorded time, else that of its
    session: it comes no earlier than the answer before it allows.
    """

    times_s: Sequence[float]
    in_flight: int | None = None


def schedule(workload: WorkloadSettings, requests: Sequence[Request]) -> Schedule:
    """When a repeat's requests arrive; without `workload.arrival` all at once. `WorkloadError` where a number lacks.

    The first request, or session, arrives at the start. Then `constant` has gaps of 1/rate, `poisson` exponentially
    distributed ones of that mean, and `gamma` those of a gamma distribution of that mean whose shape is `burstiness`,
    as `vllm bench serve` has it. `burst` sends groups of `burst_size` at a constant rate of groups that keeps
    `rate_per_s`. `ramp` is a Poisson process whose rate goes in a straight line of time to `end_rate_per_s`, when as
    many as there are have arrived on average. `schedule` takes each request's `due_s`.
    """
    arrival = workload.arrival
    if arrival is None:
        return Schedule([0.0] * len(requests))
    if arrival.process == "concurrency":
        return Schedule([0.0] * len(requests), int(_positive(arrival, "concurrency")))
    if arrival.process == "schedule":
        return Schedule(_recorded(requests))
    places = arrival_places(requests)
    seed = workload.seed if arrival.seed is None else arrival.seed
    times = _times(arrival, max(places, default=-1) + 1, seed)
    return Schedule([times[place] for place in places])


def arrival_places(requests: Sequence[Request | Recorded]) -> list[int]:
    """Each request's place among what arrives by itself: requests without a session, and sessions."""
    sessions: dict[str, int] = {}
    places: list[int] = []
    count = 0
    for request in requests:
        place = count if request.session is None else sessions.setdefault(request.session, count)
        count += place == count
        places.append(place)
    return places


def read_times(name: str) -> list[float]:
    """The seconds in a file of arrival times, one a line; lines may be empty. `WorkloadError` names the first bad line.

    They have to rise, and may be equal.
    """
    path = expanded(name)
    times: list[float] = []
    try:
        with open_regular(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    times.append(_time(line, times[-1] if times else 0.0, f"{path}:{number}"))
    except OSError as problem:
        raise WorkloadError(
            f"workload.arrival.file {name!r}: {reason(problem).lower()}",
            fix="correct the path; a relative one starts at the study, and the file must be where the cycle runs",
        ) from None
    return times


def _time(line: bytes, before: float, where: str) -> float:
    shown = line.decode("utf-8", "replace").strip()[:40]
    try:
        time = float(line)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise WorkloadError(f"{where}: {shown!r} is no time in seconds", fix="write one number a line, such as 0.25")
    if time < 0:
        raise WorkloadError(f"{where}: {shown} s is before the start", fix="write seconds from 0 on")
    if time < before:
        raise WorkloadError(f"{where}: {shown} s comes after {before:g} s", fix="sort the times")
    return time


def with_times(requests: Sequence[Request], workload: WorkloadSettings) -> tuple[Request, ...]:
    """The requests with the times of the workload's file, at its speed, as their own; without one as they are.

    A session begins at one of the times, and its later turns have none. Raises `WorkloadError` where there are too few.
    """
    if workload.times_file is None:
        return tuple(requests)
    places, times = arrival_places(requests), read_times(workload.times_file)
    needed = max(places, default=-1) + 1
    if len(times) < needed:
        raise too_few(workload.times_file, len(times), needed)
    due = [times[place] / workload.speed for place in places]
    return tuple(
        replace(request, due_s=None if (request.turn or 1) > 1 else due_s)
        for request, due_s in zip(requests, due, strict=True)
    )


def arrivals_hash(workload: WorkloadSettings, requests: Sequence[Request]) -> str | None:
    """sha256 over the times of process `schedule`, nanoseconds a line; `None` for what follows from the settings."""
    if workload.arrival is None or workload.arrival.process != "schedule":
        return None
    lines = (f"{round(time * 1e9)}\n" for time in _recorded(requests))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def too_few(file: str, available: int, needed: int) -> WorkloadError:
    """The error for a file with fewer times than there are requests."""
    return WorkloadError(
        f"workload.arrival.file {file!r} has {available} times, and {needed} were asked for",
        fix=f"set workload.prompts to at most {available}" if available else "write one number a line, such as 0.25",
        details={"available": available, "wanted": needed},
    )


def _times(arrival: Arrival, count: int, seed: int) -> list[float]:
    rate = _positive(arrival, "rate_per_s")
    if arrival.process == "constant":
        return [index / rate for index in range(count)]
    if arrival.process == "burst":
        size = int(_positive(arrival, "burst_size"))
        return [index // size * size / rate for index in range(count)]
    uniform = random.Random(seed + ARRIVAL_STREAM).random
    if arrival.process == "ramp":
        end = _positive(arrival, "end_rate_per_s")
        units = _summed(_exponential(uniform) for _ in range(count))
        return [_ramped(unit, rate, end, count) for unit in units]
    shape = _positive(arrival, "burstiness") if arrival.process == "gamma" else 1.0
    return _summed(_gamma(shape, uniform) / (shape * rate) for _ in range(count))


def _summed(gaps: Iterable[float]) -> list[float]:
    """The times of arrivals with these gaps between them, the first at 0; the last gap has none after it."""
    return list(accumulate(gaps, initial=0.0))[:-1]


def _exponential(uniform: Uniform) -> float:
    return -math.log(1.0 - uniform())


def _gamma(shape: float, uniform: Uniform) -> float:
    """A value of the gamma distribution with scale 1.

    By Marsaglia and Tsang, "A simple method for generating gamma variables" (ACM TOMS 26, 2000), its section 8 for
    shapes below 1; normal deviates are those of Box and Muller. Shape 1 is drawn as the exponential that it is, so that
    a burstiness of 1 gives the times of `poisson`.
    """
    if shape == 1.0:
        return _exponential(uniform)
    if shape < 1.0:
        return _gamma(shape + 1.0, uniform) * math.exp(-_exponential(uniform) / shape)
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = math.sqrt(2.0 * _exponential(uniform)) * math.cos(2.0 * math.pi * uniform())
        v = (1.0 + c * x) ** 3
        if v > 0.0 and -_exponential(uniform) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v


def _ramped(unit: float, rate: float, end: float, count: int) -> float:
    """When a ramp has expected `unit` arrivals: the inverse of the integral of its rate, which stays at `end` then."""
    if unit > count:
        return 2.0 * count / (rate + end) + (unit - count) / end
    return 2.0 * unit / (rate + math.sqrt(rate**2 + (end**2 - rate**2) * unit / count))


def _recorded(requests: Sequence[Request]) -> list[float]:
    """The requests' own times from the first one on. A later turn without one has that of the turn before."""
    times: list[float] = []
    latest: dict[str | None, float] = {}
    for request in requests:
        due_s = request.due_s
        if due_s is None and request.session is not None:
            due_s = latest.get(request.session)
        if due_s is None:
            raise WorkloadError(
                f"workload.arrival: process schedule needs the time of every request, and request {request.index} has "
                "none",
                fix="name workload.arrival.file, or a data set that recorded when its requests came",
            )
        latest[request.session] = due_s
        times.append(due_s)
    start = min(times, default=0.0)
    return [time - start for time in times]


def _positive(arrival: Arrival, name: str) -> float:
    value = getattr(arrival, name)
    if value is None or value <= 0:
        raise WorkloadError(
            f"workload.arrival: process {arrival.process} needs a positive {name}", fix=f"set workload.arrival.{name}"
        )
    return float(value)
