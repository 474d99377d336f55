"""The section `quality`: how many answers were right, and what a right one cost; and what it says of an experiment.

`derive` calls it with the answers that `scored` has scored, `summary` and `uncertainty` with the results of cycles.
Questions are what is sampled: an answer that repeats word for word tells nothing new.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_llem.job.answers import Answered
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.results.energy_schema import Energy
from pytest_llem.results.quality_schema import QualitySection
from pytest_llem.results.questions import Questions, accuracy_interval, cost_error
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import divided, drawn_by, uncertainty_of, value_of
from pytest_llem.scoring.scorer import Scorer

NONE_CORRECT = "no answer is right, and so none has a cost"


@dataclass(frozen=True)
class Scores:
    """What stands behind accuracy and joules per right answer of an experiment; numbers are those of its valid cycles.

    `reason` says why one of the two, or both, are absent.
    """

    scorer: str
    scorer_version: str
    task: str | None
    questions: int
    answers: int
    correct: float | None
    cut: int
    reason: str | None


def derive_quality(
    settings: WorkloadSettings,
    scorer: Scorer,
    answers: Sequence[Answered],
    problem: str | None,
    energy: Energy,
    asked: int,
) -> QualitySection:
    """The section; `problem` says why the answers have no scores, and `asked` counts the requests that energy is of."""
    by_question: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        by_question[answer.question].append(answer)
    count = sum(answer.repeats for answer in answers)
    if problem is None and count != asked:
        problem = f"{count} answers were kept of {asked} requests"
    correct = accuracy = low = high = error = None
    scores: tuple[float, ...] = ()
    prompts = _means(by_question, lambda answer: answer.input_tokens)
    lengths = _means(by_question, lambda answer: answer.output_tokens)
    if problem is None and answers:
        scores = _means(by_question, lambda answer: answer.score or 0.0)
        correct = math.fsum((answer.score or 0.0) * answer.repeats for answer in answers)
        accuracy = correct / count
        low, high = accuracy_interval(accuracy, len(scores))
        error = cost_error(Questions(scores, prompts, lengths))
    joules = divided(drawn_by(energy), correct or 0)
    return QualitySection(
        scorer=scorer.name,
        scorer_version=scorer.version,
        task=settings.task,
        questions=len(by_question),
        questions_hash=_hash(by_question),
        answers=count,
        correct=correct,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        scores=scores,
        input_tokens=prompts,
        output_tokens=lengths,
        unstable=sum(len({answer.score for answer in each}) > 1 for each in by_question.values()),
        cut=sum(answer.repeats for answer in answers if answer.finish_reason == "length"),
        joules_per_correct_answer=value_of(joules),
        joules_per_correct_answer_uncertainty=uncertainty_of(joules),
        questions_rel=error,
        reason=problem or (NONE_CORRECT if correct == 0 else None),
    )


def summarised_scores(results: Sequence[Result]) -> Scores | None:
    """What the valid cycles of an experiment say; `None` where its answers are not scored."""
    sections = [result.quality for result in results if result.quality is not None]
    if not sections:
        return None
    first, reasons = sections[0], [each.reason for each in sections]
    known = [each.correct for each in sections if each.correct is not None]
    why = next(filter(None, reasons), None)
    if why is not None and None in reasons:
        cycles = ", ".join(f"c{result.cycle}" for result, reason in zip(results, reasons, strict=False) if reason)
        why = f"{cycles}: {why}"
    by = dict.fromkeys(f"{each.scorer} {each.scorer_version}" for each in sections if each.scores)
    if why is None and len(by) > 1:
        why = f"cycles were scored by {' and '.join(by)}: `llem score RUN --write` scores all of them alike"
    return Scores(
        scorer=first.scorer,
        scorer_version=first.scorer_version,
        task=first.task,
        questions=first.questions,
        answers=sum(each.answers for each in sections),
        correct=math.fsum(known) if known else None,
        cut=sum(each.cut for each in sections),
        reason=why,
    )


def asked_questions(results: Sequence[Result]) -> Questions | None:
    """Each question's means over cycles; `None` where these have other questions or scorers, or no scores."""
    sections = [each for each in (result.quality for result in results) if each is not None and each.scores]
    if len({(each.questions_hash, each.scorer, each.scorer_version) for each in sections}) != 1:
        return None
    columns = [zip(*(getattr(each, name) for each in sections), strict=True) for name in Questions.__annotations__]
    return Questions(*([fmean(of) for of in column] for column in columns))


def _means(by_question: dict[str, list[Answered]], of: Callable[[Answered], float]) -> tuple[float, ...]:
    """The mean of each question over the repeats, in order."""
    return tuple(
        math.fsum(of(answer) * answer.repeats for answer in each) / sum(answer.repeats for answer in each)
        for each in by_question.values()
    )


def _hash(by_question: dict[str, list[Answered]]) -> str:
    listed = [[question, answers[0].target] for question, answers in by_question.items()]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
