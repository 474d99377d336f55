"""A grader that fails once all is measured: the measurement stays, and the corrected one scores it without another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.cli import main

STUDY = """\
name: graded
model: builtin:tiny-llama
engine: transformers
workload: {dataset: q.jsonl, answer_column: answer, prompts: 3, output_tokens: 4, score: {python: "grading.py:grade"}}
measurement: {min_duration_s: 0.1, idle: {duration_s: 0}, warmup: {max_repeats: 0}}
execution: {cycles: 1, retries: 0}
"""
GRADING = """\
def grade(answer, target, *, question_id):
    if answer != target and question_id == "2":
        raise LookupError("no such word")
    return 0.5
"""


def cycles(folder: Path) -> list[dict[str, Any]]:
    """The results of all runs, oldest first, each with the scores in its answers."""
    found = []
    for path in sorted(folder.glob("llem-results/*/graded/*/c1/result.json")):
        lines = (path.parent / "answers.jsonl").read_text().splitlines()
        found.append({**json.loads(path.read_text()), "scores": [json.loads(line)["score"] for line in lines]})
    return found


@pytest.mark.engine
def test_a_corrected_grader_measures_nothing_again(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{number} and {number}?", "answer": str(2 * number)} for number in range(3)]
    (pytester.path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pytester.path / "study.yaml").write_text(STUDY)
    (pytester.path / "grading.py").write_text(GRADING)
    options = ("--llem-study=study.yaml", "--llem-meter=none")

    pytester.runpytest(*options).assert_outcomes(passed=1)
    (first,) = cycles(pytester.path)
    assert first["scores"] == [None, None, None]
    (note,) = (note for note in first["warnings"] if note["code"] == "answers_not_scored")
    assert "question '2': " in note["message"]
    assert note["message"].endswith("grading.py:3: LookupError: no such word")
    assert (first["quality"]["accuracy"], first["quality"]["reason"]) == (None, note["message"])

    (pytester.path / "grading.py").write_text(GRADING.replace('question_id == "2"', "False"))
    pytester.runpytest(*options, "--llem-resume").assert_outcomes(passed=1)
    again = cycles(pytester.path)[-1]
    assert (again["source_run"], again["scores"]) == (first["run_id"], [0.5, 0.5, 0.5])

    run = pytester.path / "llem-results" / str(first["run_id"])
    capsys.readouterr()
    assert main(["score", str(run), "--write"]) == 0
    assert "graded[graded]: 2 not scored -> 0.5 in c1" in capsys.readouterr().out
    assert cycles(pytester.path)[0]["scores"] == [0.5, 0.5, 0.5]
