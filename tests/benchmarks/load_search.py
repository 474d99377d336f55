"""How often a search finds the largest load under an SLO: simulated queues of known capacity, 100 seeds each.

    .venv/bin/python -m tests.benchmarks.load_search [--seeds 100]

Requests arrive as a Poisson process at a server with so many slots, and wait for one in their order; the SLO limits the
wait. The capacity is the rate at which the share of good requests is `at` in the long run: of exponential service times
by Erlang's formula for M/M/c, of others by a window of a million requests. Prints the table of docs/load.md.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pytest_llem.results.proportion import effective_count
from pytest_llem.results.search import LargestLoad, LoadWindow, plan
from pytest_llem.study.search import RATE, Search

Draw = Callable[[random.Random], float]
LONG = 1_000_000
"""Requests of the window that stands for the long run."""


@dataclass(frozen=True)
class Queue:
    """A server: its slots, how long it serves a request, the longest wait of a good one, and the SLO's share."""

    name: str
    slots: int
    service: Draw
    mean_s: float
    limit_s: float
    at: float
    exponential: bool = False

    def window(self, rate: float, requests: int, rng: random.Random) -> LoadWindow:
        """One window at a rate, from an idle server."""
        now, last, good = 0.0, 0.0, []
        free, waits = [0.0] * self.slots, [0.0] * requests
        for index in range(requests):
            now += rng.expovariate(rate) if index else 0.0
            start = max(now, heapq.heappop(free))
            end = start + self.service(rng)
            heapq.heappush(free, end)
            last, waits[index] = max(last, end), start - now
            good.append(waits[index] <= self.limit_s)
        quarters = [sum(waits[part * requests // 4 : (part + 1) * requests // 4]) for part in range(4)]
        grows = quarters == sorted(quarters) and waits[-1] > 0.05 * now
        offered = (requests - 1) / now
        return LoadWindow(rate, offered, sum(good), requests, effective_count(good, requests), grows, requests / last)

    def capacity(self) -> float:
        """The largest rate that keeps the SLO in the long run."""
        low, high = 0.2 * self.slots / self.mean_s, self.slots / self.mean_s * (1 - 1e-9)
        for _ in range(60 if self.exponential else 12):
            middle = (low + high) / 2
            low, high = (middle, high) if self._keeps(middle) else (low, middle)
        return (low + high) / 2

    def _keeps(self, rate: float) -> bool:
        if not self.exponential:
            seen = self.window(rate, LONG, random.Random(0))
            return seen.good >= self.at * seen.requests
        load, blocked = rate * self.mean_s, 1.0
        for slot in range(1, self.slots + 1):  # Erlang's B by its recursion, then C
            blocked = load * blocked / (slot + load * blocked)
        waits = blocked / (1 - load / self.slots * (1 - blocked))
        return waits * math.exp(-(self.slots / self.mean_s - rate) * self.limit_s) <= 1 - self.at


def search_once(queue: Queue, requests: int, seed: int, search: Search) -> tuple[LargestLoad, int]:
    """The answer of one search over windows of so many requests, and how many windows it took."""
    rng = random.Random(seed)
    windows: list[LoadWindow] = []
    while not isinstance(step := plan(search, queue.at, windows), LargestLoad):
        windows.append(queue.window(step.load, requests, rng))
    return step, len(windows)


def constant(seconds: float) -> Draw:
    """Service times that are all the same."""
    return lambda rng: seconds


def exponential(mean_s: float) -> Draw:
    """Service times that scatter as much as their mean."""
    return lambda rng: rng.expovariate(1 / mean_s)


def lognormal(mean_s: float, rel: float) -> Draw:
    """Service times as those of answers of different lengths."""
    sigma = math.sqrt(math.log(1 + rel**2))
    return lambda rng: rng.lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma)


QUEUES = (
    (Queue("64 slots, 1 s", 64, constant(1.0), 1.0, 0.05, 0.95), (1000, 2000, 4000)),
    (Queue("64 slots, 1 s", 64, constant(1.0), 1.0, 0.05, 0.99), (4000, 8000)),
    (Queue("64 slots, 1 s ± 50 %", 64, lognormal(1.0, 0.5), 1.0, 0.05, 0.95), (4000,)),
    (Queue("16 slots, 0.4 s", 16, constant(0.4), 0.4, 0.1, 0.95), (4000,)),
    (Queue("32 slots, exponential, 0.5 s", 32, exponential(0.5), 0.5, 0.05, 0.95, True), (4000,)),
    (Queue("1 slot, 20 ms", 1, constant(0.02), 0.02, 0.5, 0.9), (4000,)),
)
SEARCH = Search(RATE, 1.0, 200.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    seeds = parser.parse_args().seeds
    out = sys.stdout.write
    out("| server | SLO | capacity | requests a window | within 3 % | interval holds it | windows |\n")
    out("|---|---|---|---|---|---|---|\n")
    for queue, sizes in QUEUES:
        truth = queue.capacity()
        for requests in sizes:
            runs = [search_once(queue, requests, seed, SEARCH) for seed in range(seeds)]
            near = sum(answer.load is not None and abs(answer.load / truth - 1) <= 0.03 for answer, _ in runs)
            held = sum((answer.low or 0) <= truth <= (answer.high or math.inf) for answer, _ in runs)
            mean = sum(count for _, count in runs) / seeds
            slo = f"{queue.at:.0%} wait at most {queue.limit_s:g} s"
            out(
                f"| {queue.name} | {slo} | {truth:.2f}/s | {requests:,} | {near} of {seeds} | {held} of {seeds} | "
                f"{mean:.1f} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
