"""Scores the answers of a cycle, once it is over, and writes the scores beside them.

`attempts` calls it before it derives the result, and `llem score` scores stored answers with it. What fails here costs
the scores alone: the measurement stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_llem.errors import JsonValue, LlemError, ScoringError
from pytest_llem.job.answers import Answered, read_answers, without_thoughts, write_answers
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.job import JobDir
from pytest_llem.job.request import Question
from pytest_llem.scoring.registry import scorer_of
from pytest_llem.scoring.scorer import Scorer


class Unavailable(Scorer):
    """A scorer that was there when the study was collected, and is not any more."""

    version = "unknown"

    def __init__(self, name: str, problem: LlemError) -> None:
        self.name, self._problem = name, problem

    def check(self, target: JsonValue) -> None:
        """Nothing is known of its keys."""

    def score(self, text: str, question: Question) -> float:
        """Raises why it is not there."""
        raise self._problem


@dataclass(frozen=True)
class Scored:
    """The answers of a cycle with their scores, or why there are none."""

    scorer: Scorer
    answers: Sequence[Answered]
    problem: str | None = None


def score_cycle(settings: WorkloadSettings, job_dir: JobDir) -> Scored | None:
    """Score what the worker wrote; `None` where the study scores nothing."""
    if not settings.scored:
        return None
    scorer = _scorer(settings)
    answers: list[Answered] = []
    try:
        answers = read_answers(job_dir.answers)
        scored = score_answers(scorer, answers)
    except LlemError as problem:
        return Scored(scorer, answers, problem.message)
    except Exception as problem:  # noqa: BLE001 (a scorer may be anybody's)
        return Scored(scorer, answers, f"{type(problem).__name__}: {problem}")
    kept = to_keep(settings, scored)
    write_answers(job_dir.answers, kept)
    return Scored(scorer, kept)


def to_keep(settings: WorkloadSettings, scored: Sequence[Answered]) -> Sequence[Answered]:
    """Answers that are scored as they are kept: without their texts, where a study says so."""
    return scored if settings.keep_answers else [replace(answer, text=None) for answer in scored]


def _scorer(settings: WorkloadSettings) -> Scorer:
    """The scorer with its version, which is read off its file where it has one."""
    name, missing = settings.task or str(settings.score), ScoringError("nothing here scores these answers")
    try:
        scorer = scorer_of(settings)
        if scorer is not None:
            name = scorer.name
            if scorer.version:
                return scorer
    except LlemError as problem:
        return Unavailable(name, problem)
    return Unavailable(name, missing)


def score_answers(scorer: Scorer, answers: Sequence[Answered]) -> list[Answered]:
    """The answers with their scores: those of what is said behind a model's thoughts. A failed request's is 0.

    Raises `ScoringError` where the scorer fails, or a text was not kept.
    """
    given: list[tuple[str, Question]] = []
    for answer in answers:
        if answer.text is None and answer.error is None:
            raise ScoringError(
                f"question {answer.question!r}: the text of its answer was not kept",
                fix="measure again without keep_answers: false",
            )
        if answer.text is not None:
            text = answer.text if scorer.with_thoughts else without_thoughts(answer.text)
            given.append((text, Question(answer.question, answer.target)))
    scores = iter(scorer.score_all(given))
    return [replace(answer, score=0.0 if answer.text is None else next(scores)) for answer in answers]
