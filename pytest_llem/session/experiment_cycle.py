"""What a test item is parametrised with: an experiment of a study, and its cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_llem.results.layout import CycleKey
    from pytest_llem.study import Experiment, Study

EXPERIMENT = "llem_experiment"


@dataclass(frozen=True, slots=True)
class ExperimentCycle:
    """An experiment of a study and, where a test is about one, its cycle (1-based)."""

    study: Study
    experiment: Experiment
    cycle: int | None = None
    words: tuple[str, ...] = ()
    """What `-k` finds it by, besides its id: model, engine and tags."""

    @property
    def key(self) -> CycleKey:
        """The cycle's name in the run's store."""
        from pytest_llem.results.layout import CycleKey

        assert self.cycle is not None, "a cycle is measured, not an experiment"
        return CycleKey(self.study.name, self.experiment.id, self.experiment.config_hash, self.cycle)

    @property
    def optional(self) -> bool:
        """Whether this is a cycle that is measured only until `target_ci` is reached."""
        return self.cycle is not None and self.cycle > self.study.execution.cycles

    def cycles(self) -> list[ExperimentCycle]:
        """The same experiment, once per cycle that its study asks for (not the optional ones of `target_ci`)."""
        return [replace(self, cycle=cycle) for cycle in range(1, self.study.execution.cycles + 1)]


def experiment_cycle_of(item: pytest.Item) -> ExperimentCycle | None:
    """The experiment (and cycle) that an item is parametrised with, if it is."""
    callspec = getattr(item, "callspec", None)
    point = callspec.params.get(EXPERIMENT) if callspec is not None else None
    return point if isinstance(point, ExperimentCycle) else None
