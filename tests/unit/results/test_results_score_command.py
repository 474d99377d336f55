"""`llem score`: stored answers are scored again, by the same scorer or another; a run may keep the new scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.cli import main
from pytest_llem.job.answers import read_answers
from pytest_llem.job.config import ScoreBy
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.gate_report import GateReport, GateRow, write_gate
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import load, load_rows
from pytest_llem.results.rescored import scored_now
from pytest_llem.results.resume import Reuse
from pytest_llem.results.store import RunStore
from tests.unit.results.scored_runs import SCORED, answered, scored_run

TEXTS = ["Paris", "It is Paris.", "Rome", None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two right by `contains`, one by `exact`, as the run had it; a request failed."""
    return scored_run(tmp_path / "out", {"a": (10.0, answered(TEXTS))}, cycles=2)


def test_another_scorer_shows_what_it_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["score", str(run), "--score", "contains"]) == 0
    printed = capsys.readouterr().out
    assert "study[a]" in printed
    assert "contains" in printed
    assert "8 of 16" in printed
    assert "50.0%" in printed
    assert "study[a]: q1 0 -> 1 in c1, c2" in printed
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_same_scorer_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(run), "--format", "json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    results = load(run)
    assert (group["scorer"], group["changed"]) == ("exact", [])
    assert (
        [cycle["correct"] for cycle in group["cycles"]] == [r.quality and r.quality.correct for r in results] == [2, 2]
    )
    stated: Any = group["metrics"]["joules_per_correct_answer"]
    assert stated["value"] == pytest.approx(sum(r.energy.energy_j or 0 for r in results) / 4)


def test_a_function_and_an_expression_are_named_on_the_command_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grading.py").write_text("def half(answer, target):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(run), "--score", "python:grading.py:half", "--format", "json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert group["scorer"] == "python: grading.py:half"
    assert group["metrics"]["accuracy"]["value"] == 0.375  # a request that failed is wrong, whoever scores
    assert main(["score", str(run), "--score", r"regex:is (\w+)", "--format", "json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert group["metrics"]["accuracy"]["value"] == 0.25


def test_written_scores_are_those_of_result_answers_and_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A summary with the old accuracy beside results with the new one would be two truths in one run."""
    first = load(run)
    assert main(["score", str(run), "--score", "contains", "--write"]) == 0
    assert f"written to {run}" in capsys.readouterr().out
    results = load(run)
    for old, result in zip(first, results, strict=True):
        assert result.quality is not None
        assert (result.quality.scorer, result.quality.correct, result.quality.accuracy) == ("contains", 4, 0.5)
        assert result.model_copy(update={"quality": old.quality}) == old
    summary = json.loads((run / "summary.json").read_text())
    (row,) = summary["experiments"]
    assert row["metrics"]["accuracy"]["value"] == 0.5
    assert row["metrics"]["joules_per_output_token"]["n"] == 2
    assert "0.5" in (run / "summary.csv").read_text()
    for directory in run.glob("*/*/c*"):
        assert [answer.score for answer in read_answers(directory / "answers.jsonl")] == [1, 1, 0, 0]


def test_what_was_scored_before_stays(run: Path) -> None:
    (cycle, _) = sorted(run.glob("*/*/c*"))
    kept = [(cycle / name).read_bytes() for name in ("result.json", "answers.jsonl")]
    assert main(["score", str(run), "--score", "contains", "--write"]) == 0
    assert main(["score", str(run), "--score", "exact", "--write"]) == 0
    assert [(cycle / name).read_bytes() for name in ("result-1.json", "answers-1.jsonl")] == kept
    assert (cycle / "result-2.json").exists()
    assert (cycle / "answers.jsonl").read_bytes() == kept[1]
    assert len(load(run)) == len(load(run.parent)) == 2  # no reader takes them for results


def test_gates_on_scores_stand_and_that_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cycle, _) = sorted(run.glob("*/*/c*"))
    row = GateRow("accuracy", "budget", "fail", ">= 0.5", None, 0.25, 0.5, 0.1, 0.9, "below the budget")
    write_gate(cycle.parent, GateReport("study", "a", (row,), strict=False))
    before = (cycle.parent / "gate.json").read_bytes()
    assert main(["score", str(run), "--score", "contains", "--write"]) == 0
    assert "its gates and junit.xml stand as they were: llem compare judges" in capsys.readouterr().out
    assert (cycle.parent / "gate.json").read_bytes() == before


def test_a_warning_of_scores_goes_with_them(tmp_path: Path) -> None:
    texts = [replace(each, finish_reason="length") for each in answered(["It is Paris"] * 3)]
    run = scored_run(tmp_path / "out", {"a": (10.0, texts)}, cycles=1)
    (result,) = load(run)
    assert "answers_cut" in {note.code for note in result.warnings}
    assert main(["score", str(run), "--score", "contains", "--write"]) == 0
    (result,) = load(run)
    assert "answers_cut" not in {note.code for note in result.warnings}


def test_a_reused_cycle_brings_its_answers_with_the_scores_of_today(run: Path, tmp_path: Path) -> None:
    """`--llem-resume` copied the result alone, so that nothing could be scored again by a corrected grader."""
    store = RunStore.create(tmp_path / "out", "run-2")
    (result, _), cycle = load(run), min(run.glob("*/*/c*"))
    key = CycleKey(result.study, result.experiment.id, result.experiment.config_hash, result.cycle)
    earlier = Reuse(result, None, cycle)
    assert scored_now(earlier, SCORED) == earlier
    now = scored_now(earlier, replace(SCORED, score="contains"))
    assert get_or_measure(store, key, never, reuse=lambda: now).result is not None
    (reused,) = load_rows(store.run_dir)
    assert reused.quality is not None
    assert (reused.source_run, reused.quality.scorer, reused.quality.correct) == ("run-1", "contains", 4)
    assert [answer.score for answer in read_answers(store.directory(key) / "answers.jsonl")] == [1, 1, 0, 0]
    assert [answer.score for answer in read_answers(cycle / "answers.jsonl")] == [1, 0, 0, 0]


def test_a_result_that_today_cannot_be_scored_is_not_reused(tmp_path: Path) -> None:
    settings = replace(SCORED, keep_answers=False)
    run = scored_run(tmp_path / "out", {"a": (10.0, answered(TEXTS))}, settings=settings, cycles=1)
    found = Reuse(load(run)[0], None, min(run.glob("*/*/c*")))
    assert scored_now(found, settings) == found
    refused = scored_now(found, replace(settings, score="contains"))
    assert refused.result is None
    assert "the text of its answer was not kept" in (refused.reason or "")


def never(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
    raise AssertionError("measured again")


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("exat", "study[a-c1]: workload.score: unknown scorer 'exat'\nfix: did you mean 'exact'?"),
        ("numeric", "study[a-c1]: question 'q0': no answer key for the scorer numeric: 'Paris'"),
        ("regex:(", "study[a-c1]: workload.score: no regular expression '('"),
        ("python:none.py:f", "no such file or directory"),
        ("python:none.py", "names no function of a file"),
        ("rgex:a", "unknown kind 'rgex'\nfix: use a scorer's name, regex:EXPRESSION or python:FILE:FUNCTION"),
    ],
)
def test_a_scorer_that_cannot_score_is_named_and_nothing_is_written(
    run: Path, capsys: pytest.CaptureFixture[str], scorer: str, said: str
) -> None:
    assert main(["score", str(run), "--score", scorer, "--write"]) == 2
    assert said in capsys.readouterr().err
    assert not [*run.rglob("result-1.json")]


def test_answers_that_were_not_kept_cannot_be_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(SCORED, keep_answers=False)
    run = scored_run(tmp_path / "out", {"a": (10.0, answered(TEXTS))}, settings=settings, cycles=1)
    assert main(["score", str(run)]) == 2
    printed = capsys.readouterr().err
    assert "study[a-c1]: question 'q0': the text of its answer was not kept" in printed
    assert "fix: measure again without keep_answers: false" in printed


def test_texts_that_are_not_kept_are_gone_once_they_are_scored(tmp_path: Path) -> None:
    """A scorer that fails leaves them for another try, after which they stayed, in the earlier answers as well."""
    settings = replace(SCORED, keep_answers=False, score=ScoreBy(python=f"{tmp_path}/absent.py:f"))
    run = scored_run(tmp_path / "out", {"a": (10.0, answered(TEXTS))}, settings=settings, cycles=1)
    assert "It is Paris" in "".join(path.read_text() for path in run.rglob("answers*.jsonl"))
    assert main(["score", str(run), "--score", "contains", "--write"]) == 0
    files = sorted(run.rglob("answers*.jsonl"))
    assert [path.name for path in files] == ["answers-1.jsonl", "answers.jsonl"]
    assert "Paris." not in "".join(path.read_text() for path in files)
    assert [answer.score for answer in read_answers(files[1])] == [1, 1, 0, 0]


def test_a_run_without_scored_answers_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = scored_run(tmp_path / "out", {"a": (10.0, answered(TEXTS))}, settings=replace(SCORED, score=None), cycles=1)
    assert main(["score", str(run)]) == 2
    assert "no answers were scored here\nfix: measure with workload.score" in capsys.readouterr().err
