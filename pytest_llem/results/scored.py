"""Scores the answers of a cycle, once it is over, and writes the scores beside them.

`attempts` calls it before it derives the result. What fails here costs the scores alone: the measurement stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_llem.errors import LlemError
from pytest_llem.job.answers import Answered, read_answers, write_answers
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.job import JobDir
from pytest_llem.job.request import Question
from pytest_llem.scoring.registry import scorer_of
from pytest_llem.scoring.scorer import Scorer


@dataclass(frozen=True)
class Scored:
    """The answers of a cycle with their scores, or why there are none."""

    scorer: Scorer
    answers: Sequence[Answered]
    problem: str | None = None


def score_cycle(settings: WorkloadSettings, job_dir: JobDir) -> Scored | None:
    """Score what the worker wrote; `None` where the study scores nothing."""
    scorer = scorer_of(settings)
    if scorer is None:
        return None
    answers: list[Answered] = []
    try:
        answers = read_answers(job_dir.answers)
        scored = score_answers(scorer, answers)
    except LlemError as problem:
        return Scored(scorer, answers, problem.message)
    kept = scored if settings.keep_answers else [replace(answer, text=None) for answer in scored]
    write_answers(job_dir.answers, kept)
    return Scored(scorer, kept)


def score_answers(scorer: Scorer, answers: Sequence[Answered]) -> list[Answered]:
    """The answers with their scores; one without a text is wrong. Raises `ScoringError` where the scorer fails."""
    return [
        replace(answer, score=0.0 if answer.text is None else scorer.score(answer.text, _question(answer)))
        for answer in answers
    ]


def _question(answer: Answered) -> Question:
    return Question(answer.question, answer.target)
