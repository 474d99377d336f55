"""A race for the best setting as a report tells it: in which order, in which words, and how it went.

The section `races` and the chart of `charts.race` ask it, so that both say the same of a setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pytest_llem.results.optimize_record import OptimizeRecord
from pytest_llem.results.racing.answer import Bounds, Fate
from pytest_llem.study.limits import Budget, parse_budget

RECOMMENDED, MAY_BE = "recommended", "may be the best"


@dataclass(frozen=True)
class ShownRace:
    """The race of a study in one run."""

    run: str
    record: OptimizeRecord

    @property
    def lower_is_better(self) -> bool:
        """Whether the least is sought."""
        return self.record.goal == "minimize"

    @cached_property
    def fates(self) -> dict[str, Fate]:
        """What became of each setting: the recommended one, what may be the best, then what left, the nearest first.

        One that a limit excludes and that would be better stands right after what may be the best.
        """

        best = self.record.settings[self.record.recommended].value if self.record.recommended else None

        def place(name: str) -> tuple[int, float]:
            fate, value = self.record.settings[name].fate, self.record.settings[name].value
            ratio = fate.ratios[-1].value if fate.ratios else value / best if value and best else None
            worse = math.inf if ratio is None else ratio if self.lower_is_better else -ratio
            return 0 if name == self.record.recommended else 1 if fate.state == "in" else 2, worse

        return {name: self.record.settings[name].fate for name in sorted(self.record.settings, key=place)}

    def state(self, name: str) -> str:
        """What a setting has come to, in words."""
        if name == self.record.recommended:
            return RECOMMENDED
        state = self.fates[name].state
        return MAY_BE if state == "in" else state

    def left(self, name: str, *, by: str = "") -> str:
        """The same with when it left: `dropped, round 3`."""
        after = self.fates[name].after_round
        return f"{self.state(name)}{by}" + ("" if after is None else f", round {after}")

    def aside(self, name: str) -> str:
        """The same with the limit that excludes it: `infeasible by ttft_p99_s, round 3`."""
        fate = self.fates[name]
        broken = [budget.metric for budget in self.limits if breaks(fate, budget)]
        return self.left(name, by=f" by {' and '.join(broken)}" if fate.state == "infeasible" and broken else "")

    @cached_property
    def limits(self) -> tuple[Budget, ...]:
        """What every setting has to keep."""
        return tuple(parse_budget(*text.split(" ", 1)) for text in self.record.subject_to)

    def limited(self, name: str) -> Iterator[tuple[Budget, Bounds | None]]:
        """Each limit with what is known of the setting's figure."""
        for budget in self.limits:
            yield budget, self.fates[name].limited.get(budget.metric)


def breaks(fate: Fate, budget: Budget) -> bool:
    """Whether a setting is proven to be beyond a limit."""
    bounds = fate.limited.get(budget.metric)
    if bounds is None:
        return False
    upper = budget.op in ("<=", "<")
    end = bounds.low if upper else bounds.high
    return end is not None and (end > budget.limit if upper else end < budget.limit)
