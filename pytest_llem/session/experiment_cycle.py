"""What a test item is parametrised with: an experiment of a study, and its cycle.

`session/` uses it; `llem_experiment` gives it to tests. It may hold references only: there are thousands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llem.results.layout import CycleKey, WindowKey, window_id

if TYPE_CHECKING:
    import pytest

    from pytest_llem.study import Experiment, Study

EXPERIMENT = "llem_experiment"
"""The fixture that an item is parametrised by."""


@dataclass(frozen=True, slots=True)
class ExperimentCycle:
    """An experiment of a study and, where a test is about one, its cycle (1-based)."""

    study: Study
    experiment: Experiment
    cycle: int | None = None
    words: tuple[str, ...] = ()
    """Model, engine and tags, which `-k` matches besides the id."""
    step: int | None = None
    """The window (1-based) of a search, where a test is about one."""
    confirms: bool = False
    """Whether a failed gate asks for it, which no item is about: see `once_more`."""

    @property
    def id(self) -> str:
        """The id of what is measured: of the experiment, or of the window of a search."""
        return self.experiment.id if self.step is None else window_id(self.experiment.id, self.step)

    @property
    def key(self) -> CycleKey:
        """The cycle's name in the run's store."""
        assert self.cycle is not None, "a cycle is measured, not an experiment"
        names = (self.study.name, self.experiment.id, self.experiment.config_hash, self.cycle)
        if self.step is None:
            return CycleKey(*names, confirms=self.confirms)
        return WindowKey(*names, self.step, confirms=self.confirms)

    @property
    def optional(self) -> bool:
        """Whether it is measured only where those before it leave it necessary: for `target_ci`, or a race."""
        if self.cycle is None or self.confirms:
            return False
        goal = self.study.optimize
        return self.cycle > self.study.execution.cycles or (goal is not None and goal.assume is not None)

    def cycles(self) -> list[ExperimentCycle]:
        """The same experiment, once per cycle that its study asks for (not the optional ones)."""
        return [replace(self, cycle=cycle, step=None) for cycle in range(1, self.study.execution.cycles + 1)]

    def once_more(self) -> list[ExperimentCycle]:
        """As many cycles that confirm a failed gate, numbered after the last that any item may be about."""
        execution = self.study.execution
        first = execution.last_cycle + 1
        numbers = range(first, first + execution.cycles)
        return [replace(self, cycle=number, step=None, confirms=True) for number in numbers]


def study_answered(item: pytest.Item) -> Study | None:
    """The study whose best setting an item is about; `None` for other items."""
    study: Study | None = getattr(item.parent, "study", None)
    return study if getattr(item, "originalname", "") == "test_optimum" else None


def experiment_cycle_of(item: pytest.Item) -> ExperimentCycle | None:
    """The experiment (and cycle) that an item is parametrised with; `None` for other items."""
    callspec = getattr(item, "callspec", None)
    value = callspec.params.get(EXPERIMENT) if callspec is not None else None
    return value if isinstance(value, ExperimentCycle) else None
