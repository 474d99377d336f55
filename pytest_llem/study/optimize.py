"""What a study's section `optimize` asks: which of its settings is best in a metric, within limits of others.

`written_optimize` reads it, `results.racing` runs the race by it, the session asks it which cycles exist. It is part of
no hash: what a cycle measures does not depend on it. It must import nothing that loading a study needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pytest_llem.job.metric_names import metric_name
from pytest_llem.job.setting import Limits, setting
from pytest_llem.study.limits import Budget

Structure = Literal["monotone", "additive"]
MIN_CYCLES = 2
"""Cycles that every setting gets before any is dropped: fewer tell nothing of how much they scatter."""


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How sure the answer has to be, and what may be spent on it."""

    confidence: Annotated[float, Limits(gt=0.5, lt=1, percent=True)] = setting(
        0.95, "Least probability that the best setting is in the set that is left.", [0.95]
    )
    regret: Annotated[float, Limits(gt=0, lt=1, percent=True)] = setting(
        0.01, "Stop when the recommended setting is worse than the best by less than this share.", [0.01]
    )
    max_cycles: Annotated[int, Limits(ge=MIN_CYCLES, le=10_000)] = setting(
        10, "Most cycles of a setting; takes the place of `execution.cycles`."
    )
    assume: Structure | None = setting(
        None, "Structure that the answer then rests on: effects of axes that add up, or that have one direction."
    )


@dataclass(frozen=True)
class Optimize(Certainty):
    """A race for the setting with the least (or most) of `metric` among those that keep the budgets `subject_to`."""

    metric: str
    subject_to: tuple[Budget, ...] = ()

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is to be minimised."""
        return not metric_name(self.metric).higher_is_better

    @property
    def verb(self) -> Literal["minimize", "maximize"]:
        """The key under which a study writes the metric."""
        return "minimize" if self.lower_is_better else "maximize"

    def settings(self) -> Iterator[tuple[str, str]]:
        """The settings of a study that name a metric, each with it."""
        yield f"optimize.{self.verb}", self.metric
        for budget in self.subject_to:
            yield f"optimize.subject_to.{budget.metric}", budget.metric

    @property
    def told(self) -> str:
        """What is asked for, in words."""
        assumed = f", assuming effects to be {self.assume}" if self.assume else ""
        return (
            f"{self} with {100 * self.confidence:g} % confidence and a regret below {100 * self.regret:g} %, "
            f"in at most {self.max_cycles} cycles of a setting{assumed}"
        )

    def __str__(self) -> str:
        limits = ", ".join(map(str, self.subject_to))
        return f"{self.verb} {self.metric}" + (f" subject to {limits}" if limits else "")
