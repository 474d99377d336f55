"""How often a load is called saturated that is not, and one not that is, by simulated queues of known utilisation.

`python tests/benchmarks/saturation.py [--trials N]` prints the Markdown table that docs/load.md holds. The queues
are those of textbooks (one server, exponential service; several, fixed service), and an engine with places for a batch,
which is faster the fuller it is. A utilisation of 1.1 means that 10 % more arrive than can be served.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence

from pytest_llem.job.config import Arrival, WorkloadSettings
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.request import Request
from pytest_llem.results.saturation import offered_load
from pytest_llem.workload.arrivals import schedule

RATE_PER_S = 1.0
PLACES = 32
UTILISATIONS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 3.0)
SIZES = ((64, 3), (256, 1), (1000, 1), (4000, 1))

Service = Callable[[Sequence[float], float, random.Random], list[float]]
"""From the times of arrival and the utilisation to the times at which answers end."""


def in_order(arrived: Sequence[float], service: Sequence[float], servers: int) -> list[float]:
    """First come, first served, by so many servers."""
    free = [0.0] * servers
    ended = []
    for time, needed in zip(arrived, service, strict=True):
        end = max(time, heapq.heappop(free)) + needed
        heapq.heappush(free, end)
        ended.append(end)
    return ended


def batched(arrived: Sequence[float], work: Sequence[float], capacity: float) -> list[float]:
    """An engine with `PLACES` that are shared evenly: with one taken it does a third of a full one's step time.

    `capacity` is the work per second of a full engine. Requests beyond the places wait in order.
    """
    now, done, place = 0.0, 0.0, 0
    ended = [0.0] * len(arrived)
    waiting: deque[int] = deque()
    running: list[tuple[float, int]] = []
    while place < len(arrived) or running or waiting:
        while waiting and len(running) < PLACES:
            index = waiting.popleft()
            heapq.heappush(running, (done + work[index], index))
        each = capacity / PLACES / (1 / 3 + 2 / 3 * len(running) / PLACES)
        arrives = arrived[place] if place < len(arrived) else math.inf
        ends = now + (running[0][0] - done) / each if running else math.inf
        if ends <= arrives:
            now, (done, index) = ends, heapq.heappop(running)
            ended[index] = now
        else:
            done += (arrives - now) * each
            now = arrives
            waiting.append(place)
            place += 1
    return ended


def exponential(arrived: Sequence[float], utilisation: float, rng: random.Random) -> list[float]:
    """M/M/1: one server, lengths all but fixed."""
    return in_order(arrived, [rng.expovariate(RATE_PER_S / utilisation) for _ in arrived], 1)


def fixed(arrived: Sequence[float], utilisation: float, rng: random.Random) -> list[float]:
    """M/D/8: eight servers, one length."""
    return in_order(arrived, [8 * utilisation / RATE_PER_S] * len(arrived), 8)


def batch_fixed(arrived: Sequence[float], utilisation: float, rng: random.Random) -> list[float]:
    """A batch of 32 places, one length."""
    return batched(arrived, [1.0] * len(arrived), RATE_PER_S / utilisation)


def batch_drawn(arrived: Sequence[float], utilisation: float, rng: random.Random) -> list[float]:
    """A batch of 32 places, lognormal lengths (sigma 0.8) as those of conversations."""
    return batched(arrived, [rng.lognormvariate(-0.32, 0.8) for _ in arrived], RATE_PER_S / utilisation)


def unlimited(arrived: Sequence[float], utilisation: float, rng: random.Random) -> list[float]:
    """No queue at all, and long answers: nothing is ever saturated."""
    return [time + 32 * utilisation / RATE_PER_S * rng.lognormvariate(-0.32, 0.8) for time in arrived]


QUEUES: dict[str, Service] = {
    "one server, exponential": exponential,
    "eight servers, fixed": fixed,
    "32 places, fixed": batch_fixed,
    "32 places, lognormal": batch_drawn,
    "no queue": unlimited,
}
ARRIVALS = {
    "poisson": Arrival("poisson", rate_per_s=RATE_PER_S),
    "gamma, burstiness 0.25": Arrival("gamma", rate_per_s=RATE_PER_S, burstiness=0.25),
    "bursts of 8": Arrival("burst", rate_per_s=RATE_PER_S, burst_size=8),
    "constant": Arrival("constant", rate_per_s=RATE_PER_S),
}


def measured(
    queue: Service, arrival: Arrival, utilisation: float, requests: int, repeats: int, seed: int
) -> list[RequestRecord]:
    """The records of one cycle: every repeat has the same arrivals, and a service of its own."""
    rng = random.Random(seed)
    settings = WorkloadSettings(arrival=arrival, seed=seed)
    arrived = schedule(settings, [Request(index, (1,), 1) for index in range(requests)]).times_s
    return [
        RequestRecord(repeat, index, 1, 1, round(begin * 1e9), round(end * 1e9), "length")
        for repeat in range(repeats)
        for index, (begin, end) in enumerate(zip(arrived, queue(arrived, utilisation, rng), strict=True))
    ]


def shares(
    queue: Service, arrival: Arrival, utilisation: float, requests: int, repeats: int, trials: int
) -> tuple[float, float]:
    """How often a load is called saturated, and how often it is not known."""
    loads = [
        offered_load(measured(queue, arrival, utilisation, requests, repeats, seed), arrival) for seed in range(trials)
    ]
    called = sum(load is not None and load.saturated is True for load in loads)
    return called / trials, sum(load is None or load.saturated is None for load in loads) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    options = parser.parse_args()
    print("| arrivals | queue | requests x repeats |", " | ".join(f"{rho:g}" for rho in UTILISATIONS), "|")
    print("|---|---|---|" + "---|" * len(UTILISATIONS))
    for arrival_name, arrival in ARRIVALS.items():
        for queue_name, queue in QUEUES.items():
            for requests, repeats in SIZES if arrival_name == "poisson" else SIZES[1:3]:
                trials = options.trials if requests <= 1000 else max(50, options.trials // 3)
                found = [shares(queue, arrival, rho, requests, repeats, trials) for rho in UTILISATIONS]
                cells = [f"{called:.1%}" + (f" ({open_:.0%} ?)" if open_ >= 0.005 else "") for called, open_ in found]
                print(f"| {arrival_name} | {queue_name} | {requests} x {repeats} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
