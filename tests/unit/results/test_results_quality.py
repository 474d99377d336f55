"""Accuracy and joules per right answer: what a cycle says, and how sure an experiment is of it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.job.answers import Answered
from pytest_llem.job.wire import encode
from pytest_llem.results.derive import derive_result
from pytest_llem.results.metrics import metric, why_absent
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.quality_schema import QualitySection
from pytest_llem.results.questions import Questions, cost_error, cost_interval
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import Scored, score_answers
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import COVERAGE
from pytest_llem.results.summary import ExperimentSummary, summarise, summary_csv
from pytest_llem.results.uncertainty import UncertaintyBudget, budget_of_experiment, budget_of_result
from pytest_llem.scoring.texts import TEXT_SCORERS
from tests.benchmarks.quality_intervals import World, held
from tests.unit.results.conftest import REPORT

if TYPE_CHECKING:
    from pytest_llem.results.layout import CycleKey
    from tests.unit.results.conftest import Bench

EXACT = TEXT_SCORERS["exact"]
RIGHT, WRONG = "Paris", "Lyon"


def answer(number: int, text: str | None, repeats: int = 2, tokens: int = 4, **changes: object) -> Answered:
    given = Answered(f"q{number}", "Paris", repeats, text, None, "stop", 8, tokens)
    return replace(given, **changes)  # type: ignore[arg-type]


def answered(*texts: str | None) -> list[Answered]:
    """An answer to each of the questions, the same in both repeats."""
    return [answer(number, text) for number, text in enumerate(texts)]


def cycle(
    bench: Bench,
    key: CycleKey,
    answers: Sequence[Answered],
    *,
    number: int = 1,
    power_w: float = 10.0,
    problem: str | None = None,
    metered: bool = True,
) -> Result:
    """The result of a cycle that drew 20 J at 10 W, for as many requests as there are answers."""
    measurement = bench.measurement(power_w)
    count = sum(each.repeats for each in answers)
    measurement = replace(
        measurement, requests=measurement.requests[:1] * count, energy=measurement.energy if metered else None
    )
    job = replace(bench.job(key), cycle=number)
    scored = Scored(EXACT, score_answers(EXACT, answers), problem)
    return derive_result(job, measurement, REPORT, study=key.study, environment={}, scored=scored)


def section(result: Result) -> QualitySection:
    assert result.quality is not None
    return result.quality


def summary(results: Sequence[Result], key: CycleKey) -> ExperimentSummary:
    known = {
        at: Outcome("valid", at, Path(), result, None, 1, ())
        for result in results
        for at in (replace(key, cycle=result.cycle),)
    }
    (row,) = summarise(known, known.get)
    return row


def budget(results: Sequence[Result], name: str) -> UncertaintyBudget:
    found = budget_of_experiment(metric(name), results)
    assert found is not None
    return found


def test_wrong_answers_cost_as_much_as_right_ones(bench: Bench, key: CycleKey) -> None:
    result = cycle(bench, key, answered(RIGHT, RIGHT, RIGHT, WRONG))
    found = section(result)
    assert (found.questions, found.answers, found.correct, found.accuracy) == (4, 8, 6.0, 0.75)
    assert found.scores == (1.0, 1.0, 1.0, 0.0)
    assert found.joules_per_correct_answer == pytest.approx(20 / 6)
    assert found.joules_per_correct_answer_uncertainty == pytest.approx(0.3 / 6), "the sensor's alone, as beside others"
    assert (found.accuracy_low, found.accuracy_high) == binomial_interval(3, 4, COVERAGE)
    assert {name: metric(name).of(result) for name in ("accuracy", "joules_per_correct_answer")} == pytest.approx(
        {"accuracy": 0.75, "joules_per_correct_answer": 20 / 6}
    )


def test_a_request_that_failed_is_a_wrong_answer_and_its_energy_stays(bench: Bench, key: CycleKey) -> None:
    """Without it, a server that drops what is hard would look cheap and right."""
    found = section(
        cycle(bench, key, [*answered(RIGHT, RIGHT), answer(2, None, finish_reason="error", error="HTTP 500")])
    )
    assert [found.accuracy, found.joules_per_correct_answer] == pytest.approx([2 / 3, 20 / 4])


def test_answers_that_change_between_repeats_are_one_question(bench: Bench, key: CycleKey) -> None:
    """By the order of lines in the file, and as questions of their own, both came out in the wrong place."""
    changed = [answer(1, WRONG, 1, 6, finish_reason="length"), answer(1, RIGHT, 3, 2)]
    found = section(cycle(bench, key, [answer(0, RIGHT, 4), *changed, answer(2, WRONG, 4, finish_reason="length")]))
    assert found.scores == (1.0, 0.75, 0.0)
    assert found.output_tokens == (4.0, 3.0, 4.0)
    assert (found.questions, found.answers, found.correct, found.unstable, found.cut) == (3, 12, 7.0, 1, 5)


def test_answers_that_are_not_all_kept_have_no_accuracy(bench: Bench, key: CycleKey) -> None:
    """The energy of all requests over the right answers among some is no cost of a right answer."""
    result = cycle(bench, key, answered(RIGHT, WRONG))
    measurement = bench.measurement()
    scored = Scored(EXACT, score_answers(EXACT, answered(RIGHT, WRONG)))
    short = derive_result(bench.job(key), measurement, REPORT, study=key.study, environment={}, scored=scored)
    assert section(result).accuracy == 0.5
    assert (section(short).accuracy, section(short).joules_per_correct_answer) == (None, None)
    assert why_absent("accuracy", short) == "4 answers were kept of 6 requests"


def test_no_right_answer_is_no_cost_and_says_so(bench: Bench, key: CycleKey) -> None:
    """Never infinity, and never 0, which every budget would pass."""
    results = [cycle(bench, key, answered(WRONG, WRONG), number=number) for number in (1, 2)]
    row = summary(results, key)
    assert "joules_per_correct_answer" not in row.metrics
    assert row.scores is not None
    assert (row.scores.correct, row.scores.reason) == (0.0, "no answer is right, and so none has a cost")
    assert row.metrics["accuracy"].value == 0
    assert (row.metrics["accuracy"].low, row.metrics["accuracy"].high) == binomial_interval(0, 2, COVERAGE)
    json.dumps(encode(row), allow_nan=False)


def test_a_cycle_without_a_right_answer_leaves_no_mean_of_the_others(bench: Bench, key: CycleKey) -> None:
    """The mean over the cycles that had one is that of the lucky ones, and too low."""
    some, none = answered(RIGHT, WRONG), answered(WRONG, WRONG)
    results = [cycle(bench, key, each, number=number) for number, each in enumerate((some, none, some), 1)]
    row = summary(results, key)
    assert "joules_per_correct_answer" not in row.metrics
    assert row.scores is not None
    assert row.scores.reason == "c2: no answer is right, and so none has a cost"
    assert row.metrics["accuracy"].value == pytest.approx(1 / 3)


def test_cycles_of_other_questions_have_no_interval(bench: Bench, key: CycleKey) -> None:
    """Each question's mean over both would be that of two questions."""
    others = [replace(each, question=f"other {each.question}") for each in answered(RIGHT, WRONG)]
    figures = summary([cycle(bench, key, answered(RIGHT, WRONG)), cycle(bench, key, others, number=2)], key).metrics
    assert (figures["accuracy"].value, figures["accuracy"].low, figures["accuracy"].uncertainty) == (0.5, None, None)
    assert figures["joules_per_correct_answer"].uncertainty is None


def test_cycles_of_two_scorers_have_no_interval_and_say_why(bench: Bench, key: CycleKey) -> None:
    """A grader that is edited while a run goes on: the mean over both versions looked as sure as that of one."""
    results = [cycle(bench, key, answered(RIGHT, WRONG), number=number) for number in (1, 2)]
    edited = replace(section(results[1]), scorer_version="2")
    row = summary([results[0], results[1].model_copy(update={"quality": edited})], key)
    assert (row.metrics["accuracy"].value, row.metrics["accuracy"].low) == (0.5, None)
    assert row.scores is not None
    assert row.scores.reason is not None
    assert row.scores.reason.startswith("cycles were scored by exact 1 and exact 2: ")


def test_a_scorer_that_failed_costs_the_scores_alone(bench: Bench, key: CycleKey) -> None:
    results = [cycle(bench, key, answered(RIGHT, WRONG), number=n, problem="the scorer raised") for n in (1, 2)]
    row = summary(results, key)
    assert row.metrics["joules_per_output_token"].value > 0
    assert not {"accuracy", "joules_per_correct_answer"} & row.metrics.keys()
    assert row.scores is not None
    assert row.scores.reason == "the scorer raised"


def test_the_interval_of_accuracy_counts_questions_not_cycles(bench: Bench, key: CycleKey) -> None:
    """By the spread of greedy cycles, which is none, 30 of 40 right answers were 75 % ± 0."""
    results = [cycle(bench, key, answered(*[RIGHT] * 30, *[WRONG] * 10), number=number) for number in range(1, 6)]
    figure = summary(results, key).metrics["accuracy"]
    low, high = binomial_interval(30, 40, COVERAGE)
    assert (figure.value, figure.n) == (0.75, 5)
    assert [figure.low, figure.high] == pytest.approx([low, high])
    assert figure.uncertainty == pytest.approx(max(0.75 - low, high - 0.75)), "± reaches both ends"


@pytest.mark.parametrize(("right", "of"), [(0, 40), (40, 40), (1, 40), (1, 1)])
def test_accuracies_at_the_ends_have_intervals_too(bench: Bench, key: CycleKey, right: int, of: int) -> None:
    results = [cycle(bench, key, answered(*[RIGHT] * right, *[WRONG] * (of - right)), number=n) for n in (1, 2, 3)]
    row = summary(results, key)
    figure, cost = row.metrics["accuracy"], row.metrics.get("joules_per_correct_answer")
    assert (figure.low, figure.high) == pytest.approx(binomial_interval(right, of, COVERAGE))
    assert (cost is None) == (right == 0)
    if cost is not None and of > 1:
        assert cost.low is not None
        assert cost.high is not None
        assert 0 < cost.low < cost.value < cost.high < math.inf
    if of == 1:
        assert cost is not None
        assert cost.uncertainty is None, "of one question nothing tells how much questions differ"


def test_the_cost_has_the_choice_of_questions_among_its_causes(
    bench: Bench, key: CycleKey, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = [answer(n, RIGHT if n % 4 else WRONG, tokens=4 + n % 3) for n in range(40)]
    results = [cycle(bench, key, asked, number=n, power_w=watts) for n, watts in enumerate((10.0, 10.1, 10.3), 1)]
    found = budget(results, "joules_per_correct_answer")
    names = [part.name for part in found.components]
    assert names == ["scatter over cycles", "sensor", "between runs, assumed", "thermal state", "choice of questions"]
    part = found.components[-1]
    scores, lengths = [float(n % 4 > 0) for n in range(40)], [4.0 + n % 3 for n in range(40)]
    low, high = cost_interval(Questions(scores, [8.0] * 40, lengths)) or (0.0, 0.0)
    assert [part.below, part.above] == pytest.approx([found.value * (1 - low), found.value * (high - 1)])
    others = math.hypot(*(each.expanded for each in found.components[:-1]))
    assert found.high == pytest.approx(found.value + math.hypot(others, part.above or 0))
    assert found.low == pytest.approx(found.value - math.hypot(others, part.below or 0))
    assert [part.name for part in budget(results, "accuracy").components] == ["choice of questions"]
    alone = budget_of_result(metric("joules_per_correct_answer"), results[0])
    assert alone is not None
    assert [part.name for part in alone.components] == ["sensor", "choice of questions"]
    (tmp_path / "result.json").write_text(results[0].model_dump_json())
    assert main(["budget", str(tmp_path), "--metric", "joules_per_correct_answer", "--metric", "accuracy"]) == 0
    said = capsys.readouterr().out
    assert said.count("choice of questions") == 4
    assert "of sensor and choice of questions alone" in said
    assert "its sides are not even: from " in said
    assert "accuracy: 75 ± 17 % (95 %" in said  # in percent, as its components and ends are


def test_no_right_answer_costs_less_than_nothing(
    bench: Bench, key: CycleKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sensor that errs by more than the figure printed an end below 0, where the summary's table said 0."""
    asked = [answer(n, RIGHT if n % 4 else WRONG) for n in range(8)]
    result = cycle(bench, key, asked)
    energy = replace(result.energy, uncertainty_j=2 * (result.energy.energy_j or 0))
    (tmp_path / "result.json").write_text(result.model_copy(update={"energy": energy}).model_dump_json())
    assert main(["budget", str(tmp_path), "--metric", "joules_per_correct_answer"]) == 0
    assert "its sides are not even: from 0 J to " in capsys.readouterr().out


def test_energy_that_goes_with_right_answers_leaves_less_to_chance() -> None:
    """Where right answers are the long ones, a sample with more of them also cost more: the errors partly cancel."""
    scores = [1.0, 0.0] * 100
    long_right = Questions(scores, [8.0] * 200, [90.0, 10.0] * 100)
    long_wrong = Questions(scores, [8.0] * 200, [10.0, 90.0] * 100)
    even = Questions(scores, [8.0] * 200, [50.0] * 200)
    errors = [cost_error(each) or 0.0 for each in (long_right, even, long_wrong)]
    assert errors[0] == errors[1] < errors[2], "unless no energy goes with length: nobody knows how much does"
    sides = [cost_interval(each) or (0.0, 0.0) for each in (long_right, even, long_wrong)]
    assert sides[0] == sides[1]
    assert sides[2][0] < sides[1][0] < 1 < sides[1][1] < sides[2][1]


def test_the_standard_error_is_that_of_the_delta_method() -> None:
    """By hand for right answers alone: (1 - p) / (n p), and the interval is about twice that on either side."""
    scores = [1.0] * 360 + [0.0] * 240
    even = Questions(scores, [8.0] * 600, [4.0] * 600)
    error = cost_error(even)
    assert error == pytest.approx(math.sqrt(0.4 / (600 * 0.6)), rel=2e-3)
    low, high = cost_interval(even, 2 * NormalDist().cdf(1) - 1) or (0.0, 0.0)
    assert [-math.log(low), math.log(high)] == pytest.approx([error, error], rel=0.1)
    assert cost_error(Questions([1.0] * 40, [8.0] * 40, [4.0] * 40)) is None


def test_scores_between_right_and_wrong_are_counted_by_their_mean(bench: Bench, key: CycleKey) -> None:
    result = cycle(bench, key, [answer(0, RIGHT), answer(1, RIGHT, 1), answer(1, WRONG, 1), answer(2, WRONG)])
    figure = summary([result], key).metrics["accuracy"]
    assert figure.value == 0.5
    assert (figure.low, figure.high) == pytest.approx(binomial_interval(1.5, 3, COVERAGE))


def test_unmeasured_energy_has_an_accuracy_and_no_cost(bench: Bench, key: CycleKey) -> None:
    results = [cycle(bench, key, answered(RIGHT, WRONG), number=n, metered=False) for n in (1, 2)]
    row = summary(results, key)
    assert row.metrics["accuracy"].value == 0.5
    assert "joules_per_correct_answer" not in row.metrics
    assert row.scores is not None
    assert row.scores.reason is None, "the scores lack nothing"


def test_tables_have_both_metrics_with_their_intervals(bench: Bench, key: CycleKey) -> None:
    results = [
        cycle(bench, key, answered(*[RIGHT] * 3, WRONG), number=n, power_w=watts)
        for n, watts in enumerate((10.0, 10.2, 10.1), 1)
    ]
    row = summary(results, key)
    (flat,) = csv.DictReader(io.StringIO(summary_csv([row])))
    for name in ("accuracy", "joules_per_correct_answer"):
        figure = row.metrics[name]
        stated = {column: flat[f"{name}_{column}"] for column in ("value", "uncertainty", "low", "high")}
        assert {column: float(text) for column, text in stated.items()} == {
            column: getattr(figure, column) for column in stated
        }
    table = Results(tuple(results)).to_table().to_pylist()
    costs = [cells["joules_per_correct_answer"] for cells in table]
    assert fmean(costs) == row.metrics["joules_per_correct_answer"].value
    assert {(cells["accuracy"], cells["accuracy_low"], cells["accuracy_high"]) for cells in table} == {
        (0.75, *binomial_interval(3, 4, COVERAGE))
    }
    assert all(cells["joules_per_correct_answer_uncertainty"] == pytest.approx(0.3 / 6) for cells in table)


@pytest.mark.parametrize("accuracy", [0.1, 0.9])
def test_both_intervals_hold_the_true_values_in_95_of_100_studies(accuracy: float) -> None:
    """The small form of `tests/benchmarks/quality_intervals.py`; docs/quality.md has the shares of 2,000 studies."""
    found = held(World(accuracy), 40, studies=150)
    assert found.accuracy >= 0.92, "two standard errors below, with so few studies"
    assert found.cost >= 0.92
    assert found.sides[0] < 0 < found.sides[1] < 5
