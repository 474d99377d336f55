"""The section `quality`: how many answers were right, and what a right one cost.

`derive` calls it with the answers that `scored` has scored. Questions are what is sampled: an answer that repeats word
for word tells nothing new.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from pytest_llem.job.answers import Answered
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.measurement import Measured
from pytest_llem.results.energy_schema import Energy
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.quality_schema import QualitySection
from pytest_llem.results.sections.energy import divided, uncertainty_of, value_of
from pytest_llem.scoring.scorer import Scorer

NONE_CORRECT = "no answer is right, and so none has a cost"


def derive_quality(
    settings: WorkloadSettings, scorer: Scorer, answers: Sequence[Answered], problem: str | None, energy: Energy
) -> QualitySection:
    """The section; `problem` says why the answers have no scores."""
    by_question: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        by_question[answer.question].append(answer)
    count = sum(answer.repeats for answer in answers)
    correct = accuracy = low = high = None
    scores: list[float] = []
    if problem is None and answers:
        scores = [_mean_score(each) for each in by_question.values()]
        correct = sum((answer.score or 0.0) * answer.repeats for answer in answers)
        accuracy = fmean(scores)
        low, high = binomial_interval(accuracy * len(scores), len(scores))
    drawn = None
    if energy.energy_j is not None:
        drawn = Measured(energy.energy_j, math.inf if energy.uncertainty_j is None else energy.uncertainty_j)
    joules = divided(drawn, correct or 0)
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
        scores=tuple(scores),
        unstable=sum(len({answer.score for answer in each}) > 1 for each in by_question.values()),
        cut=sum(answer.repeats for answer in answers if answer.finish_reason == "length"),
        joules_per_correct_answer=value_of(joules),
        joules_per_correct_answer_uncertainty=uncertainty_of(joules),
        questions_rel=None,
        reason=problem or (NONE_CORRECT if correct == 0 else None),
    )


def _mean_score(answers: Sequence[Answered]) -> float:
    return sum((answer.score or 0.0) * answer.repeats for answer in answers) / sum(each.repeats for each in answers)


def _hash(by_question: dict[str, list[Answered]]) -> str:
    listed = [[question, answers[0].target] for question, answers in by_question.items()]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
