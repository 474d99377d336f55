"""Synthetic landscapes for a race: true costs that are known, and cycles that scatter about them.

`LANDSCAPES` are thirty of 64 settings, `FEW` some of a few equal ones.

`tests/benchmarks/optimize_landscapes.py` races over all of them, a unit test over a few. A landscape draws a new world
for every seed; what makes it hard is in its function.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_llem.results.racing.answer import Seen, Setting
from pytest_llem.study.limits import Budget
from pytest_llem.study.optimize import Optimize

COST, LATENCY, ACCURACY = "joules_per_output_token", "ttft_p99_s", "accuracy"
LEVELS, CYCLES, QUESTIONS = 4, 10, 500
CELLS = [(a, b, c) for a in range(LEVELS) for b in range(LEVELS) for c in range(LEVELS)]
NAMES = {cell: f"b{cell[0]}t{cell[1]}d{cell[2]}" for cell in CELLS}
SLOW = Budget(LATENCY, "<=", 1.0)
RIGHT = Budget(ACCURACY, ">=", 0.6)


@dataclass
class World:
    """True costs as logarithms, and how cycles come out; a cycle is drawn when it is asked for."""

    rng: random.Random
    cost: dict[str, float]
    scatter: dict[str, float]
    latency: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    latency_scatter: float = 0.03
    noise: Callable[[random.Random], float] = lambda rng: rng.gauss(0, 1)
    drift: Callable[[float], float] = lambda cycle: 0.0
    early: Callable[[str, int], float] = lambda name, cycle: 0.0
    carried: float = 0.0
    own_error: float = 0.0
    failing: float = 0.0
    broken: frozenset[str] = frozenset()
    digits: int = 12
    cycles: int = CYCLES
    measured: list[str] = field(default_factory=list)
    offset: dict[str, float] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> list[Setting]:
        """The settings with their levels."""
        cells = [cell for cell in CELLS if NAMES[cell] in self.cost]
        return [Setting(NAMES[cell], dict(zip(("batch", "threads", "dtype"), cell, strict=True))) for cell in cells]

    @property
    def limits(self) -> tuple[Budget, ...]:
        """The limits of this world."""
        return (SLOW,) * bool(self.latency) + (RIGHT,) * bool(self.accuracy)

    @property
    def goal(self) -> Optimize:
        """What is asked."""
        return Optimize(COST, self.limits, max_cycles=self.cycles)

    def feasible(self, name: str) -> bool:
        """Whether a setting truly keeps all limits, and can be measured."""
        if name in self.broken or self.latency.get(name, 0.0) > math.log(SLOW.limit):
            return False
        return self.accuracy.get(name, 1.0) >= RIGHT.limit

    @property
    def best(self) -> str | None:
        """The truly best setting; `None` where none is feasible."""
        return min(filter(self.feasible, self.cost), key=self.cost.__getitem__, default=None)

    def seen(self, name: str, cycle: int) -> Seen:
        """One cycle, at a moment of its round that is drawn, after another setting that is drawn."""
        rng = self.rng
        if name in self.broken or (self.failing and rng.random() < self.failing):
            self.measured.append(name)
            return Seen(None, failed="out of memory")
        if self.own_error and name not in self.offset:
            self.offset[name] = rng.gauss(0, self.own_error)
        value = self.cost[name] + self.offset.get(name, 0.0) + self.scatter[name] * self.noise(rng)
        value += self.drift(cycle - 1 + rng.random()) + self.early(name, cycle)
        if self.carried:
            before = self.measured[rng.randrange(-min(len(self.measured), len(CELLS)), 0)] if self.measured else name
            value -= self.carried * (self.cost[before] - self.cost[name])
        self.measured.append(name)
        limited: dict[str, float | None] = {}
        if self.latency:
            limited[LATENCY] = math.exp(self.latency[name] + self.latency_scatter * rng.gauss(0, 1))
        questions = None
        if self.accuracy:
            if name not in self.right:
                self.right[name] = sum(rng.random() < self.accuracy[name] for _ in range(QUESTIONS))
            limited[ACCURACY] = self.right[name] / QUESTIONS
            questions = (self.right[name], QUESTIONS)
        shown = float(f"{math.exp(value):.{self.digits}g}")
        return Seen(shown, limited, own_error_rel=self.own_error, questions=questions)


def plain(rng: random.Random, *, interactions: float = 0.05, scatter: float = 0.015) -> World:
    """Effects of three axes, and interactions between all of them."""
    effects = [[rng.uniform(0, width) for _ in range(LEVELS)] for width in (1.0, 0.5, 0.4)]
    cost = {
        NAMES[cell]: sum(effect[level] for effect, level in zip(effects, cell, strict=True))
        + rng.gauss(0, interactions)
        for cell in CELLS
    }
    return World(rng, cost, dict.fromkeys(cost, scatter))


def moved_apart(world: World, gap: float, count: int = 1) -> World:
    """The same with `count` settings behind the best, evenly within `gap`, and all others behind these."""
    first, *others = sorted(world.cost, key=world.cost.__getitem__)
    lead = world.cost[first]
    for place, name in enumerate(others, 1):
        if place <= count:
            world.cost[name] = lead + gap * place / count
        else:
            world.cost[name] = max(world.cost[name], lead + gap + 0.05)
    return world


def ranked(world: World) -> list[str]:
    """The settings, cheapest first."""
    return sorted(world.cost, key=world.cost.__getitem__)


def unstructured(rng: random.Random) -> World:
    world = plain(rng)
    world.cost = {name: rng.uniform(0, 1.2) for name in world.cost}
    return world


def valley(rng: random.Random) -> World:
    """A narrow valley across all axes: the best level of one depends on those of the others."""
    world = plain(rng)
    turn = rng.uniform(0.5, 1.5)
    for a, b, c in CELLS:
        world.cost[NAMES[a, b, c]] = 0.25 * (a - turn * b) ** 2 + 0.12 * (b + c - 3) ** 2 + rng.gauss(0, 0.03)
    return world


def saturating(rng: random.Random) -> World:
    """Joules per token over the batch size: most is gained by the first steps, and less by each further one."""
    world = plain(rng)
    for a, b, c in CELLS:
        rest = 0.15 * abs(b - 2) + 0.2 * c + rng.gauss(0, 0.02)
        world.cost[NAMES[a, b, c]] = math.log(0.3 + 2.0 ** -(1.5 * a)) + rest
    return world


def cliff(rng: random.Random) -> World:
    """Beyond a sum of levels memory is short and the cost triples."""
    world = plain(rng)
    for cell in CELLS:
        world.cost[NAMES[cell]] += -0.15 * cell[0] + (1.1 if sum(cell) > 5 else 0.0)
    return world


def beside_a_cliff(rng: random.Random) -> World:
    """The cost falls up to the edge, and the best setting is the last before it."""
    world = plain(rng)
    for cell in CELLS:
        steps = sum(cell)
        world.cost[NAMES[cell]] = -0.12 * steps + rng.gauss(0, 0.03) + (0.8 if steps > 6 else 0.0)
    return world


def near_tie(rng: random.Random) -> World:
    return moved_apart(plain(rng), 0.005)


def near_ties(rng: random.Random) -> World:
    return moved_apart(plain(rng), 0.01, 5)


def plateau(rng: random.Random) -> World:
    return moved_apart(plain(rng), 0.002, 11)


def needle(rng: random.Random) -> World:
    """One setting is a tenth better than all others, which differ by a percent."""
    world = plain(rng)
    world.cost = {name: rng.uniform(0, 0.01) for name in world.cost}
    world.cost[rng.choice(list(world.cost))] = -0.11
    return world


def half_flat(rng: random.Random) -> World:
    """Two axes change next to nothing."""
    world = plain(rng)
    effect = [rng.uniform(0, 0.8) for _ in range(LEVELS)]
    world.cost = {NAMES[cell]: effect[cell[0]] + rng.uniform(0, 0.03) for cell in CELLS}
    return world


def infeasible_corner(rng: random.Random) -> World:
    """Large batches are cheap, and far too slow."""
    world = plain(rng)
    for cell in CELLS:
        name = NAMES[cell]
        world.cost[name] -= 0.25 * cell[0]
        world.latency[name] = -1.2 + 0.5 * cell[0] + 0.1 * cell[1] + rng.gauss(0, 0.05)
    return world


def limit_through_the_optimum(rng: random.Random) -> World:
    """What is cheaper is slower, and the limit lies where the cost is still falling."""
    world = plain(rng)
    for name in world.cost:
        world.latency[name] = -0.9 * world.cost[name] + rng.gauss(0, 0.05)
    level = sorted(world.latency.values())[40]
    world.latency = {name: value - level - 0.02 for name, value in world.latency.items()}
    return world


def on_the_limit(rng: random.Random) -> World:
    """The best setting keeps the limit by one percent, a third of a cycle's scatter; cheaper ones break it by two."""
    world = infeasible_corner(rng)
    best = world.best
    assert best is not None
    world.latency[best] = -0.01
    for name in ranked(world):
        if world.cost[name] < world.cost[best]:
            world.latency[name] = max(world.latency[name], 0.02)
    return world


def accuracy_near(rng: random.Random) -> World:
    """The data type of the best setting is right a point above the limit, and a cheaper one a point below."""
    world = plain(rng)
    for cell in CELLS:
        world.cost[NAMES[cell]] -= 0.2 * cell[2]
        world.accuracy[NAMES[cell]] = (0.75, 0.70, 0.61, 0.59)[cell[2]]
    return world


def two_limits(rng: random.Random) -> World:
    """Large batches are too slow, and the cheapest data type answers wrong."""
    world = infeasible_corner(rng)
    for cell in CELLS:
        world.cost[NAMES[cell]] -= 0.15 * cell[2]
        world.accuracy[NAMES[cell]] = (0.75, 0.74, 0.70, 0.40)[cell[2]]
    return world


def nothing_feasible(rng: random.Random) -> World:
    world = infeasible_corner(rng)
    world.latency = {name: abs(value) + 0.4 for name, value in world.latency.items()}
    return world


def drifting(rng: random.Random) -> World:
    """A tenth worse from the first cycle to the last, and that within rounds as well."""
    world = plain(rng)
    world.drift = lambda cycle: 0.01 * cycle
    return world


def cold_start(rng: random.Random) -> World:
    """The first rounds are measured on a machine that is not warm yet."""
    world = plain(rng)
    world.drift = lambda cycle: 0.1 * math.exp(-cycle)
    return world


def carry_over(rng: random.Random) -> World:
    """A setting's figure is moved by how much the one before it heated the machine: by up to five percent."""
    world = plain(rng)
    world.carried = 0.03
    return world


def scatter_by_axis(rng: random.Random) -> World:
    """Few threads scatter by 0.5 %, many by 6 %."""
    world = plain(rng)
    world.scatter = {NAMES[cell]: (0.005, 0.01, 0.025, 0.06)[cell[1]] for cell in CELLS}
    return world


def best_scatters(rng: random.Random) -> World:
    """The best setting scatters ten times as much as all others."""
    world = moved_apart(plain(rng), 0.03, 3)
    world.scatter[ranked(world)[0]] *= 10
    return world


def rivals_scatter(rng: random.Random) -> World:
    """Eight settings, a little worse than the best, scatter ten times as much as all others."""
    world = moved_apart(plain(rng), 0.1, 8)
    for name in ranked(world)[1:9]:
        world.scatter[name] *= 10
    return world


def uneven(fold: float, *places: int) -> Callable[[random.Random], World]:
    """The settings at these places scatter `fold` times as much as all others."""

    def drawn(rng: random.Random) -> World:
        world = plain(rng)
        for name in [list(world.cost)[place] for place in places]:
            world.scatter[name] *= fold
        return world

    return drawn


def heavy_tails(rng: random.Random) -> World:
    """Student's t with three degrees of freedom: a fiftieth of the cycles are off by more than three scatters."""
    world = plain(rng)
    world.noise = lambda drawn: drawn.gauss(0, 1) / math.sqrt(drawn.gammavariate(1.5, 2.0) / 3)
    return world


def outliers(rng: random.Random) -> World:
    """Every twentieth cycle is 15 to 60 % worse."""
    world = plain(rng)
    world.noise = lambda drawn: drawn.gauss(0, 1) + (drawn.uniform(10, 40) if drawn.random() < 0.05 else 0.0)
    return world


def failures(rng: random.Random) -> World:
    """A cycle in ten fails, and five settings never work, the cheapest among them."""
    world = plain(rng)
    world.failing = 0.1
    world.broken = frozenset([ranked(world)[0], *rng.sample(list(world.cost), 4)])
    return world


def starts_badly(rng: random.Random) -> World:
    """The best setting needs three cycles until it is warm: a quarter worse, then a tenth, then a thirtieth."""
    world = plain(rng)
    best = world.best
    world.early = lambda name, cycle: 0.25 * 0.4 ** (cycle - 1) if name == best else 0.0
    return world


def decoys(rng: random.Random) -> World:
    """The best setting's first cycle is a tenth worse than it is, and that of the ten next ones a tenth better."""
    world = plain(rng)
    best, *near = ranked(world)[:11]
    world.early = lambda name, cycle: 0.0 if cycle > 1 else 0.1 if name == best else -0.1 if name in near else 0.0
    return world


def unsettled(rng: random.Random) -> World:
    """Early rounds are biased, the more the larger the batch: by up to 12 %, half of that in the second round."""
    world = plain(rng)
    levels = {NAMES[cell]: cell[0] for cell in CELLS}
    world.early = lambda name, cycle: 0.04 * levels[name] * 0.5 ** (cycle - 1)
    return world


def own_meters(rng: random.Random) -> World:
    """Each setting has a meter of its own, with a standard uncertainty of 1 % that no cycle averages out."""
    world = plain(rng)
    world.own_error = 0.01
    return world


def few(count: int, cycles: int, noise: Callable[[random.Random], World]) -> Callable[[random.Random], World]:
    """A few equal settings and cycles, with a landscape's noise: nothing protects the best but the bound itself."""

    def drawn(rng: random.Random) -> World:
        world = noise(rng)
        world.cost, world.cycles = dict.fromkeys(list(world.cost)[:count], 0.0), cycles
        return world

    return drawn


LANDSCAPES: dict[str, Callable[[random.Random], World]] = {
    "interactions": plain,
    "no structure at all": unstructured,
    "narrow valley": valley,
    "saturating": saturating,
    "cliff": cliff,
    "optimum beside a cliff": beside_a_cliff,
    "a second one 0.5 % behind": near_tie,
    "five within 1 %": near_ties,
    "plateau of 12 within 0.2 %": plateau,
    "needle": needle,
    "two axes that hardly matter": half_flat,
    "infeasible corner": infeasible_corner,
    "limit through the optimum": limit_through_the_optimum,
    "optimum 1 % within its limit": on_the_limit,
    "accuracy, a point from its limit": accuracy_near,
    "two limits": two_limits,
    "nothing feasible": nothing_feasible,
    "drift over the run": drifting,
    "cold start": cold_start,
    "thermal carry-over": carry_over,
    "scatter by axis, 0.5 to 6 %": scatter_by_axis,
    "the best scatters tenfold": best_scatters,
    "eight rivals scatter tenfold": rivals_scatter,
    "heavy tails": heavy_tails,
    "outliers": outliers,
    "failing cycles and settings": failures,
    "adversarial: the best starts badly": starts_badly,
    "adversarial: decoys start well": decoys,
    "early bias along one axis": unsettled,
    "meters of their own, 1 %": own_meters,
}
FEW_NOISES: dict[str, Callable[[random.Random], World]] = {
    "alike": plain,
    "heavy tails": heavy_tails,
    "outliers": outliers,
    "the best scatters tenfold": uneven(10, 0),
    "a rival scatters tenfold": uneven(10, 1),
    "a rival scatters thirtyfold": uneven(30, 1),
    "two rivals scatter tenfold": uneven(10, 1, 2),
    "three rivals scatter thirtyfold": uneven(30, 1, 2, 3),
}
FEW: dict[str, Callable[[random.Random], World]] = {
    f"{count} settings, {cycles} cycles, {said}": few(count, cycles, noise)
    for count in (2, 3, 6, 12)
    for cycles in (2, 3)
    for said, noise in FEW_NOISES.items()
    if count > 3 or not said.startswith(("two", "three"))
}
"""Equal settings, of which one is called the best: where few cycles tell of it, and the whole error is at stake."""
