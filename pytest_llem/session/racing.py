"""Goes on with the races of a run's studies: has measured what a race needs, and says which cycles it does not need.

`RunResults` keeps one `Races`. Any process may ask for any cycle, because a race follows from results in the run's
store alone: whoever asks has the absent cycles of the rounds before measured, and must hold no lock then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.results.layout import CycleKey
from pytest_llem.results.optimize_record import OptimizeRecord, path_of, write_record
from pytest_llem.results.raced import StudyRace
from pytest_llem.results.state import Outcome
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.study import Experiment, Study

NOT_SELECTED = "not selected"


@dataclass
class Races:
    """The races of a run as one process sees them: `measured` measures a cycle unless it has ended, `ended` never."""

    run_dir: Path
    measured: Callable[[ExperimentCycle], Outcome]
    ended: Callable[[CycleKey], Outcome | None]
    _races: dict[str, StudyRace] = field(default_factory=dict)

    def begin(self, study: Study, among: Mapping[str, str | None]) -> None:
        """Have a study's experiments race; a reason in `among` keeps one out. Nothing is raced where one is left."""
        race = race_of(study, among)
        if race is not None:
            self._races[study.name] = race

    def not_needed(self, cycle: ExperimentCycle) -> str | None:
        """Why a race does not need a cycle; `None` where it does, or where there is none.

        Cycles of the rounds before it that are absent are measured for it.
        """
        race = self._races.get(cycle.study.name)
        if race is None or cycle.cycle is None or cycle.experiment.id in race.left_out:
            return None
        self._go_on(race, cycle.cycle - 1)
        return race.not_needed(cycle.experiment.id, cycle.cycle)

    def look(self, study: Study) -> None:
        """Go on by what has ended already, and write where that is: the first time even if no round is over."""
        race = self._races.get(study.name)
        if race is None:
            return
        further = race.go_on(lambda each, cycle: self.ended(_cycle(study, each, cycle).key))
        if further or not path_of(self.run_dir, study.name).exists():
            write_record(self.run_dir, race.record())

    def finish(self, study: Study) -> OptimizeRecord | None:
        """Where a race ends, measuring what it needs; `None` where a single setting would race."""
        race = self._races.get(study.name)
        if race is None:
            return None
        self._go_on(race)
        return race.record()

    def cycles_of(self, experiment: ExperimentCycle) -> list[ExperimentCycle]:
        """All cycles of an experiment that its race needs, to its end; those that its study asks for without a race."""
        race = self._races.get(experiment.study.name)
        if race is None or experiment.experiment.id in race.left_out:
            return experiment.cycles()
        self._go_on(race)
        needed = [at for at, before in enumerate(race.after, 1) if experiment.experiment.id in before.needed]
        return [_cycle(experiment.study, experiment.experiment, cycle) for cycle in needed]

    def _go_on(self, race: StudyRace, rounds: int | None = None) -> None:
        study = race.study
        while race.go_on(
            lambda each, cycle: self.measured(_cycle(study, each, cycle)),
            len(race.after) if rounds is None else min(rounds, len(race.after)),
        ):
            write_record(self.run_dir, race.record())


def race_of(study: Study, among: Mapping[str, str | None]) -> StudyRace | None:
    """The race of those experiments of a study for which `among` has no reason against; `None` of fewer than two."""
    racing = [each for each in study.experiments if among.get(each.id, NOT_SELECTED) is None]
    if study.optimize is None or len(racing) < 2:
        return None
    left_out = {each.id: reason for each in study.experiments if (reason := among.get(each.id, NOT_SELECTED))}
    left_out |= {point.id: f"cannot run: {point.reason}" for point in study.invalid}
    return StudyRace(study, racing, study.optimize, left_out)


def _cycle(study: Study, experiment: Experiment, cycle: int) -> ExperimentCycle:
    return ExperimentCycle(study, experiment, cycle)
