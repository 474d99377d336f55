"""Which cycles are prefetched, in which order, and when an optional one follows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.prefetch import NeededCycle, Prefetch, needed_cycles
from pytest_llem.session.racing import race_of
from pytest_llem.study import Study, load_study

STUDY = """\
model: m
engine: transformers
sweep: {transformers.batch_size: [1, 2]}
execution: {cycles: 3, order: sequential, target_ci: 0.05, max_cycles: 7, headline: output_tokens_per_s}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return load_study(path)


@pytest.fixture
def points(study: Study) -> list[ExperimentCycle]:
    """All cycles, optional ones too, then each experiment as a whole, as a gate has it."""
    cycles = [ExperimentCycle(study, experiment, cycle) for experiment, cycle in study.schedule(7)]
    return [*cycles, *(ExperimentCycle(study, experiment) for experiment in study.experiments)]


class Measured:
    """Stands for the run's store: remembers what was asked for, and delivers values by cycle."""

    def __init__(self, values: Callable[[ExperimentCycle], float | None]) -> None:
        self.values = values
        self.order: list[tuple[str, int | None, bool]] = []
        self._lock = threading.Lock()

    def __call__(self, point: ExperimentCycle, *, retried: bool) -> Outcome:
        with self._lock:
            self.order.append((point.experiment.id, point.cycle, retried))
        value = self.values(point)
        result = _result(value) if value is not None else None
        return Outcome("valid" if value else "failed", point.key, Path(), result, None, 1, ())


def _result(value: float) -> Result:
    runner = SimpleNamespace(isolation="process")
    throughput = SimpleNamespace(output_tokens_per_s=value)
    return cast("Result", SimpleNamespace(runner=runner, throughput=throughput, slo=None, quality=None))


def test_needed_cycles_come_in_the_items_order_and_optional_ones_not_at_all(points: list[ExperimentCycle]) -> None:
    found = [(needed.cycle.experiment.id[-1], needed.cycle.cycle) for needed in needed_cycles(points)]

    assert found == [("1", 1), ("1", 2), ("1", 3), ("2", 1), ("2", 2), ("2", 3)]


def test_only_a_cycles_own_item_has_it_retried(points: list[ExperimentCycle], study: Study) -> None:
    gates = points[-2:]
    own = ExperimentCycle(study, gates[1].experiment, 2)

    retried = {(one.cycle.experiment.id[-1], one.cycle.cycle): one.retried for one in needed_cycles([*gates, own])}

    assert retried == {**dict.fromkeys([("1", 1), ("1", 2), ("1", 3), ("2", 1), ("2", 3)], False), ("2", 2): True}


@pytest.mark.parametrize(
    ("values", "more"),
    [
        pytest.param([100.0, 100.1, 99.9, 100.0, 100.1], [4, 5], id="precise at the first look"),
        pytest.param([100.0, 130.0, 70.0, *[100.0] * 4], [4, 5, 6, 7], id="never precise"),
        pytest.param([100.0, 106.0, 96.0, *[100.0] * 3], [4, 5, 6], id="precise with one more"),
    ],
)
def test_an_optional_cycle_follows_when_it_is_needed(
    points: list[ExperimentCycle], values: list[float], more: list[int]
) -> None:
    """Cycles may end in any order: the one that ends last decides."""
    first = points[0].experiment
    barrier = threading.Barrier(3)

    def value(point: ExperimentCycle) -> float:
        assert point.cycle is not None
        if point.cycle <= 3:
            barrier.wait(30)
        return values[point.cycle - 1]

    measured = Measured(value)
    own = [point for point in points if point.experiment is first and point.cycle is not None]
    prefetch = Prefetch(measured, 3, {point.key: point for point in own if point.optional})
    prefetch.begin(needed_cycles(own))
    for point in own:
        prefetch.wait(point.key)
    prefetch.stop()
    prefetch.join()

    assert sorted(cycle for _, cycle, _ in measured.order if cycle and cycle > 3) == more
    assert all(retried for _, _, retried in measured.order)


def test_an_item_meets_what_its_cycle_met(points: list[ExperimentCycle]) -> None:
    def broken(point: ExperimentCycle, *, retried: bool) -> Outcome:
        raise OSError("disk full")

    prefetch = Prefetch(broken, 1)
    prefetch.begin([NeededCycle(points[0], True)])

    with pytest.raises(OSError, match="disk full"):
        prefetch.wait(points[0].key)
    prefetch.wait(replace(points[0], cycle=2).key)
    prefetch.stop()
    prefetch.join()


def test_nothing_begins_after_the_end(points: list[ExperimentCycle]) -> None:
    gate = threading.Event()
    measured = Measured(lambda point: 1.0 if gate.wait(30) else None)
    prefetch = Prefetch(measured, 1)
    prefetch.begin(needed_cycles(points))
    while not measured.order:
        gate.wait(0.01)

    prefetch.stop()
    gate.set()
    prefetch.join()
    prefetch.begin(needed_cycles(points[5:]))

    assert len(measured.order) == 1


RACE = """\
model: m
engine: transformers
sweep: {transformers.batch_size: [1, 2, 4]}
optimize: {maximize: output_tokens_per_s, max_cycles: 6}
"""


def test_a_races_next_round_starts_side_by_side_once_the_one_before_is_over(tmp_path: Path) -> None:
    """One at a time, a cluster would idle; a round too early, it would measure what is not needed."""
    path = tmp_path / "race.yaml"
    path.write_text(RACE)
    study = load_study(path)
    race = race_of(study, dict.fromkeys(each.id for each in study.experiments))
    assert race is not None
    together = {1: threading.Barrier(3), 2: threading.Barrier(3), 3: threading.Barrier(2)}

    def value(point: ExperimentCycle) -> float:
        assert point.cycle is not None
        if point.cycle in together:
            together[point.cycle].wait(30)
        size = int(point.experiment.id.rpartition(":")[2])
        return {1: 50.0, 2: 100.0, 4: 100.1}[size] + (point.cycle * size) % 3 / 10

    measured = Measured(value)
    cycles = {(each.id, cycle): ExperimentCycle(study, each, cycle) for each, cycle in study.schedule(6)}
    prefetch = Prefetch(measured, 3, {point.key: point for point in cycles.values()}, races=[race])
    prefetch.begin([NeededCycle(cycles[each.id, cycle], True) for each, cycle in race.round()])
    for number in range(1, 7):
        for each in study.experiments:
            prefetch.wait(cycles[each.id, number].key)
    prefetch.stop()
    prefetch.join()

    asked = [(id, cycle) for id, cycle, _ in measured.order]
    assert len(asked) == len(set(asked)) == sum(fate.cycles for fate in race.now.fates.values())
    assert [cycle for _, cycle in asked] == sorted(cycle for _, cycle in asked if cycle)
    assert race.now.fates["batch_size:1"].state == "dropped"
    assert race.now.status != "running"
