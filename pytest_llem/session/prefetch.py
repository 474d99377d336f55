"""Measuring ahead of the test items: cycles are begun in the items' order, so many at a time; items wait for theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_llem.cluster.progress import progress_of
from pytest_llem.results.judging import precise_after
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.state import Outcome
from pytest_llem.runners import RUNNERS
from pytest_llem.session.experiment_cycle import ExperimentCycle, experiment_cycle_of

if TYPE_CHECKING:
    import pytest

    from pytest_llem.session.measuring import Measurer

UNCERTAIN_MARKS = ("skip", "skipif", "xfail")
"""An item with one of these may never ask for its result: it measures when it does."""


class FromStore(Protocol):
    """The outcome of a cycle, measured unless the run's store has it; `retried` as in `Wanted`."""

    def __call__(self, cycle: ExperimentCycle, /, *, retried: bool) -> Outcome:
        """Returns when the cycle has its terminal state."""


@dataclass(frozen=True)
class Wanted:
    """A cycle that selected items need. `retried` when one of them is the cycle's own: a gate never retries."""

    point: ExperimentCycle
    retried: bool


def begin_prefetch(
    items: Iterable[pytest.Item],
    measurer: Measurer,
    measure: FromStore,
    run_dir: Path,
    say: Callable[[str], None],
) -> Prefetch | None:
    """Begin what the items need of runners that run many cycles at a time; `None` where there is nothing such.

    Raises nothing: a cluster that cannot be reached is for each item to report. `say` tells the user a line.
    """
    found = [
        point
        for item in items
        if (point := experiment_cycle_of(item)) is not None
        and RUNNERS[measurer.runner_spec(point.experiment.engine, point.study).name].distributed
        and not any(item.get_closest_marker(mark) for mark in UNCERTAIN_MARKS)
    ]
    wanted = wanted_cycles(found)
    parallel = measurer.parallel_cycles([one.point for one in wanted])
    if parallel is None:
        return None
    for notice in parallel.notices:
        say(f"llem: {notice}")
    optional = {point.key: point for point in found if point.optional}
    ahead = Prefetch(measure, parallel.cycles, optional, progress_of(run_dir).outstanding)
    ahead.begin(wanted)
    return ahead


def wanted_cycles(points: Sequence[ExperimentCycle]) -> list[Wanted]:
    """The cycles that items with these points need for certain, each once, in the order of first need.

    A point without a cycle is an item about a whole experiment. Cycles that are measured only until a result is precise
    enough are left out: whether they are needed is known once the others are done.
    """
    found: dict[CycleKey, Wanted] = {}
    for point in points:
        own = point.cycle is not None
        for one in [point] if own else point.cycles():
            if not one.optional:
                earlier = found.get(one.key)
                found[one.key] = Wanted(one, own or (earlier is not None and earlier.retried))
    return list(found.values())


class Prefetch:
    """Measures cycles in threads, in order, `in_flight` at a time; see `wait` for who needs one.

    `optional` are the selected cycles that are measured only until a result is precise enough: each follows when those
    before it are done and it has become necessary. `outstanding` hears of cycles that come to be wanted (1), and of
    those that are done (-1).
    """

    def __init__(
        self,
        measure: FromStore,
        in_flight: int,
        optional: Mapping[CycleKey, ExperimentCycle] | None = None,
        outstanding: Callable[[int], None] = lambda more: None,
    ) -> None:
        self._measure = measure
        self._outstanding = outstanding
        self._optional = optional or {}
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="llem-ahead")
        self._futures: dict[CycleKey, Future[Outcome]] = {}
        self._outcomes: dict[CycleKey, Outcome] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Queue cycles."""
        with self._lock:
            for one in wanted:
                if one.point.key not in self._futures and not self._stopped:
                    self._outstanding(1)
                    self._futures[one.point.key] = self._threads.submit(self._run, one)

    def wait(self, key: CycleKey) -> None:
        """Return once a queued cycle has its terminal state; at once for one that is not queued.

        Raises what kept it from having one.
        """
        future = self._futures.get(key)
        if future is not None:
            future.result()

    def stop(self) -> None:
        """Begin nothing more; what runs is for its runner to interrupt."""
        with self._lock:
            self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until nothing runs any more."""
        self._threads.shutdown(wait=True)

    def _run(self, wanted: Wanted) -> Outcome:
        try:
            outcome = self._measure(wanted.point, retried=wanted.retried)
        finally:
            self._outstanding(-1)
        following = self._following(wanted.point, outcome) if self._optional else None
        if following is not None:
            self.begin([Wanted(following, True)])
        return outcome

    def _following(self, point: ExperimentCycle, outcome: Outcome) -> ExperimentCycle | None:
        """The optional cycle of this experiment that has become necessary, now that another cycle is done."""
        with self._lock:
            self._outcomes[point.key] = outcome
            known: list[Outcome] = []
            while (key := replace(point, cycle=len(known) + 1).key) in self._outcomes:
                known.append(self._outcomes[key])
        optional = self._optional.get(key)
        return optional if precise_after(known, point.study.execution) is None else None
