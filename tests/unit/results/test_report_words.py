"""What the report says in words: points on the sweep's axes, how far a run came, what was asked, what to believe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note, RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow, RunOfBaseline, write_gate
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import Invocation, PlannedCycle, StudyPlan, rebuild_manifest
from pytest_llem.results.reading import Results
from pytest_llem.results.report.asked import asked
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.report.evidence import validity
from pytest_llem.results.report.experiments import experiments
from pytest_llem.results.report.overview import overview
from pytest_llem.results.report.verdicts import gates
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


def test_runs_in_folders_of_one_name_keep_their_own_axes(measured: Measured, tmp_path: Path) -> None:
    """Runs were known by the name of their folder, so that of `a/nightly` and `b/nightly` one lost its plan."""
    other = SweptAxis("dtype", "dtype", ("x", "y"), ("x", "y"))
    runs = []
    for name, axis in (("a", BATCH), ("b", other)):
        run = measured(name, {"one": (axis.values[0],) * 2, "two": (axis.values[1],) * 2}, [axis, QUANTIZATION])
        rebuild_manifest(run, finished=True)
        (tmp_path / name).mkdir()
        runs.append(run.rename(tmp_path / name / "nightly"))
    content = gather_content(runs)
    assert {name: state.planned for name, state in content.states.items()} == {"a": 4, "b": 4}
    assert {axis.title for axis in content.axes["study"].axes} == {"batch_size", "dtype", "quantization"}


def test_a_reused_cycle_counts_in_the_run_that_reused_it_alone(measured: Measured) -> None:
    """Beside the run that resumed it, an older run read `0 of 2` where its valid cycle had moved to the newer one."""
    old = measured("1", {"a": ("none", 1)})
    content = gather_content([old, _resumed(old, measured("2", {"a": ("none", 1)}))])
    assert [(row.run, row.valid, row.total) for row in content.experiments] == [("1", 1, 1), ("2", 2, 2)]
    assert content.states["2"].reused == 1


def _resumed(old: Path, new: Path) -> Path:
    """The newer run with its first cycle taken from the older one."""
    (cycle,) = new.glob("study/*/c1")
    for name in ("result.json", "state.json"):
        content = json.loads((cycle / name).read_text())
        (cycle / name).write_text(json.dumps({**content, "source_run": old.name}))
    rebuild_manifest(new, finished=True)
    rebuild_manifest(old, finished=True)
    return new


@pytest.mark.parametrize(
    ("ended", "finished", "interrupted", "alive", "status"),
    [
        (99, True, False, False, "complete"),
        (3, True, False, False, "stopped"),
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


def test_a_run_without_a_result_calls_no_cycle_valid(measured: Measured) -> None:
    """A search that was ended between its windows said "Every cycle is valid, without warnings." of none."""
    run = measured("run", POINTS, [QUANTIZATION, BATCH])
    content = replace(gather_content([run]), results=Results(()))
    assert validity(content) == "<p>No cycle has a result.</p>"


def test_the_top_says_how_far_a_run_came_and_what_failed(measured: Measured) -> None:
    """An interrupted run had the head of a whole one, and verdicts stood in a table far below."""
    run = measured("run", POINTS, [QUANTIZATION, BATCH], 3)
    rebuild_manifest(run, finished=True, interrupted=True)
    row = GateRow("output_tokens_per_s", "budget", "fail", ">= 9", None, 1.0, 0.1, 0.1, 0.2, "is <b>far</b> too slow")
    write_gate(run / "study" / "int4", GateReport("study", "int4", (row, replace(row, status="pass")), strict=False))
    top = overview(content := gather_content([run]))
    assert "1 planned experiment has no result." in experiments(content)
    assert "3 of 6 cycles, interrupted<" in top
    assert "1 gate failed<" in top
    assert "1 gate passed<" in top
    assert "<li>int4: output_tokens_per_s is &lt;b&gt;far&lt;/b&gt; too slow</li>" in top


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"meter": "none"}, "Energy was NOT measured."),
        ({"measured": False}, "Energy is NOT measured"),
        ({}, "The sensor is not calibrated: the bounds are wide."),
    ],
    ids=["not measured", "estimated", "uncalibrated"],
)
def test_the_top_warns_of_figures_that_are_worth_less(measured: Measured, change: dict[str, Any], said: str) -> None:
    run = measured("run", POINTS, [QUANTIZATION, BATCH])
    content = gather_content([run])
    assert "banner" not in overview(content)
    warned = {} if change else {"warnings": (Note("uncalibrated", "the counter was not calibrated"),)}
    worse = [each.model_copy(update={"energy": replace(each.energy, **change), **warned}) for each in content.results]
    assert said in overview(replace(content, results=Results(tuple(worse))))


def test_gates_name_the_runs_dates_and_commits_that_they_compare_with(measured: Measured) -> None:
    """A verdict stood there without what it was held against."""
    run = measured("run", POINTS, [QUANTIZATION, BATCH])
    against = BaselineNamed("main", (RunOfBaseline("earlier", "2026-11-01T10:00:00+00:00", "4f2a91c" * 5, True),))
    row = GateRow("ttft_p50_s", "relative", "inconclusive", "5%", 1.0, 1.0, 1.0, 0.9, 1.2, "too wide to tell")
    write_gate(run / "study" / "int4", GateReport("study", "int4", (row,), strict=False, baseline=against))
    shown = gates(gather_content([run]))
    for part in (">main<", ">earlier<", ">2026-11-01 10:00 UTC<", ">4f2a91c4f2 with changes<", "too wide to tell"):
        assert part in shown


def test_a_warning_has_one_row_however_many_cycles_have_it(measured: Measured) -> None:
    """A row per experiment and message filled pages with the same sentence."""
    content = gather_content([measured("run", POINTS, [QUANTIZATION, BATCH])])
    hot = [
        each.model_copy(update={"warnings": (Note("hot", f"{each.experiment.id} had <90> degrees"),)})
        for each in content.results
    ]
    shown = validity(replace(content, results=Results(tuple(hot))))
    assert shown.count("warning: hot") == 1
    assert "6 cycles of 3 experiments" in shown
    assert "for example: int4 had &lt;90&gt; degrees" in shown
    assert "<li>int4 c1, c2: int4 had &lt;90&gt; degrees</li>" in shown


QUESTIONS = {"score.regex": "is (.)", "answer_column": "key", "few_shot": 3, "system_prompt": "<x>"}
TASK: dict[str, str | int | None] = {"task": "lm_eval:x", "output_tokens": None, "ignore_eos": False, "stop": "['Q:']"}


@pytest.mark.parametrize(
    ("workload", "parts"),
    [
        (QUESTIONS, ("<dd>by regex is (.), key in column key<", "the system's prompt &lt;x&gt;, 3 examples")),
        (TASK, ("task lm_eval:x, seed", "up to the task's own output tokens, or up to one of [&#x27;Q:&#x27;]")),
    ],
)
def test_what_is_scored_is_told_with_what_is_in_front_of_it(
    measured: Measured, workload: dict[str, str | int | None], parts: Sequence[str]
) -> None:
    """And a task as what it is: beside it the data set is `synthetic`, which was not asked."""
    content = gather_content([measured("run", POINTS, [QUANTIZATION, BATCH])])
    settings = {f"config.workload.{name}": value for name, value in workload.items()}
    rows = tuple(replace(row, settings={**row.settings, **settings}) for row in content.experiments)

    shown = asked(replace(content, experiments=rows))

    assert [part for part in parts if part not in shown] == []


def test_what_was_asked_can_be_read_without_the_run(measured: Measured) -> None:
    run = measured("run", POINTS, [QUANTIZATION, BATCH])
    called = Invocation(("pytest", "--llem-study=a study.yaml"), "/here", "/here", Holder.me())
    manifest = rebuild_manifest(run, finished=True, invocation=called)
    plan = replace(manifest.studies[0], text="name: <study>\n", order="interleaved", required_cycles=2)
    rebuild_manifest(run, studies=(plan,))
    shown = asked(gather_content([run]))
    for part in (
        "builtin:tiny-llama, dtype float32",
        "<dt>Loaded</dt><dd>float32<",
        "batch_size 1, 8",
        "3 per repeat, data set synthetic, seed 0",
        "8 input tokens, 4 output tokens",
        "greedy",
        "1 to 10 repeats",
        "2 cycles per experiment; one cycle of each experiment in turn; a fresh process per cycle",
        "local, on cpu",
        "<code>pytest &#x27;--llem-study=a study.yaml&#x27;</code>",
        "name: &lt;study&gt;",
    ):
        assert part in shown
