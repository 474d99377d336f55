"""A race whose study declares that figures only rise or only fall along each axis of numbers: corners bound the rest.

`race` runs it for `assume: monotone`. All else equal, a figure and each limited metric rise or fall along an
axis of numbers from end to end; which of both may differ from line to line, and nothing is assumed of other axes.

Method
    So what lies in a box of the grid is between its corners: going along one axis after another to the end that is no
    worse leads to a corner that is no worse. Corners are raced. The settings within a box are not needed once every
    corner keeps the limits or cannot be the best, and are out once all corners cannot be the best or break one limit.
    A box whose corners stand on both sides of a limit is halved: bisection. What is halved when is chosen by estimates,
    what is said of a setting rests on bounds that hold.

    A corner of each box around the best setting has to be protected as it is itself, and these boxes are nested: the
    error is divided by how many they can be.

    Settings in the middle of the lines through the recommended one, and beside it, are measured as well, since nothing
    else would show that the assumption is false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import NormalDist, fmean, stdev

from pytest_llem.results.racing.answer import Fate, Seen, Setting, State
from pytest_llem.results.racing.boxes import Box, boxes_of
from pytest_llem.results.racing.keeping import Keeping
from pytest_llem.results.racing.rivals import Figures
from pytest_llem.results.racing.running import REFUSED, TOLERATED, Running
from pytest_llem.study.optimize import Optimize

AT_ONCE, LEAST_AT_ONCE = 0.15, 20  # chosen: of 200 settings, twice as many cost a fifth more and certified no more
"""How many settings a round may measure while boxes are halved, as a share of all and at least."""


class Monotone(Running):
    """A race between two rounds, in which figures only rise or only fall along numbers."""

    rests_on = "monotone"
    condition = " if figures only rise or only fall along numbers"

    def __init__(self, goal: Optimize, fates: dict[str, Fate], settings: Sequence[Setting]) -> None:
        super().__init__(goal, fates)
        self.figures = Figures(even=True)
        self.keeping = [Keeping(budget, even=True) for budget in goal.subject_to]
        self._whole = boxes_of(settings)
        self._boxes = list(self._whole)
        self._opened = {corner for box in self._boxes for corner in box.corners}
        self._outdone: set[str] = set()
        self._most = max(LEAST_AT_ONCE, int(AT_ONCE * len(fates)))
        self._beyond: dict[str, set[str]] = {budget.metric: set() for budget in goal.subject_to}
        self._limited = {metric: Figures() for metric in self._beyond}
        self.nested = max(_depth(box) for box in self._boxes) if goal.subject_to else 1

    def due(self) -> Sequence[str]:
        """The settings that the next round measures: corners, and what is looked at to see whether they bound."""
        return [name for name in self.left() if name in self._opened]

    def contenders(self) -> Sequence[str]:
        """What is measured of those that are left, and the corners that bound the others."""
        corners = {corner for box in self._boxes for corner in box.corners}
        return [name for name, fate in self.fates.items() if name in corners or fate.state == "in"]

    def take(self, cycles: Mapping[str, Seen]) -> None:
        """Take in a round, and what it says of settings that are not measured."""
        for metric, figures in self._limited.items():
            known = {name: seen.limited.get(metric) for name, seen in cycles.items() if seen.failed is None}
            figures.add({name: math.log(value) for name, value in known.items() if value and value > 0}, {})
        super().take(cycles)
        if self.looks >= self.first_look:
            self._look_beside()
            self._settle()
        self._halve()

    def followed(self) -> Running:
        """A race without the assumption, where measured settings contradict it."""
        contradiction = self._contradiction() if self.looks >= self.first_look else None
        return self if contradiction is None else self.without(contradiction)

    def _unmeasured(self, box: Box) -> list[str]:
        return [name for name in box.inner if name not in self._opened and self.fates[name].state == "in"]

    def _look_beside(self) -> None:
        name, _ = self.recommended()
        for line in (line for box in self._whole for line in box.lines() if name in line):
            at = line.index(name or "")
            for place in {len(line) // 2, max(at - 1, 0), min(at + 1, len(line) - 1)}:
                self._opened.add(line[place])
                if self.fates[line[place]].state == "not needed":
                    self.fates[line[place]] = Fate("in")

    def _settle(self) -> None:
        """Judge what is left in each box by its corners."""
        self._outdone |= {name for name, comparison in self.comparisons.items() if comparison.low > 0}
        for keeping in self.keeping:
            known = self._beyond[keeping.budget.metric]
            for corner in {corner for box in self._boxes for corner in box.corners} - known:
                if keeping.judged(corner, self.limit_errors(), self.number)[1] is False:
                    known.add(corner)
        for box in self._boxes:
            corners = " and ".join(box.corners) if len(box.corners) < 3 else f"{box.corners[0]} to {box.corners[-1]}"
            broken = next((metric for metric, names in self._beyond.items() if names.issuperset(box.corners)), None)
            if self._outdone.issuperset(box.corners):
                self._all_leave(box, "dropped", f"cannot be the best{self.condition}: no corner of {corners} can")
            elif broken is not None:
                self._all_leave(box, "infeasible", f"beyond the limit of {broken}{self.condition}: so is {corners}")
            elif all(corner in self._outdone or self.keeps(corner) for corner in box.corners):
                self._all_leave(box, "not needed", f"no better than the best corner of {corners}{self.condition}")

    def _all_leave(self, box: Box, state: State, reason: str) -> None:
        for name in self._unmeasured(box):
            self._leaves(name, state, reason)

    def _halve(self) -> None:
        """Halve boxes whose corners do not tell what has to be known, first where the best seems to be."""
        self._boxes = [box for box in self._boxes if self._unmeasured(box)]
        good = [name for name in self.figures.of if all(self._excess(metric, name) <= 0 for metric in self._limited)]
        best = min(map(self.figures.mean, good), default=math.inf)
        due, promise = set(self.due()), {at: self._promise(box, best) for at, box in enumerate(self._boxes)}
        for at in sorted(promise, key=promise.__getitem__):
            if promise[at] < math.inf:
                parts = self._boxes[at].halves()
                new = {corner for part in parts for corner in part.corners} - self._opened
                if not due or len(due | new) <= self._most:
                    due |= new
                    self._opened |= new
                    self._boxes += parts
                    promise[at] = math.nan
        halved = {at for at, figure in promise.items() if math.isnan(figure)}
        self._boxes = [box for at, box in enumerate(self._boxes) if at not in halved and self._unmeasured(box)]

    def _promise(self, box: Box, best: float) -> float:
        """About what the best in a box costs that keeps the limits, infinite where its corners have yet to tell."""
        broken = {corner: [m for m in self._limited if self._excess(m, corner) > 0] for corner in box.corners}
        inside = [corner for corner in box.corners if not broken[corner]]
        pending = any(self.fates[corner].state == "in" for corner in box.corners)
        if not inside or len(inside) == len(box.corners):
            return math.inf if pending else min(map(self.figures.mean, box.corners))
        crossing = min(
            self._between(corner, kept, broken[corner]) for corner in box.corners if broken[corner] for kept in inside
        )
        return crossing if crossing < best or not pending else math.inf

    def _between(self, beyond: str, kept: str, broken: Sequence[str]) -> float:
        """The figure where a line between two corners seems to meet a limit."""
        shares = []
        for metric in broken:
            excess, spare = self._excess(metric, beyond), -self._excess(metric, kept)
            shares.append(excess / (excess + spare) if excess + spare < math.inf else 0.5)
        first, last = self.figures.mean(beyond), self.figures.mean(kept)
        return first + max(shares) * (last - first) if max(first, last) < math.inf else -math.inf

    def _excess(self, metric: str, name: str) -> float:
        """By how much a setting seems to be beyond a limit, as a logarithm."""
        budget = next(budget for budget in self.goal.subject_to if budget.metric == metric)
        distance = self._limited[metric].mean(name) - (math.log(budget.limit) if budget.limit > 0 else -math.inf)
        return distance if budget.op in ("<=", "<") else -distance

    def _contradiction(self) -> str | None:
        quantities = {self.goal.metric: self.figures, **self._limited}
        measured = [[name for name in line if name in self.figures.of] for box in self._whole for line in box.lines()]
        triples = [triple for line in measured for triple in combinations(line, 3)]
        error = REFUSED * self.spent() / max(1, len(quantities) * len(triples))
        for metric, figures in quantities.items():
            for first, inner, last in triples:
                ends = [_apart(figures, inner, end, error) for end in (first, last)]
                if min(ends) > TOLERATED * self.goal.regret or max(ends) < -TOLERATED * self.goal.regret:
                    return f"{metric} neither only rises nor only falls from {first} over {inner} to {last}"
        return None


def _apart(figures: Figures, name: str, other: str, error: float) -> float:
    """The bound of a difference on the side of zero; zero where it is not told from it.

    What all settings scatter by counts, and not only what these two do: a false refusal costs cycles alone.
    """
    own, others = figures.of.get(name, {}), figures.of.get(other, {})
    differences = [own[number] - others[number] for number in own if number in others]
    if len(differences) < 2:
        return 0.0
    scatter = max(stdev(differences), math.sqrt(2) * figures.scatter)
    half = NormalDist().inv_cdf(1 - error) * scatter / math.sqrt(len(differences))
    half = math.hypot(
        half, NormalDist().inv_cdf(1 - error) * (figures.errors.get(name, 0) + figures.errors.get(other, 0))
    )
    mean = fmean(differences)
    return math.copysign(max(abs(mean) - half, 0.0), mean)


def _depth(box: Box) -> int:
    """How many boxes around a setting are nested at most, from the whole to the smallest."""
    parts = box.halves()
    return 1 if len(parts) == 1 else 1 + max(map(_depth, parts))
