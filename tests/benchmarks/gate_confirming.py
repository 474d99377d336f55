"""What `execution.confirm` does to false alarms and to power, on machines whose noise drifts within a run.

`python -m tests.benchmarks.gate_confirming [--studies N]` simulates runs cycle by cycle and judges them by the gates'
own code: 20 experiments in order, their gates behind them, each against a baseline run of the same machine. It prints
a table, which docs/gates.md holds.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.results.confirming import confirmed_row
from pytest_llem.results.gate_report import GateRow
from pytest_llem.results.gate_rows import compared_row
from pytest_llem.results.gates import judge_runs
from pytest_llem.study.limits import FailIf
from tests.benchmarks.gate_error_rates import LIMIT, NOISE, REGRESSION, markdown, percent

EXPERIMENTS = 20
WAYS = ("without confirm", "with it", "if the further cycles had to fail by themselves")
HOT = 0.08
BETWEEN = 0.02


def steady(rng: random.Random) -> Iterator[float]:
    """Every cycle alike, but for its noise."""
    while True:
        yield 1.0


def episodes(share: float, cycles: float) -> Callable[[random.Random], Iterator[float]]:
    """Now and then hot, which costs 8 %: in this share of the time, for so many cycles on average."""

    def machine(rng: random.Random) -> Iterator[float]:
        hot = rng.random() < share
        while True:
            yield 1 + HOT * hot
            leaves = (1 if hot else share / (1 - share)) / cycles
            hot ^= rng.random() < leaves

    return machine


def wandering(rng: random.Random) -> Iterator[float]:
    """A level that wanders by 3 % (standard deviation), and resembles itself over some twenty cycles."""
    rho, state = 0.95, rng.gauss(0, 1)
    while True:
        yield math.exp(0.03 * state)
        state = rho * state + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)


def levels(rng: random.Random) -> Iterator[float]:
    """A level of the run's own, which no cycle of it can tell from a change."""
    level = 1 + BETWEEN * rng.gauss(0, 1)
    while True:
        yield level


MACHINES: dict[str, tuple[str, Callable[[random.Random], Iterator[float]]]] = {
    "steady": ("steady", steady),
    "hot": ("hot for 20 cycles at a time, a tenth of the time", episodes(0.1, 20)),
    "briefly hot": ("hot for 5 cycles at a time, a tenth of the time", episodes(0.1, 5)),
    "wandering": ("a level that wanders by 3 %", wandering),
    "between runs": ("2 % between runs", levels),
}


@dataclass(frozen=True)
class Rates:
    """Shares of 0 to 1 of gates that fail, and of studies in which one does."""

    alarms: float
    studies: float


def rates(
    rng: random.Random,
    machine: str,
    *,
    change: float = 0.0,
    cycles: int = 5,
    studies: int,
    experiments: int = EXPERIMENTS,
) -> list[Rates]:
    """Gates that fail of a current run that is worse by `change`, by `WAYS`."""
    counts = [[0, 0] for _ in WAYS]
    for _ in range(studies):
        before, now = (_run(rng, machine, cycles) for _ in range(2))
        baselines = [before(0.0) for _ in range(experiments)]
        planned = [now(change) for _ in range(experiments)]
        failed = [0 for _ in WAYS]
        for baseline, first in zip(baselines, planned, strict=True):
            row = _judged(baseline, first)
            if row.status == "fail":
                again = now(change)
                alone, together = _judged(baseline, again), _judged(baseline, first + again)
                failed[0] += 1
                failed[1] += confirmed_row(row, alone, together, cycles, cycles).status == "fail"
                failed[2] += alone.status == "fail"
        for count, number in zip(counts, failed, strict=True):
            count[0] += number
            count[1] += number > 0
    return [Rates(gates / (studies * experiments), of / studies) for gates, of in counts]


def _run(rng: random.Random, machine: str, cycles: int) -> Callable[[float], list[float]]:
    state = MACHINES[machine][1](rng)
    return lambda change: [(1 + change) * next(state) * (1 + NOISE * rng.gauss(0, 1)) for _ in range(cycles)]


def _judged(baseline: Sequence[float], now: Sequence[float]) -> GateRow:
    limit = FailIf("joules_per_output_token", LIMIT)
    row = compared_row(limit, judge_runs([baseline], now, LIMIT), (), 1.0, 1.0)
    return GateRow(**{**vars(row), "limit_ratio": 1 + LIMIT})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies: int = parser.parse_args(arguments).studies
    rows = []
    for name, (title, _) in MACHINES.items():
        for cycles in (3, 5):
            rng = random.Random(cycles)
            equal = rates(rng, name, cycles=cycles, studies=studies)
            worse = rates(rng, name, cycles=cycles, change=REGRESSION, studies=max(1, studies // 5))
            pairs = [
                [each.studies for each in equal],
                [each.alarms for each in equal],
                [each.alarms for each in worse],
            ]
            rows.append([f"{title}, {cycles} cycles", *(" / ".join(map(percent, pair)) for pair in pairs)])
    head = ("machine", "study with a false alarm", "gate with a false alarm", "8 % found")
    print(markdown(" / ".join(WAYS), head, rows))


if __name__ == "__main__":
    main()
