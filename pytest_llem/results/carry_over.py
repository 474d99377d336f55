"""Whether the experiment that ran before changes the joules of the next one: first-order carry-over, with an interval.

The session asks when a run has ended, for its summary, and the report asks again. What counts is what was really
measured one after another on a device, in whatever order that was meant to be.

Method
    The logarithm of a cycle's figure is the sum of its experiment's level, its round's (the cycle's number, which takes
    slow drift), its device's, an effect of the experiment that ran before, and scatter: the model of cross-over trials
    (B. Jones and M. G. Kenward, "Design and Analysis of Cross-Over Trials", 3rd edition, 2014, chapter 5), by least
    squares. Effects of the experiments that ran before sum to zero: each is against the average of them.

    The intervals hold for all of them together in 95 % of studies (Student's t, Bonferroni), so that carry-over is
    found exactly where one of them leaves out zero, and in 5 % of studies or fewer where there is none.

    That must hold where an experiment scatters more than others. So an effect's variance is the larger of two: by one
    variance for all, and by each experiment's own (its squared residuals over their expectation at even scatter), whose
    degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946, 110). tests/benchmarks/carry_over.py counts.

    Orders do not tell it alike. In `interleaved` each experiment has the same predecessor throughout, and in
    `sequential` itself: effects then cannot be told from levels, and that is said. A cycle counts where its predecessor
    is known: not the first on a device, nor one behind a cycle that failed, that confirmed a gate, or that is of
    another study. A retried cycle has itself as predecessor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import mul
from pathlib import Path
from statistics import fmean
from typing import Literal

from pytest_llem.results.device_optimum import judged_by
from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.manifest import Manifest
from pytest_llem.results.metrics import metric
from pytest_llem.results.schema import Result
from pytest_llem.results.state import read_state

ALPHA = 0.05
"""Chosen: the field's convention, as of every interval here; for all predecessors of a study together."""
LEAST_DEGREES = 4
"""Chosen: with fewer, scatter is known so badly that an interval says nothing."""
MOST_TERMS = 160
"""Chosen: solving for so many takes half a second, at the end of a run that took hours."""
WIDEST = 300.0
"""Half an interval of a logarithm, at most: one degree of freedom gives any width, and this is still a number."""
DEPENDENT = 1e-9
"""Chosen: what is left of a column that others explain, far above the error of double precision."""
STAMP = timedelta(seconds=1)
"""States are stamped in whole seconds."""


@dataclass(frozen=True)
class CycleMark:
    """When and where a cycle was measured, and its figure; `value` is `None` where that may not be used."""

    study: str
    experiment: str
    cycle: int
    attempt: int
    devices: tuple[str, ...]
    began: datetime
    ended: datetime
    value: float | None


@dataclass(frozen=True)
class Follower:
    """A cycle's figure, with the experiment that ran before it on the same device."""

    experiment: str
    cycle: int
    devices: tuple[str, ...]
    after: str
    value: float


@dataclass(frozen=True)
class After:
    """What the next one's figure is after an experiment, over that after the average one, with its interval."""

    experiment_id: str
    ratio: float
    low: float
    high: float

    @property
    def found(self) -> bool:
        """Whether the interval leaves out no change."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True)
class CarryOver:
    """What a study's run tells of carry-over in `metric`: `each` experiment as predecessor, the largest effect first.

    `cycles` counts those with a known predecessor, `degrees` is of their scatter. Where the order or their number tells
    nothing, `state` is `unknown` and the `sentence` says why.
    """

    study: str
    run: str
    metric: str
    state: Literal["found", "not found", "unknown"]
    cycles: int
    degrees: int | None
    each: tuple[After, ...]
    sentence: str


def mark(result: Result, manifest: Manifest) -> CycleMark | None:
    """What counts of a result; `None` for one that was not measured in its run, or does not say when."""
    if result.source_run is not None or result.measured_from is None or result.measured_to is None:
        return None
    node = result.runner.facts.get("node")
    devices = result.runner.device_ids or (
        str(node.get("id")) if isinstance(node, dict) else result.runner.device_kind,
    )
    # The windows of a search do other work each.
    usable = result.validity.valid and result.search is None
    value = metric(_measure(result.study, manifest)).of(result) if usable else None
    began, ended = map(datetime.fromisoformat, (result.measured_from, result.measured_to))
    return CycleMark(result.study, result.experiment.id, result.cycle, result.attempt, devices, began, ended, value)


def _measure(study: str, manifest: Manifest) -> str:
    return judged_by(next((plan.headline for plan in manifest.studies if plan.name == study), None))


def carry_overs(run_dir: Path, manifest: Manifest, marks: Iterable[CycleMark | None]) -> list[CarryOver]:
    """What a run tells of carry-over, for each of its studies of two experiments or more."""
    followers: dict[str, list[Follower]] = {}
    known = sorted((each for each in marks if each is not None), key=lambda each: each.began)
    for study, follower in _followers(known, _disturbances(run_dir, manifest)):
        followers.setdefault(study, []).append(follower)
    several = {study: each for study, each in followers.items() if len({one.experiment for one in each}) > 1}
    return [_judged(study, manifest.run_id, _measure(study, manifest), each) for study, each in several.items()]


def _disturbances(run_dir: Path, manifest: Manifest) -> list[datetime]:
    """When cycles ended that came between others without a result of their own."""
    without = [item for item in manifest.items if item.state in ("failed", "crashed", "interrupted")]
    states = [read_state(run_dir / item.directory) for item in (*without, *manifest.confirming)]
    return [datetime.fromisoformat(state.changed_at) for state in states if state is not None]


def _followers(marks: Iterable[CycleMark], disturbed: Sequence[datetime]) -> Iterator[tuple[str, Follower]]:
    last: dict[str, CycleMark] = {}
    for one in marks:
        before = {last.get(device) for device in one.devices}
        previous = before.pop() if len(before) == 1 else None
        if one.attempt > 1:
            previous = one
        elif previous is not None:
            since = previous.ended - STAMP
            known = not any(since <= moment <= one.began for moment in disturbed)
            previous = previous if known and previous.study == one.study else None
        last |= dict.fromkeys(one.devices, one)
        if previous is not None and one.value is not None and one.value > 0:
            yield one.study, Follower(one.experiment, one.cycle, one.devices, previous.experiment, one.value)


def _judged(study: str, run: str, measure: str, followers: Sequence[Follower]) -> CarryOver:
    found = effects_of_predecessors(followers)
    count = len(followers)
    if isinstance(found, str):
        said = f"carry-over in {measure} is not known: {found}"
        return CarryOver(study, run, measure, "unknown", count, None, (), said)
    each, degrees = found
    told = [after for after in each if after.found]
    if told:
        effects = "; ".join(f"after {after.experiment_id} it is {_percent(after)}" for after in told)
        said = (
            f"carry-over in {measure}: {effects}, against after the average experiment (95 % for all together, "
            f"{count} cycles)"
        )
        return CarryOver(study, run, measure, "found", count, degrees, each, said)
    most = max(max(after.high - 1, 1 - after.low) for after in each)
    said = (
        f"no carry-over found in {measure}: what ran before changes it by less than {100 * most:.2g} % (95 %, "
        f"{count} cycles)"
    )
    return CarryOver(study, run, measure, "not found", count, degrees, each, said)


def _percent(after: After) -> str:
    low, high = 100 * (after.low - 1), 100 * (after.high - 1)
    return f"{100 * (after.ratio - 1):+.1f} % ({low:+.1f} to {high:+.1f} %)"


def effects_of_predecessors(followers: Sequence[Follower]) -> tuple[tuple[After, ...], int] | str:
    """The effect of each predecessor, the surest first, and the degrees of freedom; a sentence where nothing tells."""
    names = list(dict.fromkeys(one.after for one in followers))
    if len(names) < 2:
        return "all cycles have the same predecessor"
    columns: dict[tuple[str, object], int] = {}
    rows: list[dict[int, float]] = []
    for one in followers:
        terms = (("experiment", one.experiment), ("cycle", one.cycle), ("devices", one.devices))
        rows.append({columns.setdefault(term, len(columns)): 1.0 for term in terms})
    levels, size = len(columns), len(columns) + len(names) - 1
    if size > MOST_TERMS:
        return f"{size} terms are more than {MOST_TERMS}: compare fewer experiments"
    for one, row in zip(followers, rows, strict=True):
        place = names.index(one.after)
        last = place == len(names) - 1  # the effects sum to zero
        row |= dict.fromkeys(range(levels, size), -1.0) if last else {levels + place: 1.0}
    logs = [math.log(one.value) for one in followers]
    mean = fmean(logs)
    products = [[0.0] * (size + 1) for _ in range(size + 1)]
    for row, value in zip(rows, logs, strict=True):
        entries = [*row.items(), (size, value - mean)]
        for one_at, left in entries:
            for other, right in entries:
                products[one_at][other] += left * right
    least = [DEPENDENT * products[at][at] for at in range(size)]
    independent = [at for at in range(levels) if _eliminate(products, at, least[at])]
    block = [row[levels:size] for row in products[levels:size]]
    target = [row[size] for row in products[levels:size]]
    degrees = len(followers) - len(independent) - len(block)
    inverse = _inverse(block, least[levels:])
    if inverse is None:
        return (
            f"{len(followers)} cycles in this order do not tell it from levels and drift; more valid cycles in "
            "execution.order: balanced do, of three experiments or more"
        )
    if degrees < LEAST_DEGREES:
        return f"{len(followers)} cycles after a known one are too few; measure more"
    effects = [sum(map(mul, row, target)) for row in inverse]
    roots = {at: math.sqrt(products[at][at]) for at in independent}
    means = [products[at][size] / root for at, root in roots.items()]
    solved = [_solved(at, products, roots, levels) for at in range(levels)]
    scatter = {one.experiment: _Residuals([0.0] * len(names)) for one in followers}
    for one, row, value in zip(followers, rows, logs, strict=True):
        sums = [sum(each) for each in zip(*(solved[at] for at in row if at < levels), strict=True)]
        explained = sums[: len(roots)]
        rest = [value + row.get(at, 0.0) for at, value in enumerate(sums[len(roots) :], levels)]
        parts = [sum(map(mul, of, rest)) for of in inverse]
        own = scatter[one.experiment]
        own.degrees += 1 - sum(map(mul, explained, explained)) - sum(map(mul, parts, rest))
        own.squares += (value - mean - sum(map(mul, explained, means)) - sum(map(mul, effects, rest))) ** 2
        own.weights = [weight + part**2 for weight, part in zip(own.weights, [*parts, -sum(parts)], strict=True)]
    comparisons = len(names) if len(names) > 2 else 1  # of two, one is the other's opposite
    found = []
    for place, (name, effect) in enumerate(zip(names, [*effects, -sum(effects)], strict=True)):
        variance, known = _variance(place, list(scatter.values()), degrees)
        half = min(WIDEST, student_quantile(1 - ALPHA / 2 / comparisons, known) * math.sqrt(variance))
        found.append(After(name, math.exp(effect), math.exp(effect - half), math.exp(effect + half)))
    return tuple(sorted(found, key=_surest, reverse=True)), degrees


def _surest(after: After) -> float:
    """An effect over half its interval."""
    half = math.log(after.high / after.low)
    return abs(math.log(after.ratio)) / half if half else math.inf


@dataclass
class _Residuals:
    """Of an experiment: their weights in the variance of each effect, sum of squares, and degrees."""

    weights: list[float]
    squares: float = 0.0
    degrees: float = 0.0


def _variance(place: int, scatter: Sequence[_Residuals], degrees: int) -> tuple[float, float]:
    """An effect's variance and its degrees of freedom: by the scatter of all, or by each one's own if that is more."""
    common = sum(own.squares for own in scatter) / degrees
    variance = weights = spread = 0.0
    for own in scatter:
        told = own.degrees > DEPENDENT
        part = own.weights[place] * (own.squares / own.degrees if told else common)
        weights += own.weights[place]
        variance += part
        spread += part**2 / (own.degrees if told else degrees)
    if variance <= common * weights:
        return common * weights, degrees
    return variance, max(1.0, variance**2 / spread)


def _eliminate(products: list[list[float]], at: int, least: float) -> bool:
    """Take a column out of the others, in place; false for one that earlier ones explain."""
    pivot = products[at]
    if pivot[at] <= least:
        return False
    for row in products[at + 1 :]:
        _take_out(row, pivot, at)
    return True


def _take_out(row: list[float], pivot: Sequence[float], at: int) -> None:
    factor = row[at] / pivot[at]
    if factor:
        row[:] = [value - factor * of for value, of in zip(row, pivot, strict=True)]


def _solved(column: int, products: Sequence[Sequence[float]], roots: dict[int, float], levels: int) -> list[float]:
    """What a cycle in a column has of each independent one, then what they leave of it in the effects."""
    row = [float(at == column) for at in range(len(products))]
    parts = []
    for at, root in roots.items():
        parts.append(row[at] / root)
        _take_out(row, products[at], at)
    return [*parts, *row[levels:-1]]


def _inverse(matrix: Sequence[Sequence[float]], least: Sequence[float]) -> list[list[float]] | None:
    """The inverse of a positive definite matrix (Gauss and Jordan); `None` where it is not."""
    size = len(matrix)
    rows = [[*row, *(float(at == other) for other in range(size))] for at, row in enumerate(matrix)]
    for at, smallest in enumerate(least):
        if rows[at][at] <= smallest:
            return None
        rows[at] = [value / rows[at][at] for value in rows[at]]
        for other in range(size):
            if other != at and (factor := rows[other][at]):
                rows[other] = [value - factor * of for value, of in zip(rows[other], rows[at], strict=True)]
    return [row[size:] for row in rows]
