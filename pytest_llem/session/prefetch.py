"""Measures cycles before their items ask for them, on runners that measure several at a time.

`RunResults` starts it when items begin to run, and they wait for their cycles: these must start in the items' order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest

from pytest_llem.results.judging import precise_after
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.raced import StudyRace
from pytest_llem.results.state import Outcome
from pytest_llem.runners import RUNNERS
from pytest_llem.runners.announcement import progress_of
from pytest_llem.session.experiment_cycle import ExperimentCycle, experiment_cycle_of, study_answered
from pytest_llem.session.measuring import Measurer
from pytest_llem.session.racing import race_of
from pytest_llem.study import Experiment, Study

UNCERTAIN_MARKS = ("skip", "skipif", "xfail")
"""An item with one of these may never ask for its result: its cycle is measured when it does."""


class FromStore(Protocol):
    """The outcome of a cycle, measured unless the run's store has it; `retried` as in `NeededCycle`."""

    def __call__(self, cycle: ExperimentCycle, /, *, retried: bool) -> Outcome:
        """Returns when the cycle has its terminal state."""


@dataclass(frozen=True)
class NeededCycle:
    """A cycle that selected items need. `retried` when one of them is the cycle's own: a gate never retries."""

    cycle: ExperimentCycle
    retried: bool


def begin_prefetch(
    items: Sequence[pytest.Item],
    measurer: Measurer,
    measure: FromStore,
    run_dir: Path,
    tell: Callable[[str], None],
    among: Mapping[str, Mapping[str, str | None]],
) -> Prefetch | None:
    """Start the items' cycles on distributed runners; `None` if there are none. Raises nothing: each item reports.

    `among` are the experiments that race, by study: see `racing.race_of`.
    """

    def distributed(experiment: Experiment, study: Study) -> bool:
        return RUNNERS[measurer.runner_spec(experiment.engine, study).name].distributed

    def certain(item: pytest.Item) -> bool:
        return not any(item.get_closest_marker(mark) for mark in UNCERTAIN_MARKS)

    selected = [
        cycle
        for item in items
        if (cycle := experiment_cycle_of(item)) is not None
        and distributed(cycle.experiment, cycle.study)
        and certain(item)
    ]
    answered = {study.name: study for item in items if (study := study_answered(item)) is not None and certain(item)}
    raced = {cycle.study.name: cycle.study for cycle in selected} | answered
    races = [race for study in raced.values() if (race := race_of(study, among.get(study.name, {}))) is not None]
    races = [race for race in races if all(distributed(each, race.study) for each in race.among)]
    first = [NeededCycle(ExperimentCycle(race.study, *each), True) for race in races for each in race.round()]
    needed = list({entry.cycle.key: entry for entry in (*first, *needed_cycles(selected))}.values())
    parallel = measurer.parallel_cycles([entry.cycle for entry in needed])
    if parallel is None:
        return None
    for notice in parallel.notices:
        tell(f"llem: {notice}")
    optional = {cycle.key: cycle for cycle in selected if cycle.optional}
    for race in races:
        if race.study.name in answered:
            every = (ExperimentCycle(race.study, *each) for each in race.every_cycle())
            optional |= {cycle.key: cycle for cycle in every}
    prefetch = Prefetch(measure, parallel.cycles, optional, progress_of(run_dir).outstanding, races)
    prefetch.begin(needed)
    return prefetch


def needed_cycles(selected: Sequence[ExperimentCycle]) -> list[NeededCycle]:
    """The cycles that items need for certain, each once, in the order of need; optional ones are left out."""
    needed: dict[CycleKey, NeededCycle] = {}
    for window in selected:
        entry = replace(window, step=None)  # windows of a search wait for each other: it is measured as a whole
        own = entry.cycle is not None
        for cycle in [entry] if own else entry.cycles():
            if not cycle.optional:
                earlier = needed.get(cycle.key)
                needed[cycle.key] = NeededCycle(cycle, own or (earlier is not None and earlier.retried))
    return list(needed.values())


class Prefetch:
    """Measures cycles in threads, in order, `in_flight` at a time; an item waits for its cycle with `wait`.

    `optional` ones follow once they are necessary, and those of the next round of `races` once a round is over;
    `outstanding` gets 1 per cycle queued, -1 when done.
    """

    def __init__(
        self,
        measure: FromStore,
        in_flight: int,
        optional: Mapping[CycleKey, ExperimentCycle] | None = None,
        outstanding: Callable[[int], None] = lambda more: None,
        races: Iterable[StudyRace] = (),
    ) -> None:
        self._measure = measure
        self._outstanding = outstanding
        self._optional = optional or {}
        self._races = {race.study.name: race for race in races}
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="llem-prefetch")
        self._futures: dict[CycleKey, Future[Outcome]] = {}
        self._outcomes: dict[CycleKey, Outcome] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def begin(self, needed: Sequence[NeededCycle]) -> None:
        """Queue cycles."""
        with self._lock:
            for entry in needed:
                if entry.cycle.key not in self._futures and not self._stopped:
                    self._outstanding(1)
                    self._futures[entry.cycle.key] = self._threads.submit(self._run, entry)

    def wait(self, key: CycleKey) -> None:
        """Return once a queued cycle has its terminal state, else at once. Raises what kept the cycle from it."""
        future = self._futures.get(key)
        if future is not None:
            future.result()

    def stop(self) -> None:
        """Start no more cycles; the runner interrupts those that run."""
        with self._lock:
            self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until no cycle runs any more."""
        self._threads.shutdown(wait=True)

    def _run(self, needed: NeededCycle) -> Outcome:
        try:
            outcome = self._measure(needed.cycle, retried=needed.retried)
        finally:
            self._outstanding(-1)
        race = self._races.get(needed.cycle.study.name)
        if race is not None:
            self.begin([NeededCycle(each, True) for each in self._next_round(race, needed.cycle, outcome)])
        elif self._optional and (following := self._following(needed.cycle, outcome)) is not None:
            self.begin([NeededCycle(following, True)])
        return outcome

    def _next_round(self, race: StudyRace, cycle: ExperimentCycle, outcome: Outcome) -> list[ExperimentCycle]:
        """The cycles of a race's next round that items are about, now that another cycle is done."""
        with self._lock:
            self._outcomes[cycle.key] = outcome
            over = len(race.after)
            if not race.go_on(lambda *each: self._outcomes.get(ExperimentCycle(race.study, *each).key)):
                return []
            for key in [key for key in self._outcomes if key.study == cycle.study.name and key.cycle <= over]:
                del self._outcomes[key]  # with their results, which the race has seen
            following = [ExperimentCycle(race.study, *each) for each in race.round()]
        return [each for each in following if each.key in self._optional]

    def _following(self, cycle: ExperimentCycle, outcome: Outcome) -> ExperimentCycle | None:
        """The optional cycle of this experiment that has become necessary, now that another cycle is done."""
        with self._lock:
            self._outcomes[cycle.key] = outcome
            outcomes: list[Outcome] = []
            while (key := replace(cycle, cycle=len(outcomes) + 1).key) in self._outcomes:
                outcomes.append(self._outcomes[key])
        optional = self._optional.get(key)
        return None if precise_after(outcomes, cycle.study.execution) else optional
