"""A race between two rounds: every setting that may still be the best gets another cycle, until one is good enough.

`racing` takes it from round to round; `additive` and `monotone` are races that assume a structure.

Method
    Racing (Maron and Moore, "Hoeffding races", NeurIPS 6, 1994; F-race, Birattari et al., GECCO 2002): each round takes
    one cycle of every setting that is left. What drops one is in `rivals`, what excludes one in `keeping`; all of it
    holds at any stopping time, so that looking after every round and stopping at will costs nothing. The answer is a
    set that holds the best with the stated confidence (Gupta, Technometrics 7, 1965) and a setting whose regret is
    bounded in the same event.

    The error is divided: all of it is for dropping the best, or half where there are limits; a quarter then is for
    calling the best beyond one, and a quarter for letting a setting that breaks one drop it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pytest_llem.results.racing.answer import OPEN, Bounds, Fate, Race, RaceStatus, Seen, State, end_of
from pytest_llem.results.racing.keeping import OWN_SCATTER, Errors, Keeping
from pytest_llem.results.racing.rivals import AgainstRivals, Figures, error_share
from pytest_llem.study.optimize import Optimize, Structure

CANDIDATES = 4
"""Chosen: more settings than these are not nearly equal, and the rest are not recommended."""
ALONE = 0.99
"""Chosen: a rival with more weight than that is named alone."""
FAILURES = 2
"""Chosen: what fails twice in a row, and never worked, fails again."""
REFUSED = 0.01
"""Rate at which a structure that is there is refused, over a whole race. Chosen: a false refusal costs cycles only."""
TOLERATED = 0.25
"""Deviation from a structure that is let pass, as a share of the regret. Chosen: no real setting has it exactly, and
without noise a test would refuse what moves no answer."""
DROPPING, BEYOND, WITHIN = 0.5, 0.25, 0.25  # shares of the error where there are limits, chosen: see above


@dataclass
class Running:
    """A race between two rounds."""

    goal: Optimize
    fates: dict[str, Fate]
    number: int = 0
    figures: Figures = field(default_factory=Figures)
    comparisons: dict[str, AgainstRivals] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    since: int = 0
    """Rounds that do not count, those of a race whose assumption was `refused`."""
    refused: str | None = None

    nested: int = 1
    """How many settings may stand for the best one, each of which has to be protected."""

    first_look: ClassVar[int] = 2
    rests_on: ClassVar[Structure | None] = None
    condition: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.keeping = [Keeping(budget) for budget in self.goal.subject_to]
        self.error = 1 - self.goal.confidence

    def due(self) -> Sequence[str]:
        """The settings that the next round measures."""
        return self.left()

    def contenders(self) -> Sequence[str]:
        """The settings to which the best one is compared, and whose figures bound what is left."""
        return self.left()

    def followed(self) -> Running:
        """The race that the next round belongs to: another one where this one's assumption is refused."""
        return self

    def without(self, contradiction: str) -> Running:
        """The race that goes on where measured settings contradict what this one assumes; its rounds do not count."""
        fates = {
            name: fate if fate.state == "failed" else Fate("in", cycles=fate.cycles)
            for name, fate in self.fates.items()
        }
        return Running(self.goal, fates, self.number, since=self.number, refused=contradiction)

    @property
    def looks(self) -> int:
        """The rounds that count."""
        return self.number - self.since

    def spent(self) -> float:
        """The share of an error that this round may spend."""
        return error_share(self.looks, self.goal.max_cycles - self.since)

    def left(self) -> list[str]:
        """The settings that may still be the best."""
        return [name for name, fate in self.fates.items() if fate.state == "in"]

    def keeps(self, name: str) -> bool:
        """Whether a setting is proven to keep all limits."""
        return not self.keeping or self.fates[name].feasible is True

    def take(self, cycles: Mapping[str, Seen]) -> None:
        """Take in a round, and judge every setting that is left."""
        self.number += 1
        sign = 1 if self.goal.lower_is_better else -1
        values = {
            name: sign * math.log(cycle.value)
            for name, cycle in cycles.items()
            if cycle.failed is None and cycle.value is not None and 0 < cycle.value < math.inf
        }
        self.figures.add(values, {name: cycle.own_error_rel for name, cycle in cycles.items()})
        for keeping in self.keeping:
            keeping.add(cycles)
        for name, cycle in cycles.items():
            self.fates[name] = replace(self.fates[name], cycles=self.fates[name].cycles + 1)
            self.failures[name] = 0 if name in values else self.failures.get(name, 0) + 1
            if cycle.value is not None and name not in values:  # other cycles would tell of the positive ones alone
                odd = f"{self.goal.metric} is {cycle.value:g} in cycle {self.number}"
                told = cycle.failed or f"{odd}, and has no ratio to the others"
                self._leaves(name, "failed", told)
            elif self.failures[name] >= FAILURES and name not in self.figures.of:
                self._leaves(name, "failed", cycle.failed or f"no cycle gave {self.goal.metric}")
        if self.looks >= self.first_look:
            self._limits()
            self._compare()

    def _leaves(self, name: str, state: State, reason: str) -> None:
        self.fates[name] = replace(self.fates[name], state=state, after_round=self.number, reason=reason)

    def limit_errors(self) -> Errors:
        """What this round may spend on one limit."""
        share = self.error * self.spent() / len(self.keeping)
        return Errors(BEYOND * share / self.nested, WITHIN * share, OWN_SCATTER * self.error, self.spent())

    def _limits(self) -> None:
        if not self.keeping:
            return
        looks = self.limit_errors()
        for name in self.left():
            if self.fates[name].feasible is not None:
                continue
            bounds, proven, broken = {}, [], None
            for keeping in self.keeping:
                found, kept = keeping.judged(name, looks, self.number)
                proven.append(kept)
                if found:
                    bounds[keeping.budget.metric] = found
                    if kept is False and broken is None:
                        broken = f"beyond {keeping.budget}{self.condition}: {found}"
            feasible = False if broken else True if all(proven) else None
            self.fates[name] = replace(self.fates[name], limited=bounds, feasible=feasible)
            if broken:
                self._leaves(name, "infeasible", broken)

    def _compare(self) -> None:
        left = self.left()
        rivals = {name for name, fate in self.fates.items() if fate.state in ("in", "dropped") and self.keeps(name)}
        whole = self.error * (DROPPING if self.keeping else 1.0) / self.nested
        error = whole * self.spent()
        self.comparisons = self.figures.compared(self.contenders(), rivals, error, whole)
        leader = min((name for name in left if self.keeps(name)), key=self.figures.mean, default=None)
        named = sorted(rivals, key=self.figures.mean)[:CANDIDATES]
        for name, comparison in self.comparisons.items():
            fate = self.fates[name]
            beside = _beside(comparison, [rival for rival in named if rival != name])
            ratios = (*fate.ratios, self._ratio(comparison))
            self.fates[name] = replace(fate, ratios=ratios, beside=beside)
            if comparison.low > 0 and name != leader and fate.state == "in":
                low, high = self._worse(comparison.low), self._worse(comparison.high)
                told = f"{low:.2g} to {high:.2g} % worse than {beside}, {100 * self.goal.confidence:g} %"
                self._leaves(name, "dropped", f"cannot be the best{self.condition}: {told}")

    def _ratio(self, comparison: AgainstRivals) -> Bounds:
        sign = 1 if self.goal.lower_is_better else -1
        low, high = sorted((sign * comparison.low, sign * comparison.high))
        return Bounds(self.number, math.exp(sign * comparison.worse), end_of(low), end_of(high))

    def _worse(self, logarithm: float) -> float:
        """A distance as a share of the better figure."""
        if self.goal.lower_is_better:
            return 100 * math.expm1(min(OPEN, logarithm))
        return -100 * math.expm1(-logarithm)

    def recommended(self) -> tuple[str | None, float]:
        """The setting whose regret has the least bound, and that, as a logarithm; infinite where nothing bounds it."""
        left = [name for name in self.left() if name in self.figures.of]
        first = sorted(filter(self.keeps, left), key=self.figures.mean)[:CANDIDATES]
        if not first:
            return min(left, key=self.figures.mean, default=None), math.inf
        bounds = {
            name: max((self._regret(name, other) for other in self.contenders() if other != name), default=0.0)
            for name in first
        }
        best = min(first, key=lambda name: (bounds[name], self.figures.mean(name)))
        return best, bounds[best]

    def _regret(self, name: str, other: str) -> float:
        comparison = self.comparisons.get(other)
        return comparison.regret_of(name) if comparison else math.inf

    @property
    def over(self) -> bool:
        """Whether nothing more is to be measured."""
        return self._status() != "running"

    def _status(self) -> RaceStatus:
        if not self.left():
            states = {fate.state for fate in self.fates.values()}
            return "infeasible" if "infeasible" in states and states <= {"infeasible", "failed"} else "undecided"
        name, bound = self.recommended()
        told = self.looks >= self.first_look
        if told and name is not None and self.keeps(name) and self._share(bound) <= self.goal.regret:
            return "found"
        return "undecided" if self.number >= self.goal.max_cycles else "running"

    def _share(self, bound: float) -> float:
        return self._worse(bound) / 100 if bound < math.inf else math.inf

    def answer(self) -> Race:
        """Where the race stands."""
        name, bound = self.recommended()
        status = self._status()
        regret = None if self._share(bound) == math.inf else self._share(bound)
        needed = frozenset(self.due() if status == "running" else ())
        sentence = self._preface() + "".join(self._told(status, name, regret))
        return Race(dict(self.fates), needed, name, regret, status, sentence, self.number, self.rests_on)

    def _preface(self) -> str:
        if self.refused:
            return f"{self.refused}, so from round {self.since + 1} on nothing is assumed: "
        return f"{self.condition.strip()}, " if self.condition else ""

    def _told(self, status: RaceStatus, name: str | None, regret: float | None) -> Iterator[str]:
        left, sure = self.left(), f"{100 * self.goal.confidence:g} %"
        failed = sum(fate.state == "failed" for fate in self.fates.values())
        if status == "infeasible":
            yield f"no setting keeps {' and '.join(map(str, self.goal.subject_to))} ({sure})"
        elif not left:
            yield "no setting could be measured"
        elif len(left) == 1:
            yield f"{left[0]} is the best setting ({sure})"
        else:
            yield f"the best is one of {len(left)} settings ({sure})"
        if left and name is not None and not self.keeps(name):
            yield f", but it is not proven that {name} keeps the limits"
        elif len(left) > 1 and name is not None:
            known = "by an unknown share" if regret is None or regret > 1 else f"by {100 * regret:.2g} % at most"
            yield f": {name} is worse {known}"
        if status == "running":
            yield f"; the race is not over, after {self.number} of at most {self.goal.max_cycles} rounds"
        if status == "undecided" and left:
            yield f", after {self.number} cycles, which are all that it may have"
        if failed:
            yield f"; {failed} failed" + (" and did not take part" if left else "")


def _beside(comparison: AgainstRivals, best: Sequence[str]) -> str:
    """The rivals that a setting was compared with, in words."""
    weights = {name: comparison.weight(name) for name in best}
    first = max(weights, key=weights.__getitem__)
    return first if weights[first] > ALONE else f"the mean of {first} and others like it"
