"""A baseline holds the cycles that the study asked for: all of them, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.results.baselines import read_baseline, save_baseline
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import PlannedCycle, StudyPlan
from pytest_llem.results.schema import Result
from tests.unit.results.conftest import Bench


@pytest.fixture
def results(bench: Bench, key: CycleKey) -> list[Result]:
    """Five cycles, at 11 to 15 W."""
    first = [bench.result(bench.measurement(10.0 + cycle), key) for cycle in range(1, 6)]
    return [result.model_copy(update={"cycle": cycle}) for cycle, result in enumerate(first, 1)]


def plan(key: CycleKey, cycles: int, required: int) -> StudyPlan:
    planned = tuple(PlannedCycle(key.experiment_id, key.config_hash, cycle) for cycle in range(1, cycles + 1))
    return StudyPlan(key.study, None, cycles=planned, required_cycles=required)


def test_optional_cycles_are_no_part_of_a_baseline(results: list[Result], key: CycleKey, tmp_path: Path) -> None:
    """`target_ci` adds cycles where the first ones scatter; a bound over all of them is biased."""
    (file,) = save_baseline("main", results, tmp_path, plans=[plan(key, 3, 3)]).files
    (entry,) = read_baseline(file).experiments.values()
    assert entry.runs[0].values["avg_power_w"] == (11.0, 12.0, 13.0)


def test_an_experiment_with_missing_cycles_is_refused_unless_forced(
    results: list[Result], key: CycleKey, tmp_path: Path
) -> None:
    plans = [plan(key, 3, 3)]
    refused = save_baseline("main", results[:1], tmp_path, plans=plans)
    assert refused.refused == {(key.study, key.experiment_id): "1 of 3 cycles"}
    assert not refused.files
    assert save_baseline("main", results[:1], tmp_path, plans=plans, force=True).files


def test_deselected_cycles_are_not_missed(results: list[Result], key: CycleKey, tmp_path: Path) -> None:
    assert save_baseline("main", results[:2], tmp_path, plans=[plan(key, 2, 3)]).files


def test_only_optional_cycles_are_no_baseline(results: list[Result], key: CycleKey, tmp_path: Path) -> None:
    saved = save_baseline("main", results[3:], tmp_path, plans=[plan(key, 0, 3)])
    assert saved.refused == {(key.study, key.experiment_id): "no valid cycle"}
