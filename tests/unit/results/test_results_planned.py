"""What a run set out to do and did not come to is part of what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import EngineError
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import PlannedCycle, StudyPlan, rebuild_manifest
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import ExperimentSummary, summarise, summary_csv

if TYPE_CHECKING:
    from tests.unit.results.conftest import Worker

    MakeWorker = Callable[..., Worker]
    Stopped = Callable[..., list[Outcome]]

PLANNED = 3


@pytest.fixture
def plan(key: CycleKey) -> StudyPlan:
    cycles = tuple(PlannedCycle(key.experiment_id, key.config_hash, cycle) for cycle in range(1, PLANNED + 1))
    return StudyPlan(key.study, None, cycles=cycles, required_cycles=PLANNED)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run-1"


@pytest.fixture
def stopped(run_dir: Path, key: CycleKey, plan: StudyPlan, worker: MakeWorker) -> Stopped:
    """Measures some cycles of a plan of three, and closes the run."""

    def measure(*cycles: int, failing: int | None = None) -> list[Outcome]:
        store = RunStore.create(run_dir.parent, run_dir.name, studies=(plan,), environment={})
        keys = [replace(key, cycle=cycle) for cycle in cycles]
        gone = EngineError("gone")
        outcomes = [
            get_or_measure(store, each, worker(each, *([gone] if each.cycle == failing else []))) for each in keys
        ]
        rebuild_manifest(run_dir, finished=True)
        return outcomes

    return measure


def rows(outcomes: list[Outcome], plan: StudyPlan) -> list[ExperimentSummary]:
    known = {outcome.key: outcome for outcome in outcomes}
    return list(summarise([*plan.cycle_keys(), *known], known.get))


def test_cycles_that_were_not_come_to_count(stopped: Stopped, plan: StudyPlan) -> None:
    """After Ctrl-C or `-x` the table said 1/1."""
    (row,) = rows(stopped(1), plan)
    assert (row.cycles_valid, row.cycles_total) == (1, 3)
    assert row.states == {"valid": 1, "pending": 2}
    assert ",1,3," in summary_csv([row])


def test_optional_cycles_count_once_they_are_measured(stopped: Stopped, plan: StudyPlan) -> None:
    (row,) = rows(stopped(1, 2, 3, 4), plan)
    assert (row.cycles_valid, row.cycles_total) == (4, 4)


def test_an_experiment_that_never_began_has_no_row(plan: StudyPlan) -> None:
    assert rows([], plan) == []


def test_a_report_of_a_run_counts_what_was_planned(stopped: Stopped, run_dir: Path) -> None:
    (outcome, _) = stopped(1, 2, failing=2)
    for whole in (run_dir, run_dir.parent):
        (row,) = gather_content([whole]).experiments
        assert (row.valid, row.total) == (1, 3)
    (row,) = gather_content([outcome.directory / "result.json"]).experiments
    assert (row.valid, row.total) == (1, 1)
