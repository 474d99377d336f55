"""How often gates on right answers are wrong, by simulation through `judge_experiment`.

`python -m tests.benchmarks.quality_gates [--studies N] [--only TABLE]` prints a Markdown table per question: false
alarms per study of 20 experiments on equal runs, which losses are found in 500 questions, how many questions it takes
to find one point, and how often the bounds hold the true change. docs/gates.md holds the output.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.paired_questions import mean_difference
from pytest_llem.study.limits import Comparison, FailIf, parse_fail_if
from tests.scored_runs import saved, scored_run

EXPERIMENTS = 20
QUESTIONS = 500
POINT = parse_fail_if("accuracy", "-1 point")
COST = parse_fail_if("joules_per_correct_answer", "5%")

Chances = list[float]
"""How probable a right answer is, question by question."""
Engine = Callable[[random.Random, int], Chances]


def stable(rng: random.Random, questions: int) -> Chances:
    """Greedy and deterministic: each question is right in every cycle, or wrong in every cycle."""
    return [float(rng.random() < 0.7) for _ in range(questions)]


def nearly_stable(rng: random.Random, questions: int) -> Chances:
    """Greedy in batches that vary: one question in fifty has two answers of nearly equal probability."""
    return [rng.random() if rng.random() < 0.02 else each for each in stable(rng, questions)]


def sampled(rng: random.Random, questions: int) -> Chances:
    """Sampled decoding: questions from easy to hard, most of them clear."""
    return [rng.betavariate(0.7, 0.3) for _ in range(questions)]


ENGINES: dict[str, Engine] = {"stable": stable, "2 % unstable": nearly_stable, "sampled decoding": sampled}


@dataclass(frozen=True)
class Rates:
    """Shares of 0 to 1 of studies and of gates."""

    study_false_alarms: float
    gate_false_alarms: float
    undecided: float


def run(rng: random.Random, chances: Chances, cycles: int) -> list[list[float]]:
    """The scores of each cycle."""
    return [[float(rng.random() < each) for each in chances] for _ in range(cycles)]


def worse(rng: random.Random, chances: Chances, lost: float, gained: float) -> Chances:
    """An engine that answers these shares of all questions otherwise, in every cycle."""
    changed = []
    for chance in chances:
        flip = rng.random()
        changed.append(0.0 if flip < lost and chance > 0.5 else 1.0 if flip > 1 - gained and chance < 0.5 else chance)
    return changed


def status(before: Sequence[Sequence[float]], now: Sequence[Sequence[float]], limit: FailIf = POINT) -> str:
    """What the gate says of two runs."""
    report = judge_experiment(scored_run("now", now), (), Comparison((limit,)), saved(scored_run("before", before)))
    return report.rows[0].status


def equal_runs(
    engine: Engine,
    studies: int,
    *,
    cycles: tuple[int, int] = (3, 3),
    questions: int = QUESTIONS,
    limit: FailIf = POINT,
    seed: int = 0,
) -> Rates:
    """Studies of equal runs."""
    rng = random.Random(seed)
    alarmed = alarms = undecided = 0
    for _ in range(studies):
        fails = 0
        for _ in range(EXPERIMENTS):
            chances = engine(rng, questions)
            found = status(run(rng, chances, cycles[0]), run(rng, chances, cycles[1]), limit)
            fails += found == "fail"
            undecided += found == "inconclusive"
        alarms += fails
        alarmed += fails > 0
    gates = studies * EXPERIMENTS
    return Rates(alarmed / studies, alarms / gates, undecided / gates)


def found(
    engine: Engine,
    gates: int,
    lost: float,
    gained: float,
    *,
    cycles: int = 3,
    questions: int = QUESTIONS,
    limit: FailIf = POINT,
    seed: int = 1,
) -> float:
    """The share of gates that find a change by which these shares of all questions are lost and gained."""
    rng = random.Random(seed)
    count = 0
    for _ in range(gates):
        chances = engine(rng, questions)
        changed = worse(rng, chances, *_of_those(chances, lost, gained))
        count += status(run(rng, chances, cycles), run(rng, changed, cycles), limit) == "fail"
    return count / gates


def _of_those(chances: Chances, lost: float, gained: float) -> tuple[float, float]:
    """The shares of right questions to lose, and of wrong ones to gain, that change so many of all."""
    right = sum(chance > 0.5 for chance in chances) / len(chances)
    return lost / right, gained / (1 - right)


def covered(lost: float, gained: float, questions: int, trials: int, *, seed: int = 2) -> tuple[float, float]:
    """How often each one-sided bound at 5 % holds the true change, over draws of questions."""
    rng = random.Random(seed)
    below = above = 0
    for _ in range(trials):
        draws = (rng.random() for _ in range(questions))
        differences = [-1.0 if draw < lost else 1.0 if draw > 1 - gained else 0.0 for draw in draws]
        _, low, high = mean_difference(differences, 0.05)
        below += low <= gained - lost
        above += high >= gained - lost
    return below / trials, above / trials


def power(lost: float, gained: float, count: int, limit: FailIf = POINT) -> float:
    """How probably so many questions find such a change where cycles agree: summed over what they may lose and gain."""
    total, needed = 0.0, 0
    for better, chance in enumerate(_binomial(count, gained)):
        if chance < 1e-9:
            continue
        while _high(needed, better, count) >= limit.limit:
            needed += 1
        total += chance * sum(_binomial(count - better, lost / (1 - gained))[needed:])
    return total


def _high(worse: int, better: int, count: int) -> float:
    return mean_difference([-1.0] * worse + [1.0] * better + [0.0] * (count - worse - better), 0.05)[2]


def _binomial(count: int, chance: float) -> list[float]:
    """The probability of each number of successes, as far as they matter."""
    if not chance:
        return [1.0]
    most = int(count * chance + 12 * math.sqrt(count * chance) + 12)
    logs = math.log(chance), math.log1p(-chance)
    ways = (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(min(most, count)))
    return [math.exp(way + k * logs[0] + (count - k) * logs[1]) for k, way in enumerate(ways)]


def questions_for(lost: float, gained: float, limit: FailIf, *, wanted: float = 0.95) -> int:
    """The fewest questions, to two digits, that find such a change with that probability."""
    count = 100
    while power(lost, gained, count, limit) < wanted:
        count = int(count * 1.25)
    few = int(count / 1.25)
    while count - few > count // 100:
        middle = (few + count) // 2
        few, count = (few, middle) if power(lost, gained, middle, limit) >= wanted else (middle, count)
    digits: int = 10 ** (len(str(count)) - 2)
    return -(-count // digits) * digits


def percent(value: float) -> str:
    return f"{value * 100:.2f} %"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join([":---", *["---:"] * (len(head) - 1)]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def false_alarms(studies: int, engines: Sequence[str] = tuple(ENGINES)) -> str:
    half = parse_fail_if("accuracy", "-0.5 points")
    rows = []
    for name in engines:
        engine = ENGINES[name]
        for cycles in ((3, 3), (1, 1)):
            rates = equal_runs(engine, studies, cycles=cycles)
            rows.append([f"{name}, {cycles[0]} and {cycles[1]} cycles", *map(percent, vars(rates).values())])
        rates = equal_runs(engine, studies, questions=100, limit=half)
        rows.append([f"{name}, 100 questions, -0.5 points", *map(percent, vars(rates).values())])
    return markdown(("equal runs", "study with a false alarm", "gate with a false alarm", "undecided"), rows)


def losses(gates: int) -> str:
    rows = []
    for gained in (0.0, 0.002, 0.005, 0.01, 0.02):
        cells = [found(stable, gates, 0.03 + gained, gained, cycles=cycles) for cycles in (3, 1)]
        unstable = found(nearly_stable, gates, 0.03 + gained, gained)
        rows.append([f"{0.03 + gained:.1%} lost, {gained:.1%} gained", *map(percent, (*cells, unstable))])
    return markdown(("3 points of 500", "stable, 3 cycles", "stable, 1 cycle", "2 % unstable, 3 cycles"), rows)


def sizes() -> str:
    half = parse_fail_if("accuracy", "-0.5 points")
    rows = []
    for gained in (0.0, 0.0025, 0.005, 0.01, 0.02):
        cells = [str(questions_for(0.01 + gained, gained, half)), str(questions_for(0.03 + gained, gained, POINT))]
        rows.append([f"{gained:.2%}", *cells, percent(power(0.03 + gained, gained, QUESTIONS))])
    head = ("gained beside the loss", "1 point, limit -0.5 points", "3 points, limit -1 point", "3 points found by 500")
    return markdown(head, rows)


def bounds(trials: int) -> str:
    rows = [
        [f"{lost:.1%} lost, {gained:.1%} gained of {count}", *map(percent, covered(lost, gained, count, trials))]
        for lost, gained, count in ((0.01, 0.01, 500), (0.03, 0.0, 500), (0.04, 0.01, 500), (0.05, 0.05, 100))
    ]
    return markdown(("one-sided bounds at 95 %", "lower holds the change", "upper holds the change"), rows)


TABLES: dict[str, Callable[[int], str]] = {
    "alarms": false_alarms,
    "losses": lambda studies: losses(2 * studies),
    "sizes": lambda _: sizes(),
    "bounds": lambda studies: bounds(2 * studies),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", choices=TABLES)
    parser.add_argument("--engine", choices=ENGINES, help="equal runs of this one alone")
    options = parser.parse_args(arguments)
    if options.engine:
        print(false_alarms(options.studies, [options.engine]))
        return
    for name in [options.only] if options.only else TABLES:
        print(TABLES[name](options.studies), flush=True)


if __name__ == "__main__":
    main()
