"""How often the interval of a share of good requests holds the share, where requests wait in one queue.

python tests/benchmarks/slo_interval.py [RUNS]

A server takes a second for each request; they arrive at random, at a rate of `load` a second, and are good if they wait
no longer than the limit. Each run begins with an empty queue. The true share is the mean over all runs, that of other
arrivals at the same rate. Beside the interval of a result stands the binomial one of as many independent requests, and
both for requests that are independent. docs/load.md has the table.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from statistics import fmean

from pytest_llem.results.proportion import binomial_interval, effective_count

LOADS = ((0.5, 1.5), (0.5, 3.0), (0.8, 5.0), (0.9, 8.0))
COUNTS = (100, 300, 1000, 3000)


def waits(draw: random.Random, count: int, load: float) -> Iterator[float]:
    """How long each request waits for the server."""
    now = free = 0.0
    for _ in range(count):
        now += draw.expovariate(load)
        begin = max(now, free)
        free = begin + 1
        yield begin - now


def held(runs: Sequence[Sequence[float]], share: float) -> tuple[float, float]:
    """The shares of runs whose plain binomial interval, and whose interval in a result, hold the true share."""
    plain = ours = 0
    for outcomes in runs:
        count, found = len(outcomes), fmean(outcomes)
        low, high = binomial_interval(found * count, count)
        plain += low <= share <= high
        effective = effective_count(outcomes, count)
        low, high = binomial_interval(found * effective, effective)
        ours += low <= share <= high
    return plain / len(runs), ours / len(runs)


def main(runs: int) -> None:
    """Print the table."""
    print("| load | requests | good | binomial | as in a result |\n|---|---|---|---|---|")
    for load, limit in LOADS:
        for count in COUNTS:
            each = [[float(wait <= limit) for wait in waits(random.Random(seed), count, load)] for seed in range(runs)]
            share = fmean(map(fmean, each))
            plain, ours = held(each, share)
            print(f"| {load:.0%} | {count:,} | {share:.1%} | {plain:.0%} | {ours:.0%} |", flush=True)
    for share in (0.9, 0.985):
        for count in COUNTS:
            draw = random.Random(count)
            each = [[float(draw.random() < share) for _ in range(count)] for _ in range(runs)]
            plain, ours = held(each, share)
            print(f"| independent | {count:,} | {share:.1%} | {plain:.0%} | {ours:.0%} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
