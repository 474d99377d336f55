"""How far accuracy and joules per right answer may be from those of all questions like the ones that were asked.

`sections.quality` and `uncertainty` call it. It is pure: docs/quality.md has how often its intervals hold the truth.

Questions are what is sampled, independently of each other. What is seen of one is a mean over its answers: repeats and
cycles tell more of that one, and nothing of others. Energy is not known question by question. It is taken to be a sum
over questions, in which unknown parts go with the tokens of the answer, with those of the prompt, and evenly: the
standard deviation of such a sum is at most that of the part that varies most, whatever the parts are, because a norm is
convex. So no weights are assumed, and each part is tried as the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean, stdev

from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.statistics import COVERAGE


@dataclass(frozen=True)
class Questions:
    """What is known of each question, in one order: its mean score, and the mean tokens of prompt and answer."""

    scores: Sequence[float]
    input_tokens: Sequence[float]
    output_tokens: Sequence[float]

    @property
    def accuracy(self) -> float:
        """The mean score."""
        return fmean(self.scores)

    def energies(self) -> Iterator[list[float]]:
        """Each question's energy over the mean, if all of it went with the one part or the other."""
        yield [1.0] * len(self.scores)
        for tokens in (self.output_tokens, self.input_tokens):
            mean = fmean(tokens)
            if mean:
                yield [value / mean for value in tokens]


def accuracy_interval(accuracy: float, questions: int, confidence: float = COVERAGE) -> tuple[float, float]:
    """The exact binomial interval with as many trials as questions.

    Scores between 0 and 1 scatter less than right and wrong ones of the same mean, so that it is wider than need be.
    """
    return binomial_interval(accuracy * questions, questions, confidence)


def cost_interval(asked: Questions, confidence: float = COVERAGE) -> tuple[float, float] | None:
    """By which factors joules per right answer may be lower and higher; `None` where none is right, or of one question.

    The logarithm of the cost is that of the energy of a question less that of accuracy: a ratio estimator (Cochran,
    Sampling Techniques, 3rd ed., 6.3 and 6.4), whose two sides are correlated. Accuracy's side is the exact interval,
    which is not even; a side of both is joined as correlated errors are.
    """
    count, accuracy = len(asked.scores), asked.accuracy
    if count < 2 or not accuracy:
        return None
    low, high = accuracy_interval(accuracy, count, confidence)
    quantile = student_quantile((1 + confidence) / 2, count - 1) / math.sqrt(count)
    lower = higher = 0.0
    for energies in asked.energies():
        deviation = stdev(energies)
        together = correlation(energies, asked.scores) if deviation and stdev(asked.scores) else 0.0
        lower = max(lower, _joined(math.log(high / accuracy), quantile * deviation, together))
        higher = max(higher, _joined(math.log(accuracy / low), quantile * deviation, together))
    return math.exp(-lower), math.exp(higher)


def cost_error(asked: Questions) -> float | None:
    """The standard error of joules per right answer, as a share of it, by the delta method.

    `None` where none is right, or all are: the scatter of equal scores says nothing of wrong answers to come.
    """
    count, accuracy = len(asked.scores), asked.accuracy
    if count < 2 or not 0 < accuracy < 1:
        return None
    return max(
        stdev([energy - score / accuracy for energy, score in zip(energies, asked.scores, strict=True)])
        for energies in asked.energies()
    ) / math.sqrt(count)


def _joined(one: float, other: float, correlated: float) -> float:
    """The length of a difference of two errors."""
    return math.sqrt(max(0.0, one * one + other * other - 2 * correlated * one * other))
