"""The section `quality` of a result: how many answers were right, and what a right one cost.

`sections.quality` fills it, and `schema` publishes it. Fields may be added; see `schema` for what else may change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llem.results.energy_schema import SENSOR_ALONE, Count, about


@dataclass(frozen=True, kw_only=True)
class QualitySection:
    """How right the answers of the measure windows were, by the study's scorer."""

    scorer: str = field(metadata=about("As the study writes it: numeric, regex: ..., python: FILE:FUNCTION, lm_eval."))
    scorer_version: str = field(metadata=about("Changes where the same answers may get other scores."))
    task: str | None = field(metadata=about("The task that gave the questions; null for a data set."))
    questions: Count = field(metadata=about("Questions of one repeat."))
    questions_hash: str = field(metadata=about("Hash of their ids and answer keys, in order."))
    answers: Count = field(metadata=about("Answers of all repeats; a request that failed is a wrong one."))
    correct: float | None = field(metadata=about("Sum of the scores of all answers."))
    accuracy: float | None = field(metadata=about("correct / answers."))
    accuracy_low: float | None = field(
        metadata=about("Lower bound of its two-sided 95.45 % interval over questions, repeated answers counting once.")
    )
    accuracy_high: float | None = field(metadata=about("Upper bound of the same."))
    scores: tuple[float, ...] = field(metadata=about("Mean score of each question over the repeats, in order."))
    input_tokens: tuple[float, ...] = field(metadata=about("Mean tokens of each question's prompt, in the same order."))
    output_tokens: tuple[float, ...] = field(metadata=about("Mean tokens of the answers to each."))
    unstable: Count = field(metadata=about("Questions whose score was not the same in all repeats."))
    cut: Count = field(metadata=about("Answers of all repeats that output_tokens ended."))
    joules_per_correct_answer: float | None = field(metadata=about("energy_j / correct: wrong answers cost as well."))
    joules_per_correct_answer_uncertainty: float | None = field(metadata=SENSOR_ALONE)
    questions_rel: float | None = field(
        metadata=about(
            "Standard error of joules_per_correct_answer by the choice of questions alone, as a share of it; null "
            "where no answer is right, or all are."
        )
    )
    reason: str | None = field(metadata=about("Why figures of this section are null."))
