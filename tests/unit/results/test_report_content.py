"""What the report's tables and charts are made of: points on the sweep's axes, and how far a run came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import Invocation, PlannedCycle, StudyPlan, rebuild_manifest
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.state import Holder
from pytest_llem.results.store import RunStore
from pytest_llem.study.model import SweptAxis

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

QUANTIZATION = SweptAxis("quantization", "quantization", ("none", "int4"), ("none", "load_in_4bit"))
BATCH = SweptAxis("transformers.batch_size", "batch_size", ("1", "8"), (1, 8))
Points = dict[str, tuple[JsonValue, ...]]
POINTS: Points = {"none-1": ("none", 1), "none-8": ("none", 8), "int4": ("load_in_4bit", None)}

Measured = Callable[..., Path]


@pytest.fixture
def measured(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> Measured:
    """A run of two cycles per point of which the first `ended` were measured; `settings` are those of each point."""

    def measured(run: str, points: Points, axes: Sequence[SweptAxis] = (), ended: int = 99) -> Path:
        store = RunStore.create(tmp_path / "out", run)
        names = {f"{name}": f"{number:08x}" for number, name in enumerate(points)}
        plan = StudyPlan(
            key.study,
            None,
            cycles=tuple(PlannedCycle(name, full, cycle) for name, full in names.items() for cycle in (1, 2)),
            axes=tuple(axes),
            points=points if axes else {},
        )
        rebuild_manifest(store.run_dir, studies=(plan,))
        for cell in plan.cycle_keys()[:ended]:
            inner = worker(cell, bench.measurement(10.0))

            def measure(
                attempt: int, job_dir: JobDir, inner: Worker = inner, cell: CycleKey = cell
            ) -> tuple[Job, RunReport]:
                inner.run_id = run
                job, report = inner(attempt, job_dir)
                first, second = points[cell.experiment_id]
                config = replace(job.config, settings={"quantization": first, "batch_size": second})
                return replace(job, config=config), report

            get_or_measure(store, cell, measure)
        return store.run_dir

    return measured


def test_rows_lie_where_the_sweep_put_them(measured: Measured) -> None:
    """Settings that happened to differ stood for axes: a group of three alternatives became eight of them."""
    run = measured("run", POINTS, [QUANTIZATION, BATCH])
    rebuild_manifest(run, finished=True)
    content = gather_content([run])
    assert content.axes["study"].axes == (QUANTIZATION, BATCH)
    assert {row.experiment: dict(row.point) for row in content.experiments} == {
        "none-1": {"quantization": "none", "transformers.batch_size": 1},
        "none-8": {"quantization": "none", "transformers.batch_size": 8},
        "int4": {"quantization": "load_in_4bit", "transformers.batch_size": None},
    }


def test_results_without_a_plan_have_the_settings_that_differ_as_axes(measured: Measured) -> None:
    run = measured("run", {"a": ("none", 1), "b": ("none", 8)})
    (run / "run.json").unlink()
    content = gather_content([run])
    assert [(axis.title, axis.values) for axis in content.axes["study"].axes] == [("batch_size", (1, 8))]
    assert [[*row.point.values()] for row in content.experiments] == [[1], [8]]


def test_a_sweep_that_grew_between_runs_has_the_values_of_both(measured: Measured) -> None:
    grown = replace(BATCH, labels=("8", "32"), values=(8, 32))
    runs = [
        measured("before", {"none-1": ("none", 1), "none-8": ("none", 8)}, [QUANTIZATION, BATCH]),
        measured("now", {"none-8": ("none", 8), "none-32": ("none", 32)}, [QUANTIZATION, grown]),
    ]
    axes = gather_content(runs).axes["study"]
    assert axes.axes[1].values == (1, 8, 32)
    assert axes.point("none-32")["transformers.batch_size"] == 32


def test_an_id_that_means_two_things_has_no_point_of_its_own(measured: Measured) -> None:
    """What the newer run's id stands for must not be said of the older run's figures."""
    runs = [measured("before", {"a": ("none", 1)}), measured("now", {"a": ("none", 8)})]
    content = gather_content(runs)
    assert [[*row.point.values()] for row in content.experiments] == [[1], [8]]
    assert content.axes["study"].point("a") == {}


@pytest.mark.parametrize(
    ("ended", "finished", "interrupted", "alive", "status"),
    [
        (99, True, False, False, "complete"),
        (3, True, False, False, "incomplete"),
        (3, True, True, False, "interrupted"),
        (3, False, None, False, "interrupted"),
        (3, False, None, True, "running"),
    ],
    ids=["complete", "-x", "Ctrl-C", "killed", "running"],
)
def test_a_run_says_how_far_it_came(
    measured: Measured, ended: int, finished: bool, interrupted: bool | None, alive: bool, status: str
) -> None:
    run = measured("run", POINTS, [QUANTIZATION, BATCH], ended)
    holder = Holder.me() if alive else replace(Holder.me(), started=0.0)
    called = Invocation(("pytest",), "", "", holder)
    rebuild_manifest(run, finished=finished, interrupted=interrupted, invocation=called)
    (state,) = gather_content([run]).states.values()
    assert (state.state, state.ended, state.planned) == (status, min(ended, 6), 6)
