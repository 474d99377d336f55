"""How often the intervals of accuracy and of joules per right answer hold the true values, over simulated studies.

`python -m tests.benchmarks.quality_intervals [--studies N] [--write-docs]` prints two Markdown tables, which
docs/quality.md holds (about 12 minutes). A study asks questions that are drawn from a population where hard ones have
longer, or shorter, answers; three cycles of two repeats answer them, greedily but for the last row, with noise of 1 to
2 %. The meter errs by a gain and a counter's error, and the run has a level of its own. Answers are scored against a
planted key, and scores, sections and intervals are those of the real code.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist, fmean, median

from pytest_llem.job.answers import Answered
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import score_answers
from pytest_llem.results.sections.quality import derive_quality
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import K
from pytest_llem.results.summary import MetricSummary, summarise
from pytest_llem.results.uncertainty import ONE_RUN
from pytest_llem.scoring.texts import TEXT_SCORERS
from tests.figures import write_figures
from tests.unit.results.conftest import Bench

COUNTS = (40, 200, 500)
ACCURACIES = (0.1, 0.5, 0.9)
CYCLES, REPEATS = 3, 2
GAIN_REL, COUNTER_REL = 0.01, 0.005
"""What the meter states, k=2: an error of all cycles alike, and one of each."""
MOST_TOKENS, ANSWER_TOKENS, PROMPT_TOKENS, PROMPT_SHAPE = 256, 60, 80, 0.5
"""Lengths are lognormal about a median; answers end at the most."""
LINKED = 0.6
"""The correlation of a question's difficulty with the logarithm of its answer's length."""
QUANTILES = 10_000
SETTINGS = WorkloadSettings("questions.jsonl", 1, None, MOST_TOKENS, 0, score="exact", answer_column="answer")
EXACT = TEXT_SCORERS["exact"]
KEY = CycleKey("study", "a:1", "0123456789abcdef", 1)
PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


@dataclass(frozen=True)
class World:
    """Where questions come from. `shares` of the energy go with tokens of the answer, of the prompt, and evenly.

    `linked` is how far hard questions have long answers, `shape` that of their lengths, which end at `most` tokens.
    `unsure` is how much chance there is in an answer.
    """

    accuracy: float
    linked: float = LINKED
    shares: tuple[float, float, float] = (1.0, 0.0, 0.0)
    unsure: float = 0.0
    shape: float = 0.7
    most: int = MOST_TOKENS

    @property
    def words(self) -> str:
        """As cells of the table."""
        longer = "longer" if self.linked > 0 else "shorter"
        parts = zip(self.shares, ("answer", "prompt", "question"), strict=True)
        by = ", ".join(f"{share:.0%} {what}" if share < 1 else what for share, what in parts if share)
        beside = ", sampled" if self.unsure else ", long tail" if self.most > MOST_TOKENS else ""
        return f"{self.accuracy:.0%}{beside} | {longer} | {by}"


@dataclass(frozen=True)
class Question:
    """How hard it is, and the tokens of its prompt and its answer."""

    difficulty: float
    prompt: int
    answer: int

    @classmethod
    def draw(cls, rng: random.Random, world: World) -> Question:
        difficulty = rng.gauss(0, 1)
        rest = rng.gauss(0, math.sqrt(1 - world.linked**2))
        answer = answer_tokens(world.linked * difficulty + rest, world.shape, world.most)
        return cls(difficulty, prompt_tokens(rng.gauss(0, 1)), answer)

    def is_right(self, rng: random.Random, world: World) -> bool:
        skill = NormalDist().inv_cdf(world.accuracy) * math.hypot(1, world.unsure)
        return self.difficulty + (rng.gauss(0, world.unsure) if world.unsure else 0.0) < skill

    def energy_j(self, world: World) -> float:
        """About 1 J of the mean question."""
        answer, prompt = means(world.shape, world.most)
        by_answer, by_prompt, even = world.shares
        return by_answer * self.answer / answer + by_prompt * self.prompt / prompt + even


def answer_tokens(normal: float, shape: float, most: int) -> int:
    return min(most, max(1, round(ANSWER_TOKENS * math.exp(shape * normal))))


def prompt_tokens(normal: float) -> int:
    return max(1, round(PROMPT_TOKENS * math.exp(PROMPT_SHAPE * normal)))


@cache
def means(shape: float, most: int) -> tuple[float, float]:
    """The tokens of a mean answer and a mean prompt, over quantiles."""
    normals = [NormalDist().inv_cdf((place + 0.5) / QUANTILES) for place in range(QUANTILES)]
    return fmean(answer_tokens(each, shape, most) for each in normals), fmean(map(prompt_tokens, normals))


@cache
def base() -> Result:
    return Bench().result()


def study(rng: random.Random, world: World, count: int) -> dict[str, MetricSummary]:
    """The figures of a study with so many questions."""
    questions = [Question.draw(rng, world) for _ in range(count)]
    drawn_j = REPEATS * sum(each.energy_j(world) for each in questions)
    common = rng.gauss(0, GAIN_REL / K) + rng.gauss(0, ONE_RUN)
    noise = rng.uniform(0.01, 0.02)
    outcomes = {}
    answers: list[Answered] = []
    for cycle in range(1, CYCLES + 1):
        if not answers or world.unsure:
            answers = score_answers(EXACT, [*_answers(rng, world, questions)])
        energy_j = drawn_j * math.exp(rng.gauss(0, noise)) * (1 + common + rng.gauss(0, COUNTER_REL / K))
        stated_j = energy_j * math.hypot(GAIN_REL, COUNTER_REL)
        energy = replace(base().energy, energy_j=energy_j, uncertainty_j=stated_j)
        section = derive_quality(SETTINGS, EXACT, answers, None, energy, asked=REPEATS * count)
        result = base().model_copy(update={"cycle": cycle, "energy": energy, "quality": section})
        key = replace(KEY, cycle=cycle)
        outcomes[key] = Outcome("valid", key, Path(), result, None, 1, ())
    (row,) = summarise(outcomes, outcomes.get)
    return dict(row.metrics)


def _answers(rng: random.Random, world: World, questions: Sequence[Question]) -> Iterator[Answered]:
    for place, question in enumerate(questions):
        for text, repeats in _texts(rng, world, question):
            yield Answered(f"q{place}", "Paris", repeats, text, None, "stop", question.prompt, question.answer)


def _texts(rng: random.Random, world: World, question: Question) -> Iterator[tuple[str, int]]:
    """The distinct answers to a question, and in how many repeats each was given."""
    if not world.unsure:
        yield "Paris" if question.is_right(rng, world) else "Lyon", REPEATS
        return
    right = sum(question.is_right(rng, world) for _ in range(REPEATS))
    yield from ((text, repeats) for text, repeats in (("Paris", right), ("Lyon", REPEATS - right)) if repeats)


@dataclass(frozen=True)
class Held:
    """Shares of studies whose intervals hold the true values; the cost's of those in which any answer was right.

    `sides` are the median interval of the cost, as shares of it.
    """

    accuracy: float
    cost: float
    none_right: int
    sides: tuple[float, float]


def held(world: World, count: int, *, studies: int, seed: int = 0) -> Held:
    """Simulate so many studies."""
    rng = random.Random(f"{seed} {world} {count}")
    true_cost = 1 / world.accuracy
    accuracy = cost = right = 0
    lower, higher = [], []
    for _ in range(studies):
        figures = study(rng, world, count)
        accuracy += _holds(figures["accuracy"], world.accuracy)
        found = figures.get("joules_per_correct_answer")
        if found is None:
            continue
        right += 1
        cost += _holds(found, true_cost)
        lower.append((found.low or 0.0) / found.value - 1)
        higher.append((found.high or math.inf) / found.value - 1)
    return Held(accuracy / studies, cost / right, studies - right, (median(lower), median(higher)))


def _holds(figure: MetricSummary, true: float) -> bool:
    return figure.low is not None and figure.high is not None and figure.low <= true <= figure.high


WORLDS = (
    *(World(accuracy, linked) for accuracy in ACCURACIES for linked in (LINKED, -LINKED)),
    World(0.9, shares=(0.7, 0.2, 0.1)),
    World(0.5, unsure=0.7),
    World(0.9, shape=1.0, most=4096),
)


def tables(studies: int) -> tuple[str, str]:
    """How often both intervals hold, and how wide that of the cost is."""
    columns = ("right", "wrong answers are", "energy goes by", *(f"{count} questions" for count in COUNTS))
    head = f"| {' | '.join(columns)} |"
    rule = "|---:|:---|:---|" + "---:|" * len(COUNTS)
    rates, sides = [head, rule], [head, rule]
    for world in WORLDS:
        each = [held(world, count, studies=studies) for count in COUNTS]
        rates.append(f"| {world.words} | " + " | ".join(f"{of.accuracy:.1%}, {of.cost:.1%}" for of in each) + " |")
        sides.append(f"| {world.words} | " + " | ".join(f"{of.sides[0]:+.0%} {of.sides[1]:+.0%}" for of in each) + " |")
        print(rates[-1], sides[-1], [of.none_right for of in each], flush=True)
    return "\n".join(rates), "\n".join(sides)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args(arguments)
    for name, table in zip(("held", "sides"), tables(options.studies), strict=True):
        print(table)
        if options.write_docs:
            write_figures(name, table, PAGE)


if __name__ == "__main__":
    main()
