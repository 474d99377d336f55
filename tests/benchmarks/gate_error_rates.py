"""How often gates are wrong, by simulation through the public gate functions.

`python tests/benchmarks/gate_error_rates.py [--studies N] [--json FILE]` prints a Markdown table per question: false
alarms per study of 20 experiments on equal runs, gates left undecided on equal runs, and regressions found; sides of
unequal counts and noises; cycles that follow one another; what `target_ci` announces; and the first days, when nobody
knows how much runs differ. docs/gates.md holds the output.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pytest_llem.results.gate_report import GateReport, GateRow
from pytest_llem.results.gates import judge_ratio, judge_runs
from pytest_llem.results.run_verdict import run_findings
from pytest_llem.results.statistics import FIRST_LOOK, first_autocorrelation, relative_half_width

EXPERIMENTS = 20
LIMIT = 0.03
REGRESSION = 0.08
NOISE = 0.02

Sample = Callable[[random.Random, int, float], list[float]]


def normal(rng: random.Random, cycles: int, noise: float) -> list[float]:
    return [1 + noise * rng.gauss(0, 1) for _ in range(cycles)]


def lognormal(rng: random.Random, cycles: int, noise: float) -> list[float]:
    return [rng.lognormvariate(0, noise) for _ in range(cycles)]


def heavy_tailed(rng: random.Random, cycles: int, noise: float) -> list[float]:
    """Student's t with 3 degrees of freedom, scaled to the same standard deviation."""
    return [
        max(0.5, 1 + noise * rng.gauss(0, 1) / (rng.gammavariate(1.5, 2 / 3) ** 0.5) / 3**0.5) for _ in range(cycles)
    ]


def skewed(rng: random.Random, cycles: int, noise: float) -> list[float]:
    """Exponential above a hard floor: energy is never less than the work needs."""
    return [1 + noise * (rng.expovariate(1) - 1) for _ in range(cycles)]


def drifting(rng: random.Random, cycles: int, noise: float) -> list[float]:
    """Each run drifts by twice the noise from its first cycle to its last, as a warming machine does."""
    steps = max(1, cycles - 1)
    return [1 + noise * rng.gauss(0, 1) + 2 * noise * (place / steps - 0.5) for place in range(cycles)]


def with_outliers(rng: random.Random, cycles: int, noise: float) -> list[float]:
    """One cycle in twenty is 10 % higher: a disturbance that no validity check saw."""
    return [value + (0.10 if rng.random() < 0.05 else 0.0) for value in normal(rng, cycles, noise)]


SAMPLES: dict[str, Sample] = {
    "normal": normal,
    "lognormal": lognormal,
    "skewed": skewed,
    "heavy tails": heavy_tailed,
    "drift": drifting,
    "outliers": with_outliers,
}


@dataclass(frozen=True)
class Rates:
    """Shares of 0 to 1: false alarms per study and per gate, undecided gates, found regressions."""

    study_false_alarms: float
    gate_false_alarms: float
    inconclusive: float
    found: float


def rates(
    sample: Sample, studies: int, *, cycles: int = 5, noise: float = NOISE, limit: float = LIMIT, seed: int = 0
) -> Rates:
    """Equal runs, and runs whose current side is worse by `REGRESSION`, through `judge_ratio`."""
    rng = random.Random(seed)
    alarmed = alarms = undecided = found = 0
    gates = studies * EXPERIMENTS
    for _ in range(studies):
        fails = 0
        for _ in range(EXPERIMENTS):
            baseline, current = sample(rng, cycles, noise), sample(rng, cycles, noise)
            verdict = judge_ratio(baseline, current, limit)
            fails += verdict.status == "fail"
            undecided += verdict.status == "inconclusive"
            worse = [value * (1 + REGRESSION) for value in current]
            found += judge_ratio(baseline, worse, limit).status == "fail"
        alarms += fails
        alarmed += fails > 0
    return Rates(alarmed / studies, alarms / gates, undecided / gates, found / gates)


def between_runs(
    spread: float, runs: int, studies: int, *, cycles: int = 5, limit: float = LIMIT, seed: int = 1
) -> Rates:
    """An A/A experiment over separate runs, whose levels differ by the relative standard deviation `spread`."""
    rng = random.Random(seed)

    def run() -> list[float]:
        level = 1 + spread * rng.gauss(0, 1)
        return [level * value for value in normal(rng, cycles, NOISE)]

    alarmed = alarms = undecided = found = 0
    gates = studies * EXPERIMENTS
    for _ in range(studies):
        fails = 0
        for _ in range(EXPERIMENTS):
            baselines, current = [run() for _ in range(runs)], run()
            verdict = judge_runs(baselines, current, limit, doubt=True)
            fails += verdict.status == "fail"
            undecided += verdict.status == "inconclusive"
            worse = [value * (1 + REGRESSION) for value in current]
            found += judge_runs(baselines, worse, limit, doubt=True).status == "fail"
        alarms += fails
        alarmed += fails > 0
    return Rates(alarmed / studies, alarms / gates, undecided / gates, found / gates)


@dataclass(frozen=True)
class FirstDay:
    """Runs that nobody knows to differ by 2 %. `common`: whatever they differ by, all experiments of a run share it;
    `heavy`: cycles, and `heavy_runs`: runs with the tails of Student's t of 3 degrees of freedom."""

    runs: int = 1
    cycles: int = 5
    noise: float = NOISE
    limit: float = LIMIT
    common: bool = False
    heavy: bool = False
    heavy_runs: bool = False

    def __str__(self) -> str:
        named = {"common": "shared by all", "heavy": "heavy tails", "heavy_runs": "heavy tails of runs"}
        told = [f"limit {percent(self.limit)}, {self.cycles} cycles, noise {percent(self.noise)}"]
        return ", ".join([*told, *(text for name, text in named.items() if getattr(self, name))])


def first_day(of: FirstDay, studies: int, *, spread: float = 0.02, seed: int = 6) -> tuple[float, float, float, float]:
    """Studies with a false alarm on equal runs; and of what is 8 % worse: found, waiting for more runs, passed."""
    rng = random.Random(seed)
    sample = heavy_tailed if of.heavy else normal

    def level() -> float:
        return heavy_tailed(rng, 1, spread)[0] if of.heavy_runs else 1 + spread * rng.gauss(0, 1)

    alarmed = found = waiting = passed = gates = 0
    for number in range(studies):
        shared = [level() for _ in range(of.runs + 1)]
        alarm = False
        for _ in range(EXPERIMENTS):
            levels = shared if of.common else [level() for _ in range(of.runs + 1)]
            *before, now = [[each * value for value in sample(rng, of.cycles, of.noise)] for each in levels]
            # The bound of noise between runs alone is 8 %: less cannot fail, and need not be judged.
            suspect = fmean(now) > 1.05 * fmean(value for run in before for value in run)
            alarm |= suspect and judge_runs(before, now, of.limit, doubt=True).status == "fail"
            if number * 20 < studies:
                worse = judge_runs(before, [value * (1 + REGRESSION) for value in now], of.limit, doubt=True)
                gates += 1
                found += worse.status == "fail"
                waiting += worse.more_runs > 0
                passed += worse.status == "pass"
        alarmed += alarm
    return alarmed / studies, found / gates, waiting / gates, passed / gates


FIRST_DAYS = (
    FirstDay(),
    FirstDay(common=True),
    FirstDay(heavy=True),
    FirstDay(heavy_runs=True),
    FirstDay(cycles=3, noise=0.03, limit=0.01),
    FirstDay(cycles=3, noise=0.005, limit=0.01),
    FirstDay(cycles=10, limit=0.01),
    FirstDay(limit=0.05),
    FirstDay(limit=0.10),
    FirstDay(runs=2),
    FirstDay(runs=2, common=True),
    FirstDay(runs=2, cycles=3, noise=0.03, limit=0.01),
    FirstDay(runs=2, cycles=10, noise=0.005, limit=0.01),
)


def first_days(studies: int) -> str:
    rows = [
        [f"{of.runs} baseline run{'s' * (of.runs > 1)}, {of}", *map(percent, first_day(of, studies))]
        for of in FIRST_DAYS
    ]
    head = ("runs differ by 2 %", "study with a false alarm", "8 % found", "8 % waits for runs", "8 % passes")
    return markdown("The first days", head, rows)


def separate_runs(studies: int) -> str:
    rows = [
        [
            f"{percent(spread)}, {runs} baseline run{'s' * (runs > 1)}",
            *map(percent, vars(between_runs(spread, runs, studies)).values()),
        ]
        for spread in (0.005, 0.01, 0.02)
        for runs in (1, 2, 3, 5, 10, 20)
    ]
    head = ("between runs", "study with a false alarm", "gate with a false alarm", "undecided", "8 % found")
    return markdown("Separate runs: each run has its own level", head, rows)


def smallest_regressions(studies: int, *, doubt: bool) -> str:
    counts = (3, 5, 7, 10)
    rows = [
        [percent(noise), *(f"{smallest_found(noise, cycles, studies, doubt=doubt) * 100:.1f} %" for cycles in counts)]
        for noise in (0.005, 0.01, 0.02, 0.05)
    ]
    head = ("noise", *(f"{count} cycles" for count in counts))
    return markdown(f"Smallest regression found in 95 % of gates (limit 3 %{', the first day' * doubt})", head, rows)


def correlated(rng: random.Random, cycles: int, noise: float, rho: float, level: float = 1.0) -> list[float]:
    """A first-order autoregression: `rho` is the correlation of successive cycles."""
    state, values = rng.gauss(0, 1), []
    for _ in range(cycles):
        values.append(level * math.exp(noise * state))
        state = rho * state + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)
    return values


def sides(
    before: tuple[int, float], now: tuple[int, float], gates: int, *, runs: int = 1, rho: float = 0.0, seed: int = 3
) -> tuple[float, float, float]:
    """Failures where nothing changed, of a change at the limit, and of one of 8 %; a side is (cycles, noise)."""
    rng = random.Random(seed)
    failures = [0, 0, 0]
    for _ in range(gates):
        baselines = [correlated(rng, *before, rho) for _ in range(runs)]
        current = correlated(rng, *now, rho)
        for index, change in enumerate((0.0, LIMIT, REGRESSION)):
            worse = [value * (1 + change) for value in current]
            failures[index] += judge_runs(baselines, worse, LIMIT).status == "fail"
    equal, limit, found = (count / gates for count in failures)
    return equal, limit, found


def stopping(
    noise: float, target: float, most: int, studies: int, *, seed: int = 4
) -> tuple[float, float, float, float]:
    """`target_ci`, from five cycles to `most`: the share that stops as precise; of those, that at the first look, and
    that whose mean is as near the true value as announced; and mean cycles."""
    rng = random.Random(seed)
    stopped = first = held = cycles = count = 0
    for _ in range(studies):
        values = lognormal(rng, most, noise)
        for count in range(FIRST_LOOK, most + 1):
            width = relative_half_width(values[:count], most - FIRST_LOOK + 1)
            if width is not None and width <= target:
                stopped += 1
                first += count == FIRST_LOOK
                held += abs(sum(map(math.log, values[:count])) / count) <= math.log1p(target)
                break
        cycles += count
    share = first / stopped if stopped else float("nan")
    return stopped / studies, share, held / stopped if stopped else float("nan"), cycles / studies


def smallest_found(
    noise: float, cycles: int, studies: int, *, doubt: bool = False, limit: float = LIMIT, power: float = 0.95
) -> float:
    """The smallest regression, in steps of 0.5 %, that is found in `power` of the gates."""
    rng = random.Random(2)
    pairs = [(normal(rng, cycles, noise), normal(rng, cycles, noise)) for _ in range(studies * EXPERIMENTS)]
    step = 0.005
    regression = limit + step
    while regression < 2.0:
        found = sum(
            judge_runs([before], [value * (1 + regression) for value in current], limit, doubt=doubt).status == "fail"
            for before, current in pairs
        )
        if found >= power * len(pairs):
            return regression
        regression += step
    return float("inf")


def percent(value: float) -> str:
    return "more than 200 %" if value == float("inf") else f"{value * 100:.2f} %"


def markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"### {title}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "|".join([":---", *["---:"] * (len(head) - 1)]) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


Side = tuple[int, float]
"""Cycles, and their noise."""

UNEQUAL: tuple[tuple[int, Side, Side], ...] = (
    (1, (10, 0.01), (3, 0.05)),
    (1, (3, 0.05), (10, 0.01)),
    (1, (10, 0.02), (3, 0.02)),
    (1, (5, 0.02), (5, 0.05)),
    (1, (3, 0.02), (3, 0.06)),
    (2, (10, 0.01), (4, 0.06)),
    (3, (10, 0.01), (4, 0.06)),
    (3, (5, 0.02), (5, 0.02)),
)


def unequal_sides(gates: int) -> str:
    rows = [
        [
            f"{runs} run{'s' * (runs > 1)} of {before[0]} cycles, {percent(before[1])}",
            f"{now[0]} cycles, {percent(now[1])}",
            *map(percent, sides(before, now, gates, runs=runs)),
        ]
        for runs, before, now in UNEQUAL
    ]
    head = ("baseline", "current", "equal runs: fails", "at the limit: fails", "8 % found")
    return markdown("Unequal counts and noises (limit 3 %)", head, rows)


def correlated_cycles(gates: int) -> str:
    correlations = (0.0, 0.3, 0.6)
    rows = []
    for count in (3, 5, 10, 20):
        found = (sides((count, NOISE), (count, NOISE), gates, rho=rho) for rho in correlations)
        rows.append([str(count), *(" / ".join(map(percent, each)) for each in found)])
    head = ("cycles a side", *(f"correlation {rho:.1f}" for rho in correlations))
    return markdown("Correlated cycles: fails on equal runs / at the limit / at 8 %", head, rows)


def recognised(cycles: int, experiments: int, rho: float, runs: int, *, seed: int = 5) -> float:
    """The share of runs that say of their cycles that they follow one another."""
    rng = random.Random(seed)
    found = 0
    for _ in range(runs):
        reports = []
        for index in range(experiments):
            pair = [correlated(rng, cycles, NOISE, rho) for _ in range(2)]
            row = GateRow("m", "comparison", "pass", "", None, None, None, None, None, "")
            row = replace(row, autocorrelation=first_autocorrelation([[*map(math.log, side)] for side in pair]))
            reports.append(GateReport("study", str(index), (row,), strict=False))
        found += any(finding.code == "cycles_correlated" for finding in run_findings(reports))
    return found / runs


def recognition(runs: int) -> str:
    correlations = (0.0, 0.3, 0.6)
    rows = [
        [f"{cycles}, {count} experiments", *(percent(recognised(cycles, count, rho, runs)) for rho in correlations)]
        for cycles in (3, 5)
        for count in (6, 20, 60)
    ]
    head = ("cycles a side", *(f"correlation {rho:.1f}" for rho in correlations))
    return markdown("Runs that find their cycles correlated", head, rows)


def stopping_rule(studies: int) -> str:
    rows = []
    for noise in (0.005, 0.01, 0.015, 0.02, 0.03, 0.04):
        early, first, held, cycles = stopping(noise, 0.02, 10, studies)
        rows.append([percent(noise), percent(early), percent(first), percent(held), f"{cycles:.1f}"])
    head = ("noise", "stops", "of them at five cycles", "of them within 2 %", "cycles on average")
    return markdown("target_ci: 0.02, max_cycles: 10", head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    head = ("noise of 2 %", "study with a false alarm", "gate with a false alarm", "undecided", "8 % found")
    shapes = {name: rates(sample, options.studies) for name, sample in SAMPLES.items()}
    rows = {name: list(map(percent, vars(found).values())) for name, found in shapes.items()}
    print(markdown("5 cycles a side, limit 3 %", head, [[name, *cells] for name, cells in rows.items()]))
    print(separate_runs(options.studies // 2))
    print(first_days(options.studies))
    for doubt in (False, True):
        print(smallest_regressions(max(1, options.studies // 40), doubt=doubt))
    gates = options.studies * 5
    print(unequal_sides(gates))
    print(correlated_cycles(gates))
    print(recognition(max(1, options.studies // 10)))
    print(stopping_rule(gates))
    if options.json:
        options.json.write_text(json.dumps({name: vars(found) for name, found in shapes.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
