"""What a scorer is: a function of an answer and its answer key, with a check that the key can be read at all.

The worker and the session check keys with it before anything is measured; `results` and `llem score` score with it. A
scorer's name and version are part of results: who changes what it gives raises the version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pytest_llem.errors import JsonValue
from pytest_llem.job.request import Question


class Scorer(ABC):
    """Scores answers from 0 (wrong) to 1 (right); `name` is as a study writes it."""

    name: str
    version: str
    with_thoughts = False
    """Whether it scores what a model thought before it answered as well, where that stands in the text."""

    @abstractmethod
    def check(self, target: JsonValue) -> None:
        """Raises `WorkloadError` for an answer key that this scorer cannot read."""

    @abstractmethod
    def score(self, text: str, question: Question) -> float:
        """The score of an answer. Raises `ScoringError` where none can be given."""

    def score_all(self, answers: Sequence[tuple[str, Question]]) -> list[float]:
        """The scores of many answers, in order. Raises `ScoringError`, which names the question."""
        return [self.score(text, question) for text, question in answers]

    def load(self) -> None:  # noqa: B027 (most have nothing to load)
        """Read what it scores with, before anything is measured. Raises `LlemError` where that is not possible."""

    def rehearse(self, question: Question) -> None:
        """Raises what is wrong with the scorer itself, before anything is measured, by the first question's own key."""
        self.check(question.target)
