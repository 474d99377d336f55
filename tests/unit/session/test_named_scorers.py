"""Before anything runs, a study hears that its answers cannot be scored, where it says by what."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.job.report import RunnerName
from pytest_llem.session.named_files import require_named_files
from pytest_llem.study import load_study

ROWS = '{"question": "1+1?", "answer": "2"}\n{"question": "1+2?", "answer": "three"}\n'


def refused(folder: Path, score: str, runner: RunnerName = "local") -> str | None:
    """What is said, from its position in the study on; `None` where nothing is."""
    (folder / "q.jsonl").write_text(ROWS)
    study = folder / "study.yaml"
    workload = f"{{dataset: q.jsonl, column: question, answer_column: answer, prompts: 2, ignore_eos: false, {score}}}"
    study.write_text(f"model: builtin:tiny-llama\nworkload:\n  {workload}\n")
    try:
        require_named_files(load_study(study, env={}), lambda engine: runner)
    except LlemError as error:
        return str(error).replace(f"{folder}/", "")
    return None


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("exact", None),
        ("numerc", "workload.score: unknown scorer 'numerc'\nfix: did you mean 'numeric'?"),
        ("{regex: '(a'}", "workload.score: no regular expression '(a': missing )"),
    ],
)
@pytest.mark.parametrize("runner", ["local", "docker", "ray"])
def test_a_scorer_that_there_is_not_is_refused_where_it_is_written(
    tmp_path: Path, score: str, said: str | None, runner: RunnerName
) -> None:
    """On every runner: answers are scored here, once all is measured, and a slip would cost it all."""
    answer = refused(tmp_path, f"score: {score}", runner)
    if said is None:
        assert answer is None
    else:
        assert answer is not None
        assert answer.startswith(f"study.yaml:3:101: {said}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "workload.score: python: no such file or directory: grading.py"),
        ("def grade(answer, target):\n    return answer == target\n", None),
        ("import nowhere\n", "scorer python: grading.py:grade: grading.py:1: ModuleNotFoundError: No module named"),
        ("def great(): pass\n", "scorer python: grading.py:grade: grading.py: there is no grade"),
        (
            "def grade(answer, target):\n    return len(answer) + 1\n",
            "scorer python: grading.py:grade, question '1': grading.py: grade (line 1) gave 2, no number from 0 to 1",
        ),
        (
            "def grade(answer, target):\n    return answer[target]\n",
            "scorer python: grading.py:grade, question '1': grading.py:2: TypeError: string indices must be integers",
        ),
    ],
)
def test_a_function_beside_the_study_is_tried_with_a_key(tmp_path: Path, source: str | None, said: str | None) -> None:
    """Hours of measuring are not lost to a grader that never worked."""
    if source is not None:
        (tmp_path / "grading.py").write_text(source)
    answer = refused(tmp_path, 'score: {python: "grading.py:grade"}')
    if said is None:
        assert answer is None
    else:
        assert answer is not None
        assert answer.startswith(f"study.yaml:3:101: {said}")
        assert answer.count("grading.py:grade: grading.py") <= 1, "said once, though two checks see it"


def test_a_key_that_the_scorer_cannot_read_is_named_by_its_line(tmp_path: Path) -> None:
    answer = refused(tmp_path, "score: numeric")
    assert answer is not None
    assert "q.jsonl:2: no answer key for the scorer numeric: 'three'\nfix: write a number" in answer
