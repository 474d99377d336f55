"""Schedules of when requests arrive at an engine that serves.

The engines `openai` and `vllm` call `schedule` and send by it. A seed must give the same times on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Arrival


@dataclass(frozen=True)
class Schedule:
    """Arrival times in seconds from the start, one per request and rising; at most `in_flight` requests are open."""

    times_s: Sequence[float]
    in_flight: int | None = None

    def due(self, sent: int, finished: int, elapsed_s: float) -> int:
        """How many further requests may be sent now, when `sent` were sent and `finished` of them have ended."""
        ready = sum(time <= elapsed_s for time in self.times_s[sent:])
        return ready if self.in_flight is None else max(0, min(ready, self.in_flight - (sent - finished)))

    def next_s(self, sent: int) -> float | None:
        """When the next request arrives; `None` when all were sent."""
        return self.times_s[sent] if sent < len(self.times_s) else None


def schedule(arrival: Arrival | None, count: int, seed: int) -> Schedule:
    """The schedule of `count` requests; `None` is all at once. Raises `WorkloadError` where a number is missing.

    `constant` sends one every 1/rate seconds, `poisson` after exponentially distributed gaps of that mean, `burst`
    groups of `burst_size` at a constant rate of groups that keeps `rate_per_s` requests per second.
    """
    if arrival is None:
        return Schedule([0.0] * count)
    if arrival.process == "concurrency":
        return Schedule([0.0] * count, int(_positive(arrival.concurrency, "concurrency", arrival.process)))
    rate = _positive(arrival.rate_per_s, "rate_per_s", arrival.process)
    if arrival.process == "constant":
        return Schedule([index / rate for index in range(count)])
    if arrival.process == "burst":
        size = int(_positive(arrival.burst_size, "burst_size", arrival.process))
        return Schedule([index // size * size / rate for index in range(count)])
    uniform = random.Random(seed).random
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now -= math.log(1.0 - uniform()) / rate
    return Schedule(times)


def _positive(value: float | None, name: str, process: str) -> float:
    if value is None or value <= 0:
        raise WorkloadError(
            f"workload.arrival: process {process} needs a positive {name}", fix=f"set workload.arrival.{name}"
        )
    return float(value)
