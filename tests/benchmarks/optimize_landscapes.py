"""How often the truly best setting is in the set that a race answers with, and what that costs.

    python -m tests.benchmarks.optimize_landscapes [--seeds N] [--few-seeds N] [--search-seeds N] [--only TEXT]
                                                   [--write-docs]

Races over the worlds of `tests/landscapes.py`, beside Optuna's TPE and random search with as many cycles as the race of
the same seed took. Optuna is not among the dependencies: `pip install optuna`, or `--search-seeds 0`. docs/optimize.md
has the figures.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import ModuleType

from pytest_llem.results.racing.racing import race
from tests.figures import write_figures
from tests.landscapes import ACCURACY, FEW, LANDSCAPES, LATENCY, LEVELS, NAMES, RIGHT, SLOW, World

PAGE = Path(__file__).parents[2] / "docs" / "optimize.md"
HEAD = (
    "| landscape | best in the set | regret in its bound | time of the grid | left | found / undecided / infeasible |",
    "|---|---|---|---|---|---|",
)
OVERALL, EACH, TIME = 0.95, 0.93, 1 / 3
LUCK = 3.0
"""Standard errors by which a share of `FEW` races may be below the stated one: of 56 rows none is by chance."""


@dataclass
class Tally:
    """What races over one landscape came to."""

    held: list[bool] = field(default_factory=list)
    bounded: list[bool] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    status: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    found: dict[str, list[float | None]] = field(default_factory=lambda: {"race": [], "TPE": [], "random": []})


def world(landscape: str, seed: int) -> World:
    """The world of a seed."""
    return {**LANDSCAPES, **FEW}[landscape](random.Random(f"{landscape} {seed}"))


def regret(drawn: World, name: str | None) -> float | None:
    """How much worse a setting is than the best, as a logarithm; `None` where it breaks a limit, or is none."""
    if name is None or drawn.best is None or not drawn.feasible(name):
        return None
    return drawn.cost[name] - drawn.cost[drawn.best]


def raced(landscape: str, seeds: range, searched: int, optuna: ModuleType | None) -> Tally:
    """Race over a landscape once for each seed, and search it in the first ones."""
    tally = Tally()
    for seed in seeds:
        drawn = world(landscape, seed)
        began = time.process_time()
        answer = race(drawn.settings, drawn.seen, drawn.goal, rounds=drawn.cycles)
        tally.seconds += time.process_time() - began
        best, cycles = drawn.best, len(drawn.measured)
        tally.held.append(
            answer.status != "infeasible" if best is None and answer.best else best in (*answer.best, None)
        )
        lost = regret(drawn, answer.recommended)
        if answer.regret_high is not None:
            tally.bounded.append(lost is not None and lost <= answer.regret_high + 1e-12)
        tally.time.append(cycles / len(drawn.cost) / drawn.cycles)
        tally.size.append(len(answer.best))
        tally.status[answer.status] += 1
        if seed - seeds.start < searched and best is not None:
            tally.found["race"].append(lost)
            tally.found["random"].append(regret(drawn, at_random(world(landscape, seed), cycles, seed)))
            if optuna is not None:
                tally.found["TPE"].append(regret(drawn, by_tpe(optuna, world(landscape, seed), cycles, seed)))
    return tally


def measured(drawn: World, name: str) -> tuple[float, float]:
    """One cycle as a search sees it: its figure, and how far it is beyond the limits (at most 0 is within)."""
    seen = drawn.seen(name, 1 + len(drawn.measured) // len(drawn.cost))
    beyond = max(
        (seen.limited.get(LATENCY) or 0.0) - SLOW.limit, RIGHT.limit - (seen.limited.get(ACCURACY, 1.0) or 0.0)
    )
    return (1e9 if seen.value is None else seen.value), beyond


def at_random(drawn: World, cycles: int, seed: int) -> str | None:
    """Settings at random; the answer is the one with the best cycle within the limits."""
    rng, names = random.Random(seed), list(drawn.cost)
    tried = [(*measured(drawn, name), name) for name in rng.choices(names, k=cycles)]
    return min(((value, name) for value, beyond, name in tried if beyond <= 0), default=(0.0, None))[1]


def by_tpe(optuna: ModuleType, drawn: World, cycles: int, seed: int) -> str | None:
    """Optuna's TPE with its defaults: levels are categories, limits constraints; the answer is its best trial's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: object) -> float:
        choose = trial.suggest_categorical  # type: ignore[attr-defined]
        cell = tuple(choose(axis, list(range(LEVELS))) for axis in ("batch", "threads", "dtype"))
        value, beyond = measured(drawn, NAMES[cell])
        trial.set_user_attr("beyond", beyond)  # type: ignore[attr-defined]
        return value

    limits = {"constraints_func": lambda trial: (trial.user_attrs["beyond"],)} if drawn.limits else {}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, **limits))
    study.optimize(objective, n_trials=cycles)
    tried = [(t.value, t.params) for t in study.trials if t.user_attrs["beyond"] <= 0]
    if not tried:
        return None
    params = min(tried, key=lambda pair: pair[0])[1]
    return NAMES[params["batch"], params["threads"], params["dtype"]]


def row(name: str, tallies: list[Tally]) -> str:
    """A line of the table of races."""
    held = [one for tally in tallies for one in tally.held]
    bounded = [one for tally in tallies for one in tally.bounded]
    status: Counter[str] = sum((tally.status for tally in tallies), Counter())
    shares = " / ".join(f"{100 * status[name] / len(held):.0f}" for name in ("found", "undecided", "infeasible"))
    time_taken = fmean(one for tally in tallies for one in tally.time)
    size = fmean(one for tally in tallies for one in tally.size)
    bound = f"{fmean(bounded):.1%}" if bounded else "-"
    return f"| {name} | {fmean(held):.1%} | {bound} | {time_taken:.0%} | {size:.1f} | {shares} % |"


def compared(tallies: list[Tally]) -> list[str]:
    """The table of the race and the searches, over all landscapes with a feasible setting."""
    lines = [
        "| | returns the best | regret, mean | regret, 95th percentile | breaks a limit, or none |",
        "|---|---|---|---|---|",
    ]
    for who, shown in (("race", "race"), ("TPE", "Optuna's TPE"), ("random", "random search")):
        found = [one for tally in tallies for one in tally.found[who]]
        if not found:
            continue
        kept = sorted(one for one in found if one is not None)
        best = sum(one == 0 for one in kept) / len(found)
        high = kept[int(0.95 * (len(kept) - 1))]
        bad = 1 - len(kept) / len(found)
        lines.append(f"| {shown} | {best:.0%} | {fmean(kept):.2%} | {high:.1%} | {bad:.1%} |")
    return lines


def few_settings(seeds: int, only: str, *, write_docs: bool) -> list[str]:
    """Print the table of few settings and cycles. Those in which the best or the bound held less often than stated."""
    lines, low = ["| landscape | best in the set | regret in its bound |", "|---|---|---|"], []
    for name in (name for name in FEW if only in name):
        tally = raced(name, range(seeds), 0, None)
        held, bounded = fmean(tally.held), fmean(tally.bounded) if tally.bounded else 1.0
        lines.append(f"| {name} | {held:.1%} | {bounded:.1%} |")
        print(lines[-1], flush=True)
        low += [name] if min(held, bounded) < OVERALL - LUCK * (OVERALL * (1 - OVERALL) / seeds) ** 0.5 else []
    if write_docs:
        write_figures("few", "\n".join(lines), PAGE)
    return low


def _optuna() -> ModuleType:
    try:
        return importlib.import_module("optuna")
    except ImportError:
        sys.exit("optuna is not installed: pip install optuna, or --search-seeds 0")


def main() -> int:
    """Print both tables, and fail where a race promises more than it keeps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--few-seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--search-seeds", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    optuna = _optuna() if options.search_seeds else None
    seeds = range(options.first, options.first + options.seeds)
    tallies = {}
    lines = list(HEAD)
    print("\n".join(lines), flush=True)
    for name in LANDSCAPES:
        if options.only in name:
            tallies[name] = raced(name, seeds, options.search_seeds, optuna)
            lines.append(row(name, [tallies[name]]))
            print(lines[-1], f"{1000 * tallies[name].seconds / options.seeds:.0f} ms", flush=True)
    every = list(tallies.values())
    low = few_settings(options.few_seeds, options.only, write_docs=options.write_docs)
    if not every:
        return int(bool(low))
    lines.append(row("**all**", every))
    searched = compared(every) if options.search_seeds else []
    print(lines[-1], *searched, sep="\n")
    if options.write_docs:
        write_figures("landscapes", "\n".join(lines), PAGE)
        write_figures("searches", "\n".join(searched), PAGE)
    low += [
        name
        for name, tally in tallies.items()
        if fmean(tally.held) < EACH or (tally.bounded and fmean(tally.bounded) < EACH)
    ]
    held = fmean(one for tally in every for one in tally.held)
    spent = fmean(one for tally in every for one in tally.time)
    if low or held < OVERALL or spent > TIME:
        print(f"FAILED: {held:.1%} held, {spent:.1%} of the time; low in {', '.join(low) or 'none'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
