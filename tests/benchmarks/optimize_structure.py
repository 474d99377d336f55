"""How often a race with a declared structure holds the best setting, what it costs, and what it says where it is false.

    python -m tests.benchmarks.optimize_structure [--seeds N] [--only NAME] [--write-docs]

Simulated studies of 200 settings (5 x 5 x 4 x 2) and at most 10 cycles, whose true figures are known. Each seed draws
effects, noise and drift anew. docs/optimize.md has the figures.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_llem.results.racing.answer import Seen, Setting
from pytest_llem.results.racing.racing import race
from pytest_llem.study.limits import Budget
from pytest_llem.study.optimize import Optimize
from tests.figures import write_figures

GRID = {"batch": (1, 2, 4, 8, 16), "threads": (1, 2, 4, 8, 16), "dtype": ("a", "b", "c", "d"), "cache": ("on", "off")}
DIMENSIONS = tuple(map(len, GRID.values()))
PLACES = tuple(itertools.product(*map(range, DIMENSIONS)))
CYCLES = 10
COST, LATENCY = "joules_per_output_token", "ttft_p99_s"
PAGE = Path(__file__).parents[2] / "docs" / "optimize.md"
Place = tuple[int, ...]
Figures = dict[Place, float]


@dataclass(frozen=True)
class Landscape:
    """True logarithms of cost and latency by place; `within` is the share of settings that keep the limit."""

    cost: Figures
    latency: Figures | None = None
    within: float = 1.0
    noise: float = 0.01
    drift: float = 0.01
    uneven: float = 1.0
    meter: float = 0.0


Drawn = Callable[[random.Random], Landscape]


def sums(drawn: random.Random, most: float = 0.6) -> list[list[float]]:
    """Effects of each level of each axis."""
    return [[drawn.uniform(0, most) for _ in range(count)] for count in DIMENSIONS]


def added(effects: Sequence[Sequence[float]]) -> Figures:
    """Their sum at each place."""
    return {place: sum(each[at] for each, at in zip(effects, place, strict=True)) for place in PLACES}


def plain(drawn: random.Random) -> Landscape:
    """Effects of up to 80 %."""
    return Landscape(added(sums(drawn)))


def near_ties(drawn: random.Random) -> Landscape:
    """Levels one percent apart."""
    effects = [[0.01 * at for at in drawn.sample(range(count), count)] for count in DIMENSIONS]
    return Landscape(added(effects))


def no_effect(drawn: random.Random) -> Landscape:
    """An axis that does nothing, and one whose levels differ by half a percent."""
    effects = sums(drawn)
    effects[2] = [0.0] * DIMENSIONS[2]
    effects[0] = [0.005 * at for at in drawn.sample(range(DIMENSIONS[0]), DIMENSIONS[0])]
    return Landscape(added(effects))


def opposed(drawn: random.Random) -> Landscape:
    """A latency that rises where the cost falls."""
    effects = sums(drawn)
    slower = [[-each * drawn.uniform(0.5, 1.5) + drawn.gauss(0, 0.05) for each in axis] for axis in effects]
    return Landscape(added(effects), added(slower), within=drawn.uniform(0.2, 0.8))


def at_the_best(drawn: random.Random) -> Landscape:
    """Two levels that together cost 30 % less than their sum, and hold the best."""
    cost = plain(drawn).cost
    batch, threads = drawn.randrange(5), drawn.randrange(5)
    least = min(cost.values())
    gained = least - min(c for place, c in cost.items() if place[:2] == (batch, threads)) - 0.1
    return Landscape({p: c + min(gained, -0.36) * (p[:2] == (batch, threads)) for p, c in cost.items()})


def spike(drawn: random.Random) -> Landscape:
    """One setting of the 200 that costs 10 % less than any other."""
    cost = plain(drawn).cost
    return Landscape({**cost, drawn.choice(PLACES): min(cost.values()) - 0.1})


def mild(drawn: random.Random) -> Landscape:
    """Every setting 2 % beside the sum."""
    return Landscape({place: c + drawn.gauss(0, 0.02) for place, c in plain(drawn).cost.items()})


def bottleneck(drawn: random.Random) -> Landscape:
    """The slower of two parts decides: a maximum of effects instead of a sum."""
    first, second, *others = sums(drawn, 1.0)
    rest = added([[0.0] * len(first), [0.0] * len(second), *others])
    return Landscape({p: max(first[p[0]], second[p[1]]) + rest[p] for p in PLACES})


ADDITIVE: Mapping[str, Drawn] = {
    "effects of up to 80 %": plain,
    "levels 1 % apart": near_ties,
    "an axis without effect": no_effect,
    "noise 3 %": lambda drawn: replace(plain(drawn), noise=0.03),
    "drift 5 % a round": lambda drawn: replace(plain(drawn), drift=0.05),
    "settings scatter by 0.5 to 2 %": lambda drawn: replace(plain(drawn), uneven=2.0),
    "latency limit": opposed,
    "latency limit, noise 3 %": lambda drawn: replace(opposed(drawn), noise=0.03),
}
NOT_ADDITIVE: Mapping[str, Drawn] = {
    "interaction of two axes at the best": at_the_best,
    "bottleneck: the maximum of two effects": bottleneck,
    "every setting 2 % beside the sum": mild,
    "one setting of 200 is 10 % better than all": spike,
}


def directed(drawn: random.Random, most: float = 0.6, *, axes: int = 2) -> list[list[float]]:
    """Effects that only rise or only fall along the first axes, and are as they are along the others."""
    effects = sums(drawn, most)
    for axis in range(axes):
        effects[axis].sort(reverse=drawn.random() < 0.5)
    return effects


def directions(drawn: random.Random) -> Figures:
    """Figures that only rise or only fall along the first two axes, in a direction of each other value's own."""
    rest = added([[0.0] * 5, [0.0] * 5, *sums(drawn)[2:]])
    made: Figures = {}
    for tail in itertools.product(*map(range, DIMENSIONS[2:])):
        effects = directed(drawn)
        weight = drawn.uniform(0.5, 2.0)
        for place in PLACES:
            if place[2:] == tail:
                first, second = effects[0][place[0]], effects[1][place[1]]
                made[place] = rest[place] + first + second + weight * first * second
    return made


def traded(drawn: random.Random) -> Landscape:
    """A latency that rises where the cost falls, along both numbers."""
    effects = directed(drawn)
    slower = [[-each * drawn.uniform(0.7, 1.5) for each in axis] for axis in effects]
    slower[:2] = [sorted(new, reverse=old[0] < old[-1]) for new, old in zip(slower[:2], effects[:2], strict=True)]
    return Landscape(added(effects), added(slower), within=drawn.uniform(0.2, 0.8))


def flattening(drawn: random.Random) -> Landscape:
    """Gains that halve from level to level, as of a batch that fills a device."""
    effects = sums(drawn)
    for axis in (0, 1):
        effects[axis] = [0.4 * 0.5**at for at in range(5)]
    return Landscape(added(effects))


def valley(drawn: random.Random) -> Landscape:
    """Least in the middle of an axis of numbers, by 5 to 30 %."""
    effects = directed(drawn)
    low, depth = drawn.randrange(1, 4), drawn.uniform(0.05, 0.3)
    effects[0] = [depth * abs(at - low) for at in range(5)]
    return Landscape(added(effects))


def bump(drawn: random.Random) -> Landscape:
    """One setting between others, which costs 10 % less than any."""
    cost = added(directed(drawn))
    at = (drawn.randrange(1, 4), drawn.randrange(1, 4), drawn.randrange(4), drawn.randrange(2))
    return Landscape({**cost, at: min(cost.values()) - 0.1})


MONOTONE: Mapping[str, Drawn] = {
    "effects of up to 80 %": lambda drawn: Landscape(added(directed(drawn))),
    "directions that differ, interactions": lambda drawn: Landscape(directions(drawn)),
    "gains that flatten out": flattening,
    "noise 3 %": lambda drawn: Landscape(directions(drawn), noise=0.03),
    "latency limit": traded,
    "latency limit, noise 3 %": lambda drawn: replace(traded(drawn), noise=0.03),
}
NOT_MONOTONE: Mapping[str, Drawn] = {
    "least in the middle of an axis": valley,
    "one setting between others is 10 % better than all": bump,
}
Kind = Literal["additive", "monotone"]


@dataclass(frozen=True)
class Outcome:
    """What one race came to."""

    held: bool
    cycles: int
    status: str
    noticed: bool
    wrong: bool


def raced(landscape: Landscape, seed: int, assume: Kind) -> Outcome:
    """A race over the landscape."""
    points = [dict(zip(GRID, levels, strict=True)) for levels in itertools.product(*GRID.values())]
    settings = [Setting("-".join(map(str, point.values())), point) for point in points]
    places = {setting.id: place for setting, place in zip(settings, PLACES, strict=True)}
    drawn = random.Random(f"cycles {seed}")
    shared = [[drawn.gauss(0, landscape.drift) for _ in range(CYCLES + 1)] for _ in range(2)]
    scatter = {place: landscape.noise * landscape.uneven ** drawn.uniform(-1, 1) for place in PLACES}
    asked: list[str] = []
    limit, latency = math.inf, landscape.latency
    if latency is not None:
        ordered = sorted(latency.values())
        at = int(landscape.within * (len(ordered) - 2))
        limit = (ordered[at] + ordered[at + 1]) / 2

    def seen(name: str, cycle: int) -> Seen:
        place = places[name]
        asked.append(name)
        cost = landscape.cost[place] + shared[0][cycle] + drawn.gauss(0, scatter[place])
        if latency is None:
            return Seen(math.exp(cost), own_error_rel=landscape.meter)
        return Seen(
            math.exp(cost),
            {LATENCY: math.exp(latency[place] + drawn.gauss(0, 2 * scatter[place]))},
            own_error_rel=landscape.meter,
            limit_errors_rel={LATENCY: landscape.meter},
        )

    budgets = () if latency is None else (Budget(LATENCY, "<=", math.exp(limit)),)
    answer = race(settings, seen, Optimize(COST, budgets, max_cycles=CYCLES, assume=assume), rounds=CYCLES)
    kept = [place for place in PLACES if latency is None or latency[place] <= limit]
    least = min(landscape.cost[place] for place in kept)
    held = any(landscape.cost[places[name]] < least + 1e-9 and places[name] in kept for name in answer.best)
    wrong = not held
    if answer.status == "found" and answer.recommended is not None and answer.regret_high is not None:
        place = places[answer.recommended]
        regret = math.expm1(landscape.cost[place] - least)
        wrong = wrong or regret > max(answer.regret_high, 1e-9) or place not in kept
    return Outcome(held, len(asked), answer.status, answer.rests_on is None, wrong)


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """A row of the table."""
    count = len(outcomes)
    share = [
        sum(found) / count
        for found in zip(*((o.held, o.status == "found", o.noticed, o.wrong) for o in outcomes), strict=True)
    ]
    cycles = sorted(o.cycles for o in outcomes)
    spent = f"{sum(cycles) / count / len(PLACES) / CYCLES:.1%} ({cycles[count // 2]})"
    told = [f"{share[0]:.1%}", spent, f"{share[1]:.0%}", f"{share[2]:.1%}", f"{share[3]:.1%}"]
    return " | ".join(["", name, f"{count:,}", *(each.replace("%", " %") for each in told), ""]).strip()


HEAD = (
    "| landscape | seeds | best is in the set | of the grid's cycles (median) | certified | refused | wrong |",
    "|---|---|---|---|---|---|---|",
)


def main() -> None:
    """Print a table for each structure, and one where it is declared and false."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--only", default="")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    for part, (assume, landscapes) in PARTS.items():
        if options.only not in part:
            continue
        lines = list(HEAD)
        for name, drawn in landscapes.items():
            outcomes = [raced(drawn(random.Random(f"{name} {s}")), s, assume) for s in range(options.seeds)]
            lines.append(row(name, outcomes))
            print(lines[-1], flush=True)
        if options.write_docs:
            write_figures(f"structure-{part}", "\n".join(lines), PAGE)


PARTS: Mapping[str, tuple[Kind, Mapping[str, Drawn]]] = {
    "additive": ("additive", ADDITIVE),
    "additive-false": ("additive", NOT_ADDITIVE),
    "monotone": ("monotone", MONOTONE),
    "monotone-false": ("monotone", NOT_MONOTONE),
}

if __name__ == "__main__":
    main()
