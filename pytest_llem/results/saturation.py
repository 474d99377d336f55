"""Whether a server kept up with requests that arrive at a rate, or its queue grew for as long as they came.

`notes` calls it. It is pure: times in, verdict out. tests/benchmarks/saturation.py simulates how often it is wrong, and
docs/load.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from pytest_llem.job.config import Arrival
from pytest_llem.job.measurement import RequestRecord

SATURATED = "saturated"
"""The reason against a result; more of the same load would give the same, so that nothing is tried again."""

JUDGED = ("constant", "poisson", "gamma", "burst", "schedule")
"""A closed loop (`concurrency`) keeps its own pace, and a ramp means to pass what a server can do."""

LEAST_ARRIVALS = 32
"""Distinct times of arrival in a repeat. Chosen: with fewer, a quarter holds too few for a mean to mean anything."""

SETTLED_SPANS = 4
"""The arrivals have to last so many times the latencies of the first quarter: that is then enough to fill the engine,
and what its latencies do later is the queue's doing."""

SHORTFALL = 0.03
"""Share of the offered rate that is not served. Chosen: between none and the 9 % of an overload by a tenth."""

CERTAINTY = 3.0
"""Standard errors by which less is served than offered: one-sided 99 % with the 7 degrees of freedom of 8 blocks."""

OVERWHELMED = 3.0
"""Where most requests outlast the arrivals: how many times those of the first quarter the latencies of the last are.
Chosen: requests that are only long have the same latency first and last, and an engine that fills up slows by less."""

BLOCKS = 8
"""Of time, over which the shortfall is looked at. Chosen: enough for its spread, and each holds several answers."""


@dataclass(frozen=True)
class OfferedLoad:
    """A load at a rate, and what became of it. Rates are requests per second while requests arrived.

    `saturated` is `None` where the arrivals were too few or too short for it to show; `answered` is the share that had
    been answered when the last one arrived.
    """

    offered_per_s: float
    served_per_s: float
    answered: float
    saturated: bool | None


@dataclass(frozen=True)
class _Pass:
    """One repeat: when each request arrived and ended, in seconds from the first, and when the last one arrived."""

    requests: tuple[tuple[float, float], ...]
    span_s: float


def offered_load(requests: Sequence[RequestRecord], arrival: Arrival | None) -> OfferedLoad | None:
    """How the rate of arrivals compares with the rate of answers; `None` for loads that have no rate.

    A repeat is looked at from its first arrival to its last: the queue drains after that, whatever the load. Turns of a
    session arrive after an answer, so the last arrival is that of a session. A growing queue shows as latencies that
    rise from quarter to quarter. In the last three quarters, which the engine has been filled for, they rise by at
    least `SHORTFALL` of the time that passes, and answers fall short of the offered rate by as much, and by more than
    chance in `BLOCKS` blocks of time. The offered rate is the one asked for: a few more arrivals than that, by chance,
    are no overload.
    """
    if arrival is None or arrival.process not in JUDGED:
        return None
    passes = _passes(requests)
    span_s = fmean(one.span_s for one in passes) if passes else 0.0
    if span_s <= 0:
        return None
    everything = [request for one in passes for request in one.requests]
    answered = sum(end <= one.span_s for one in passes for _, end in one.requests) / len(everything)
    rate = arrival.rate_per_s if all(request.session is None for request in requests) else None
    quarters = [_mean_latency(passes, place / 4, (place + 1) / 4) for place in range(4)]
    arrivals, answers = _blocks(passes, 0), _blocks(passes, 1)
    offered = fmean(arrivals) if rate is None else rate
    served = fmean(answers)
    known = min(len({arrived for arrived, _ in one.requests}) for one in passes) >= LEAST_ARRIVALS
    if not known or any(math.isnan(latency) for latency in quarters):
        offered = offered or (len(everything) - len(passes)) / sum(one.span_s for one in passes)
        return OfferedLoad(offered, served, answered, None)
    rising = all(before < after for before, after in pairwise(quarters))
    if answered < 0.5:
        lasted_s = fmean(max(end for _, end in one.requests) for one in passes)
        overwhelmed = rising and quarters[-1] >= OVERWHELMED * quarters[0]
        served = len(everything) / len(passes) / lasted_s
        return OfferedLoad(offered, served, answered, True if overwhelmed else None)
    if quarters[0] * SETTLED_SPANS > span_s:
        return OfferedLoad(offered, served, answered, None)
    short = [(before if rate is None else rate) - after for before, after in zip(arrivals, answers, strict=True)]
    grows = rising and quarters[3] - quarters[1] >= SHORTFALL * span_s / 2
    certain = fmean(short) > 0 and fmean(short) >= CERTAINTY * stdev(short) / math.sqrt(BLOCKS)
    return OfferedLoad(offered, served, answered, grows and certain and served <= (1 - SHORTFALL) * offered)


def _passes(requests: Sequence[RequestRecord]) -> list[_Pass]:
    repeats: dict[int, list[RequestRecord]] = {}
    for request in requests:
        repeats.setdefault(request.repeat, []).append(request)
    found = []
    for own in repeats.values():
        start = min(request.start_ns for request in own)
        last = max(request.start_ns for request in own if request.turn in (None, 1))
        times = [
            ((request.start_ns - start) / 1e9, (request.end_ns - start) / 1e9)
            for request in own
            if request.start_ns <= last
        ]
        found.append(_Pass(tuple(times), (last - start) / 1e9))
    return found


def _mean_latency(passes: Sequence[_Pass], begin: float, end: float) -> float:
    """The mean latency of what arrived between two shares of the span; not a number where nothing did."""
    found = [
        ended - arrived
        for one in passes
        for arrived, ended in one.requests
        if begin <= arrived / one.span_s < end or arrived == end * one.span_s == one.span_s
    ]
    return fmean(found) if found else math.nan


def _blocks(passes: Sequence[_Pass], which: int) -> list[float]:
    """Rates of arrivals (0) or ends (1) in equal blocks of the last three quarters, means over the repeats."""
    counts = [0.0] * BLOCKS
    for one in passes:
        begin, length = one.span_s / 4, one.span_s * 3 / 4 / BLOCKS
        for times in one.requests:
            place = (times[which] - begin) / length
            if 0 <= place < BLOCKS:
                counts[int(place)] += 1 / length / len(passes)
    return counts
