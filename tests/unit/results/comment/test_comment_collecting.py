"""What a comment takes from a run's folder: its verdicts, or those against another baseline, and its history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import EngineError, JsonValue
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.comment.collecting import collect
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow, write_gate
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import Invocation, PlannedCycle, StudyPlan, rebuild_manifest
from pytest_llem.results.state import Holder
from pytest_llem.results.store import RunStore
from tests.unit.results.conftest import Bench, Worker

NOISE = (1.00, 1.01, 0.99)
STUDY = """\
name: study
model: builtin:tiny-llama
engine: transformers
sweep: {transformers.batch_size: [1, 2]}
compare: {fail_if: {joules_per_output_token: 5%}}
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of two experiments; in the last the first one draws 30 % more power, and a cycle fails."""
    tmp_path, bench, key = tmp_path_factory.mktemp("gate"), Bench(), CycleKey("study", "batch_size:1", "01234567", 1)
    (tmp_path / "study.yaml").write_text(STUDY)
    second = CycleKey(key.study, "batch_size:2", "f" * 16, 1)
    cells = [replace(each, cycle=cycle) for each in (key, second) for cycle in (1, 2, 3)]
    cycles = tuple(PlannedCycle(each.experiment_id, each.config_hash, each.cycle) for each in cells)
    plan = StudyPlan(key.study, "study.yaml", cycles=cycles)
    command = ("/home/runner/venv/bin/pytest", f"--llem-study={tmp_path}/study.yaml", "--llem-baseline=history:h")
    for number, watts in enumerate((10.0, 10.0, 10.0, 13.0), 1):
        environment: dict[str, JsonValue] = {"hostname": "here", "git": {"commit": "c" * 40}}
        store = RunStore.create(
            tmp_path / "out", f"2026110{number}T000000Z-r", studies=(plan,), environment=environment
        )
        for cell in cells:
            power = (watts if cell.experiment_id == key.experiment_id else 10.0) * NOISE[cell.cycle - 1]
            fails = number == 4 and cell == cells[-1]
            inner = Worker(bench, cell, EngineError("out of <memory>") if fails else bench.measurement(power))
            inner.run_id = store.run_dir.name
            get_or_measure(store, cell, inner)
        called = Invocation(command, str(tmp_path), str(tmp_path), Holder.me())
        rebuild_manifest(store.run_dir, finished=True, invocation=called)
    return tmp_path


@pytest.fixture
def out(measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(measured)
    return measured / "out"


def test_a_run_is_judged_against_another_baseline_by_its_studys_limits(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anywhere, also for a run that was measured without a baseline."""
    assert main(["comment", "out/20261104T000000Z-r", "--baseline", "out/20261101T000000Z-r"]) == 0
    shown = capsys.readouterr().out
    assert "### ❌ 1 of 2 experiments is beyond its limit" in shown
    assert "**batch_size:1**: joules_per_output_token rose by 30.0 %" in shown
    assert "- study\\[batch_size:2-c3\\]: failed" in shown
    assert f"git fetch origin {'c' * 40} && git checkout FETCH_HEAD\n" in shown
    assert "\npytest --llem-study=study.yaml --llem-baseline=history:h\n" in shown


def test_the_newest_run_of_a_folder_is_meant(out: Path) -> None:
    assert collect(out).run_id == "20261104T000000Z-r"


def test_the_history_of_its_baseline_is_drawn_with_the_run_at_its_end(out: Path) -> None:
    """Runs on the default branch are in the history themselves by then, and came twice."""
    for number in range(1, 5):
        main(["history", "add", f"out/2026110{number}T000000Z-r", "--to", "h"])
    row = GateRow("joules_per_output_token", "comparison", "fail", "+5 %", 1.0, 9.9, 1.3, 1.2, 1.4, "rose")
    report = GateReport("study", "batch_size:1", (row,), False, BaselineNamed("history:h"))
    write_gate(out / "20261104T000000Z-r" / "study" / "batch_size_1-01234567", report)
    ((series, values),) = collect(out).series.items()
    assert series == "study\nbatch_size:1\njoules_per_output_token"
    assert len(values) == 4
    assert values[:3] == pytest.approx([values[0]] * 3)
    assert values[3] == 9.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out/none"], "out/none: no run"),
        (["out", "--baseline", "nowhere"], "no baseline 'nowhere'"),
        (["out", "--history", "nowhere"], "nowhere: no such folder"),
        (["out", "--report-url", "javascript:alert(1)"], "is no address"),
    ],
)
def test_what_is_not_there_is_said(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["comment", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_limits_are_in_the_study_which_must_be_there(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["comment", str(out), "--baseline", str(out / "20261101T000000Z-r")]) == 2
    assert "study.yaml: no such file: the limits of study study are in it" in capsys.readouterr().err
