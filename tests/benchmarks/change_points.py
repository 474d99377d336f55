"""How often change points are wrong, how soon a step is found, and what Apache Otava finds in the same series.

`python -m tests.benchmarks.change_points [--years N] [--write-docs]` prints Markdown tables: false alarms in a year of
daily runs of 20 experiments, steps found, how well their size and place are known. With `--otava`, in an environment
that has `apache-otava`, it prints the comparison instead. docs/history.md holds both.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.results.history.changes import ChangePoint, find_changes
from tests.benchmarks.gate_error_rates import correlated, heavy_tailed, normal, skewed
from tests.figures import write_figures

PAGE = Path(__file__).parents[2] / "docs" / "history.md"
DAYS, EXPERIMENTS = 365, 20
NOISES = (0.003, 0.01, 0.02, 0.03)
FIRST_DAYS = 30
AFTER = (3, 10, 30)
"""Runs after a step by which its size is stated."""
LATE = 10
"""A step is looked for as far as this from where it was."""

Levels = Callable[[random.Random, int, float], list[float]]
"""The levels of so many runs at a noise between them."""


def with_outliers(share: float, size: float) -> Levels:
    """Normal noise, and a `share` of runs higher or lower by `size`."""
    return lambda rng, count, noise: [
        level * (1 + size * rng.choice((1, 1, 1, -1)) if rng.random() < share else 1)
        for level in normal(rng, count, noise)
    ]


def drifting(yearly: float) -> Levels:
    """Normal noise about a level that rises by `yearly` in a year."""
    return lambda rng, count, noise: [
        level * (1 + yearly) ** (day / DAYS) for day, level in enumerate(normal(rng, count, noise))
    ]


SHAPES: dict[str, Levels] = {
    "normal": normal,
    "heavy tails": heavy_tailed,
    "skewed": skewed,
    "2 % of runs off by 15 %": with_outliers(0.02, 0.15),
    "5 % of runs off by 10 %": with_outliers(0.05, 0.10),
    "correlation 0.3": lambda rng, count, noise: correlated(rng, count, noise, 0.3),
    "correlation 0.6": lambda rng, count, noise: correlated(rng, count, noise, 0.6),
    "drift of 5 % a year": drifting(0.05),
    "drift of 20 % a year": drifting(0.20),
}


def runs_of(rng: random.Random, levels: Sequence[float], cycles: int = 1, within: float = 0.0) -> list[list[float]]:
    """Runs of these levels; of several `cycles`, from 1 to as many, with noise `within` a run."""
    counts = (cycles if within == 0 else rng.randint(1, cycles) for _ in levels)
    return [
        [level * rng.lognormvariate(0, within) for _ in range(count)]
        for level, count in zip(levels, counts, strict=True)
    ]


def alarms(levels: Levels, noise: float, years: int, *, step_at: int | None = None, **cycles: float) -> Iterator[int]:
    """The day of each false alarm in so many years of 20 experiments; those near a step of 8 % are none."""
    rng = random.Random(0)
    for _ in range(years * EXPERIMENTS):
        values = levels(rng, DAYS, noise)
        if step_at is not None:
            values = [value * (1.08 if day >= step_at else 1) for day, value in enumerate(values)]
        for change in find_changes(runs_of(rng, values, **cycles)):  # type: ignore[arg-type]
            if step_at is None or not near(change, step_at):
                yield change.found


def near(change: ChangePoint, place: int) -> bool:
    return change.found >= place and abs(change.first - place) <= LATE


@dataclass(frozen=True)
class Found:
    """Shares of 0 to 1. Of steps that were found: bounds that hold, outer and inner; place exact, and within range."""

    ever: float
    within_5: float
    within_10: float
    outer: float
    inner: float
    exact: float
    in_range: float


def steps(noise: float, step: float, before: int, trials: int, levels: Levels = normal, after: int = 15) -> Found:
    """Steps up and down after so many runs, found by those `after` them."""
    rng = random.Random(1)
    found: list[tuple[ChangePoint, float]] = []
    for _ in range(trials):
        size = rng.choice((1 + step, 1 / (1 + step)))
        values = [
            value * (size if day >= before else 1) for day, value in enumerate(levels(rng, before + after, noise))
        ]
        changes = [change for change in find_changes(runs_of(rng, values)) if near(change, before)]
        found += [(change, size) for change in changes[:1]]
    count = max(len(found), 1)
    return Found(
        len(found) / trials,
        sum(change.found < before + 5 for change, _ in found) / trials,
        sum(change.found < before + 10 for change, _ in found) / trials,
        sum(change.high >= size if size > 1 else change.low <= size for change, size in found) / count,
        sum(change.low <= size if size > 1 else change.high >= size for change, size in found) / count,
        sum(change.first == before for change, _ in found) / count,
        sum(change.first - change.earlier <= before <= change.first + change.later for change, _ in found) / count,
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = [":---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def false_alarms(years: int) -> str:
    rows = []
    cases: dict[str, tuple[Levels, dict[str, float]]] = {name: (levels, {}) for name, levels in SHAPES.items()}
    cases["after a step of 8 %"] = normal, {"step_at": 30}
    cases["1 to 10 cycles a run, 2 % within"] = normal, {"cycles": 10, "within": 0.02}
    for name, (levels, options) in cases.items():
        cells = []
        for noise in NOISES:
            days = list(alarms(levels, noise, years, **options))  # type: ignore[arg-type]
            early = sum(day < FIRST_DAYS for day in days)
            cells.append(f"{len(days) / years:.2f} ({early / years:.2f})")
        rows.append([name, *cells])
    return table(("noise between runs", *(f"{100 * noise:g} %" for noise in NOISES)), rows)


def found_steps(trials: int) -> str:
    rows = []
    for noise in NOISES:
        for before in (3, 5, 10, 30):
            each = (steps(noise, step, before, trials) for step in (0.03, 0.05, 0.08, 0.15))
            cells = (f"{100 * found.within_5:.0f} % / {100 * found.within_10:.0f} %" for found in each)
            rows.append([f"{100 * noise:g} %, {before} runs before", *cells])
    return table(("found within 5 / 10 runs", *(f"{step} %" for step in (3, 5, 8, 15))), rows)


def known(trials: int) -> str:
    rows = []
    for noise, step, before in (
        (0.01, 0.03, 30),
        (0.01, 0.08, 5),
        (0.01, 0.08, 30),
        (0.02, 0.08, 30),
        (0.03, 0.08, 30),
    ):
        for after in AFTER:
            found = steps(noise, step, before, trials, after=after)
            name = f"{100 * step:g} % at {100 * noise:g} %, {before} runs before, {after} after"
            cells = (found.ever, found.outer, found.inner, found.exact, found.in_range)
            rows.append([name, *(percent(cell) if found.ever else "-" for cell in cells)])
    head = ("step at noise", "found", "outer bound", "inner bound", "first run exact", "within its range")
    return table(head, rows)


# --- Apache Otava ---

SETTINGS = {"as it comes": (50, 0.001, 0.0), "p 0.001, magnitude 3 %": (50, 0.001, 0.03), "tuned": (50, 1e-5, 0.03)}
"""Window, highest p-value and least magnitude; *tuned*: normal noise of 1 % raises one alarm a year or less."""

EQUAL: dict[str, tuple[Levels, float]] = {
    "1 %": (normal, 0.01),
    "3 %": (normal, 0.03),
    "heavy tails, 1 %": (heavy_tailed, 0.01),
    "2 % of runs off by 15 %": (with_outliers(0.02, 0.15), 0.01),
}
"""Series without a step, in which Otava and this package look for one."""
SERIES_DAYS, FIRST = 120, 6


def otava(values: Sequence[float], window: int, p: float, magnitude: float) -> dict[int, float] | None:
    """Its change points with their ratios, found in all that is there; `None` where it fails (0.8.0: an empty side)."""
    from otava.analysis import compute_change_points  # type: ignore[import-not-found]

    try:
        found, _ = compute_change_points(list(values), window, p, magnitude)
    except ValueError:
        return None
    return {change.index: 1 + change.stats.forward_rel_change() for change in found}


def here(values: Sequence[float]) -> dict[int, float]:
    return {change.first: change.ratio for change in find_changes([[value] for value in values])}


@dataclass
class Told:
    """What was told, day by day, and what became of it. A point within two runs of an earlier one is the same."""

    said: int = 0
    taken_back: int = 0
    failures: int = 0


def daily(find: Callable[[Sequence[float]], dict[int, float] | None], values: Sequence[float], first: int) -> Told:
    """Analyse what is there on each day from `first` on, as a nightly job does."""
    told, said, last = Told(), list[int](), set[int]()
    for day in range(first, len(values) + 1):
        found = find(values[:day])
        if found is None:
            told.failures += 1
            continue
        last = set(found)
        said += (place for place in sorted(last) if not any(abs(place - other) <= 2 for other in said))
    told.said = len(said)
    told.taken_back = sum(not any(abs(place - other) <= 2 for other in last) for place in said)
    return told


def against_otava(series: int, trials: int) -> str:
    finders: dict[str, Callable[[Sequence[float]], dict[int, float] | None]] = {"llem history": here}
    for name, setting in SETTINGS.items():
        finders[f"Otava, {name}"] = lambda values, setting=setting: otava(values, *setting)  # type: ignore[misc]
    rows = []
    days = series * (SERIES_DAYS + 1 - FIRST)
    for name, find in finders.items():
        begun = time.process_time()
        told = {}
        for case, (levels, noise) in EQUAL.items():
            rng = random.Random(7)
            told[case] = [daily(find, levels(rng, SERIES_DAYS, noise), FIRST) for _ in range(series)]
        spent = time.process_time() - begun
        whole = [each for case in told.values() for each in case]
        said, back = sum(each.said for each in whole), sum(each.taken_back for each in whole)
        delays = [[delay(find, noise, seed) for seed in range(trials)] for noise in (0.01, 0.02)]
        found = [each for each in delays[0] if each is not None]
        rows.append(
            [
                name,
                *(f"{sum(each.said for each in case) * DAYS * EXPERIMENTS / days:.1f}" for case in told.values()),
                f"{back} of {said}",
                *(percent(sum(each is not None and each <= 5 for each in case) / trials) for case in delays),
                f"{sum(found) / len(found):.1f}" if found else "-",
                f"{1000 * spent / days / len(EQUAL):.1f} ms",
                percent(sum(each.failures for each in whole) / days / len(EQUAL)),
            ]
        )
    head = ("", *EQUAL, "later gone", "8 % at 1 %", "8 % at 2 %", "runs until found", "time of a day", "days it fails")
    return table(head, rows)


def delay(find: Callable[[Sequence[float]], dict[int, float] | None], noise: float, seed: int) -> int | None:
    """After how many runs a step of 8 % is found, within two runs of where it is; `None` after ten."""
    values = [value * (1.08 if day >= 30 else 1) for day, value in enumerate(normal(random.Random(seed), 40, noise))]
    found = (find(values[: 30 + after]) or {} for after in range(1, 11))
    return next((after for after, places in enumerate(found, 1) if any(abs(place - 30) <= 2 for place in places)), None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=20, help="of 20 experiments, per rate of false alarms")
    parser.add_argument("--trials", type=int, default=1000, help="steps per share")
    parser.add_argument("--otava", action="store_true", help="compare with Apache Otava, which must be installed")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/history.md")
    options = parser.parse_args(arguments)
    if options.otava:
        tables = {"against-otava": against_otava(2 * options.years, options.trials // 10)}
    else:
        tables = {
            "false-alarms": false_alarms(options.years),
            "found-steps": found_steps(options.trials),
            "known-steps": known(options.trials),
        }
    for name, text in tables.items():
        print(f"{name}\n\n{text}\n", flush=True)
        if options.write_docs:
            write_figures(name, text, PAGE)


if __name__ == "__main__":
    main()
