"""Measures a search window by window: each gets the load that the plan chooses after those before it.

`RunResults` calls it. Any process may measure any window, because the plan depends on results in the run's store alone;
a window holds its own lock while it is measured, and the lock of the search's cycle is taken when none is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pytest_llem.results.search import LargestLoad, NextLoad, plan
from pytest_llem.results.searched import MeasuredWindow, answer_text, conclude, window_of, write_search
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.study.search import MAX_WINDOWS

Measure = Callable[[ExperimentCycle, float], Outcome]
"""The outcome of a window (a cycle with its step) under a load, measured unless the run's store has it."""


@dataclass
class SearchedCycle:
    """One cycle of a search, as far as it has come: its windows in order, and what to do next."""

    cycle: ExperimentCycle
    step: NextLoad | LargestLoad
    windows: list[MeasuredWindow] = field(default_factory=list)

    @classmethod
    def begin(cls, cycle: ExperimentCycle) -> SearchedCycle:
        """The search before its first window."""
        search = cycle.experiment.search
        assert search is not None
        return cls(replace(cycle, step=None), plan(search, cycle.experiment.config.slo.at, []))

    def go_on(self, store: RunStore, measure: Measure, windows: int | None = None) -> None:
        """Go on to the answer, or to so many windows, and write after each what is known."""
        search, at = self.cycle.experiment.search, self.cycle.experiment.config.slo.at
        assert search is not None
        while isinstance(self.step, NextLoad) and (windows is None or len(self.windows) < windows):
            load, reason = self.step.load, self.step.reason
            outcome = measure(replace(self.cycle, step=len(self.windows) + 1), load)
            self.windows.append(MeasuredWindow(reason, outcome, window_of(search, load, outcome)))
            self.step = plan(search, at, [each.window for each in self.windows])
            write_search(store, self.cycle.key, search, at, self.windows, self.step)

    def conclude(self, store: RunStore) -> Outcome | None:
        """The cycle's outcome, written unless it was; `None` where another window is needed."""
        search = self.cycle.experiment.search
        assert search is not None
        if not isinstance(self.step, LargestLoad):
            return None
        return conclude(store, self.cycle.key, search, self.step, self.windows)

    @property
    def given_up(self) -> bool:
        """Whether its last windows told nothing."""
        return isinstance(self.step, LargestLoad) and self.step.ending == "given_up"

    @property
    def answer(self) -> str | None:
        """The answer in a sentence; `None` where another window is needed."""
        search = self.cycle.experiment.search
        assert search is not None
        return answer_text(search, self.step) if isinstance(self.step, LargestLoad) else None


def under_load(window: ExperimentCycle, load: float) -> ExperimentCycle:
    """A window with its load. Each draws other arrivals: repeated with the same, chance would be repeated as well."""
    assert window.step is not None
    seed = window.experiment.config.workload.seed + (window.cycle or 1) * MAX_WINDOWS + window.step
    return replace(window, experiment=window.experiment.under(load, seed))
