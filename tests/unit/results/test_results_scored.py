"""A cycle's answers are scored once it is over; whatever fails there costs the scores, and never the measurement."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llem.errors import ScoringError
from pytest_llem.job.answers import Answered, read_answers, text_hash, write_answers
from pytest_llem.job.config import ScoreBy, WorkloadSettings
from pytest_llem.job.job import JobDir
from pytest_llem.results.scored import score_answers, score_cycle
from pytest_llem.scoring.numbers import Numeric
from pytest_llem.scoring.texts import TEXT_SCORERS


def answered(question: str, text: str | None, key: str = "2", repeats: int = 1, error: str | None = None) -> Answered:
    digest = None if text is None else text_hash(text)
    return Answered(question, key, repeats, text, digest, "error" if error else "stop", 5, 3, error)


@pytest.fixture
def job_dir(tmp_path: Path) -> JobDir:
    made = JobDir(tmp_path)
    write_answers(
        made.answers, [answered("q1", "it is 2", repeats=3), answered("q2", "3"), answered("q3", None, error="timeout")]
    )
    return made


def test_scores_are_written_beside_the_answers(job_dir: JobDir) -> None:
    scored = score_cycle(WorkloadSettings(score="numeric"), job_dir)
    assert scored is not None
    assert [answer.score for answer in scored.answers] == [1.0, 0.0, 0.0]
    assert scored.problem is None
    assert read_answers(job_dir.answers) == scored.answers


def test_texts_that_are_not_kept_leave_their_hashes(job_dir: JobDir) -> None:
    score_cycle(WorkloadSettings(score="numeric", keep_answers=False), job_dir)
    kept = read_answers(job_dir.answers)
    assert [answer.text for answer in kept] == [None] * 3
    assert [answer.sha256 for answer in kept] == [text_hash("it is 2"), text_hash("3"), None]
    assert [answer.score for answer in kept] == [1.0, 0.0, 0.0]
    with pytest.raises(ScoringError, match="question 'q1': the text of its answer was not kept"):
        score_answers(Numeric(), kept)


def test_nothing_is_scored_unless_asked_for(job_dir: JobDir) -> None:
    assert score_cycle(WorkloadSettings(), job_dir) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(answer, target):\n    return [1][int(answer[-1]) - 2]\n", "question 'q2'.*grading.py:2: IndexError"),
        ("def f(answer, target):\n    return None\n", "question 'q1'.*no number from 0 to 1"),
        (None, "no such file or directory: .*grading.py"),
    ],
)
def test_a_scorer_that_fails_leaves_the_answers_as_they_were(
    job_dir: JobDir, tmp_path: Path, source: str | None, said: str
) -> None:
    """Hours were measured: a grader that someone edits, or removes, meanwhile must not fail the cycle."""
    before = job_dir.answers.read_bytes()
    if source is not None:
        (tmp_path / "grading.py").write_text(source)
    scored = score_cycle(WorkloadSettings(score=ScoreBy(python=f"{tmp_path}/grading.py:f")), job_dir)
    assert scored is not None
    assert scored.scorer.name == "python: grading.py:f"
    assert re.search(said, scored.problem or "")
    assert job_dir.answers.read_bytes() == before


def test_a_scorer_of_a_package_that_is_gone_costs_the_scores_alone(job_dir: JobDir) -> None:
    scored = score_cycle(WorkloadSettings(score="bleu"), job_dir)
    assert scored is not None
    assert (scored.scorer.name, scored.problem) == ("bleu", "workload.score: unknown scorer 'bleu'")


def test_answers_that_are_missing_cost_the_scores_alone(tmp_path: Path) -> None:
    scored = score_cycle(WorkloadSettings(score="exact"), JobDir(tmp_path))
    assert scored is not None
    assert scored.problem is not None
    assert "answers.jsonl" in scored.problem


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>Rome, or Paris?</think>\n\nRome", 0.0),
        ("Rome?</think>Paris", 1.0),
        ("<think>It is Paris, I think, but", 0.0),
        ("Paris", 1.0),
    ],
)
def test_thoughts_are_not_scored(text: str, score: float) -> None:
    """A word that the model weighed and did not choose would be a right answer."""
    answer = Answered("q", "Paris", 1, text, text_hash(text), "stop", 3, 5)
    assert score_answers(TEXT_SCORERS["contains"], [answer])[0].score == score


def test_a_scorer_that_reads_thoughts_is_given_them() -> None:
    """As lm-evaluation-harness does: else the same stored answers would have other scores there."""

    class Whole(Numeric):
        with_thoughts = True

    text = "<think>2</think>"
    answer = Answered("q", "2", 1, text, text_hash(text), "stop", 3, 5)
    assert [score_answers(scorer, [answer])[0].score for scorer in (Whole(), Numeric())] == [1.0, 0.0]
