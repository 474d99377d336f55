"""Gates on right answers: pairs of questions, the engine's own noise, the same work, and what a right answer costs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import NormalDist

import pytest

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.baselines import Baseline, render, save_baseline
from pytest_llem.results.comparability import differences
from pytest_llem.results.compare import compare, lines
from pytest_llem.results.compared_sides import open_side, side_of
from pytest_llem.results.effects import interval, log_of_pair
from pytest_llem.results.gate_report import GateReport, GateRow
from pytest_llem.results.judging import judge_experiment, judge_in_turn
from pytest_llem.results.metrics import metric
from pytest_llem.results.paired_questions import chance_of_loss, judge_questions, mean_difference
from pytest_llem.results.saved_scores import read_scores, written_scores
from pytest_llem.results.state import Outcome
from pytest_llem.study.limits import Comparison, parse_budget, parse_fail_if
from tests.scored_runs import answers, results_of, saved, scored_run

ACCURACY = parse_fail_if("accuracy", "-1 point")
COST = parse_fail_if("joules_per_correct_answer", "5%")
BEFORE = [answers(500, 100)] * 3


def against(now: Sequence[Outcome], baseline: Baseline, *limits: str, **options: object) -> GateReport:
    parsed = [parse_fail_if(*limit.split(": ")) for limit in limits] or [ACCURACY]
    return judge_experiment(now, (), Comparison(tuple(parsed)), baseline, **options)  # type: ignore[arg-type]


def judged(now: Sequence[Sequence[float]], before: Sequence[Sequence[float]] = BEFORE, **of_run: object) -> GateRow:
    run, earlier = scored_run("now", now, **of_run), scored_run("before", before, **of_run)  # type: ignore[arg-type]
    (row,) = against(run, saved(earlier)).rows
    return row


def tango(lost: int, gained: int, count: int, loss: float) -> float:
    """The score statistic of Tango (1998), equations (7) and (8), written from the paper's closed form."""
    a = 2 * count
    b = -lost - gained + (2 * count - lost + gained) * loss
    c = -gained * loss * (1 - loss)
    gain = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return (lost - gained - count * loss) / math.sqrt(count * (2 * gain + loss * (1 - loss)))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (9, 0), (15, 3), (3, 40), (120, 80)])
@pytest.mark.parametrize("count", [200, 500])
def test_bounds_of_right_and_wrong_answers_are_those_of_tango(lost: int, gained: int, count: int) -> None:
    """The most likely distribution at a tested loss is found by iteration here, and in closed form there."""
    differences = [-1.0] * lost + [1.0] * gained + [0.0] * (count - lost - gained)
    mean, low, high = mean_difference(differences, 0.05)
    assert mean == pytest.approx((gained - lost) / count)
    assert tango(lost, gained, count, -high) == pytest.approx(1.644854, abs=1e-4)
    assert tango(lost, gained, count, -low) == pytest.approx(-1.644854, abs=1e-4)


def test_a_loss_is_told_in_points_with_its_questions_and_its_limit() -> None:
    row = judged([answers(500, 112, at=3)] * 3)
    assert row.status == "fail"
    assert row.reason == (
        "fell by 2.4 points (90 % interval -4 to -1.1 points) on 500 questions: 15 lost, 3 gained; "
        "the limit is -1 point; lost: questions 101, 102, 103, 104, 105 and 10 more"
    )
    assert row.cells()[1:] == ("fail", "0.8", "0.776", "-2.4 points", "-4 points .. -1.1 points", "-1 point")


@pytest.mark.parametrize(
    ("lost", "cycles", "of_run", "status"),
    [
        (9, 3, {}, "fail"),  # 1.8 points, of which more than one is proven
        (8, 3, {}, "inconclusive"),
        (2, 3, {}, "pass"),
        (9, 1, {}, "inconclusive"),  # all nine of nine flips are lost in 0.2 % of equal runs
        (11, 1, {}, "fail"),
        (9, 3, {"isolation": "experiment"}, "inconclusive"),  # one loaded engine: its cycles are one
        (11, 3, {"isolation": "experiment"}, "fail"),
    ],
)
def test_how_many_lost_of_500_are_a_loss_of_more_than_a_point(
    lost: int, cycles: int, of_run: dict[str, object], status: str
) -> None:
    row = judged([answers(500, 100 + lost)] * cycles, BEFORE[:cycles], **of_run)
    assert row.status == status, row.reason


def test_more_cycles_of_the_same_answers_do_not_tell_more_of_other_questions() -> None:
    """Counted as often as they were asked, eight lost questions would be proven by three cycles."""
    few, many = (judged([answers(500, 108)] * count, [BEFORE[0]] * count) for count in (3, 10))
    assert (few.ci_low, few.ci_high, few.status) == (many.ci_low, many.ci_high, many.status)


def test_sides_may_have_different_numbers_of_cycles() -> None:
    assert judged([answers(500, 112)], BEFORE * 2).status == "fail"
    assert judged([answers(500, 112)] * 5, BEFORE[:1]).status == "fail"


def test_undecided_says_what_would_decide_it() -> None:
    few = judged([answers(40, 2)] * 3, [answers(40)] * 3)
    assert few.status == "inconclusive"
    assert few.reason.endswith(
        "too wide to tell, to pass -2 points must be excluded; "
        "ask more questions, on both sides: about 69 would do, if the same share of them changes"
    )
    single = judged([answers(500, 109)], BEFORE[:1])
    assert single.reason.endswith("up to 0.2 % of equal runs may lose as much by their own noise: measure more cycles")
    assert (few.cause(), single.cause()) == ("too few questions", "too noisy")


@pytest.mark.parametrize("changes", [(3, 2), (2, 2), (1, 0), (3, 0), (4, 0)])
def test_as_many_questions_as_it_says_decide(changes: tuple[int, int]) -> None:
    """With a number that is too small both sides are measured again, and undecided again."""
    lost, gained = changes
    before = [1.0] * lost + [0.0] * gained + [1.0] * (200 - lost - gained)
    now = [0.0] * lost + [1.0] * gained + [1.0] * (200 - lost - gained)
    needed = judge_questions([[before]], [now], 0.01).needed
    assert needed is not None
    times = needed // len(now)
    assert judge_questions([[before * times]], [now * times], 0.01).status == "inconclusive"
    assert judge_questions([[before * (times + 1)]], [now * (times + 1)], 0.01).status == (
        "pass" if lost < 3 or gained else "fail"
    )


def test_joules_per_right_answer_ask_for_what_makes_them_unsure() -> None:
    """Where questions flip their choice is what the interval is made of, which no number of cycles narrows."""
    limit = "joules_per_correct_answer: 1%"
    before, flipped = [0.0] * 20 + [1.0] * 80, [1.0] * 20 + [0.0] * 20 + [1.0] * 60
    (row,) = against(scored_run("now", [flipped] * 3), saved(scored_run("b", [before] * 3)), limit).rows
    assert row.reason.endswith("must be excluded; ask more questions, on both sides"), row.reason
    (row,) = against(scored_run("now", BEFORE, watts=10.1), saved(scored_run("b", BEFORE)), limit).rows
    assert row.reason.endswith("must be excluded; measure more cycles"), row.reason


def test_what_flips_by_itself_is_no_loss() -> None:
    """Sampled answers of equal runs: by the choice of questions alone, some of these runs would have failed."""
    rng = random.Random(1)
    sampled = ([[float(rng.random() < 0.7) for _ in range(100)]] for _ in range(100))
    found = [judge_questions([before], now, 0.01) for before, now in zip(sampled, sampled, strict=True)]
    assert any(each.high < -0.01 for each in found)
    assert not any(each.status == "fail" for each in found)


def test_the_chance_of_a_loss_bounds_that_of_all_ways_to_deal_the_cycles() -> None:
    """Counted out for two cycles a side of three questions, with scores in between."""
    before, now = [(1.0, 1.0, 0.5), (1.0, 0.0, 1.0)], [(0.0, 0.0, 0.5), (0.0, 1.0, 0.0)]
    cells = [[side[place] for side in (*before, *now)] for place in range(3)]
    ways = [[(a, b) for index, a in enumerate(each) for b in each[index + 1 :]] for each in cells]
    dealt = [sum(map(sum, way)) for way in product(*ways)]
    exact = sum(total <= sum(map(sum, now)) for total in dealt) / len(dealt)
    assert exact <= chance_of_loss(before, now) < 4 * exact
    assert chance_of_loss(now, before) == 1.0
    sure = chance_of_loss([[1.0] * 4] * 3, [[0.0] * 4] * 3)
    assert sure == pytest.approx((1 / 20) ** 4), "the one of 20 ways in which all right answers were before"


def test_three_baseline_runs_tell_what_runs_differ_by() -> None:
    """A kernel that each run picks anew flips the same questions in all its cycles: they agree, and runs do not."""
    runs = [[answers(500, 9, at=100 * run)] * 3 for run in range(3)]
    baseline = saved(*(scored_run(f"b{number}", run) for number, run in enumerate(runs)))
    (row,) = against(scored_run("now", [answers(500, 20, at=400)] * 3), baseline, "accuracy: -0.1 point").rows
    assert row.status == "inconclusive"
    assert "own noise" in row.reason
    alike = saved(*(scored_run(f"b{number}", runs[0]) for number in range(3)))
    (row,) = against(scored_run("now", [answers(500, 20)] * 3), alike).rows
    assert row.status == "fail"


def test_to_improve_may_be_demanded() -> None:
    better = parse_fail_if("accuracy", "1 point", "1 point")
    baseline = saved(scored_run("before", BEFORE))
    for wrong, status in ((70, "pass"), (100, "fail")):
        report = judge_experiment(scored_run("now", [answers(500, wrong)] * 3), (), Comparison((better,)), baseline)
        assert report.rows[0].status == status, report.rows[0].reason


@pytest.mark.parametrize(
    ("wrong", "cycles", "limit", "status"),
    [
        (100, 1, ">= 62%", "pass"),
        (100, 1, ">= 79%", "inconclusive"),
        (100, 9, ">= 79%", "inconclusive"),  # the same questions again
        (300, 3, ">= 0.62", "fail"),
        (500, 3, ">= 0.62", "fail"),
        (0, 3, ">= 0.99", "pass"),
    ],
)
def test_a_budget_of_right_answers_counts_questions(wrong: int, cycles: int, limit: str, status: str) -> None:
    run = scored_run("now", [answers(500, wrong)] * cycles)
    (row,) = judge_experiment(run, [parse_budget("accuracy", limit)]).rows
    assert row.status == status, row.reason


def test_both_verdicts_stand_in_one_table() -> None:
    """A model in four bits saves a fifth of the energy and loses three points: one passes, and the other fails."""
    now = scored_run("now", [answers(500, 115)] * 3, watts=8.0)
    report = against(now, saved(scored_run("b", BEFORE)), "accuracy: -1 point", "joules_per_correct_answer: 5%")
    assert [row.status for row in report.rows] == ["fail", "pass"]
    assert "accuracy fell by 3 points" in report.text()
    assert "joules_per_correct_answer" in report.text()


def test_a_ratio_of_joules_per_right_answer_is_as_uncertain_as_the_questions_that_flipped() -> None:
    """A few flipped questions move accuracy, and cycles that repeat them scatter no more than before."""
    limit = "joules_per_correct_answer: 5%"
    baseline = saved(scored_run("b", BEFORE))
    widths = []
    for now in (BEFORE[0], answers(500, 110, at=10), [0.0] * 50 + [1.0] * 50 + answers(400, 50)):
        (row,) = against(scored_run("now", [now] * 3), baseline, limit).rows
        assert row.ratio is not None
        assert row.ci_high is not None
        widths.append(math.log(row.ci_high / row.ratio))
    (plain,) = against(scored_run("now", BEFORE), baseline, "joules_per_output_token: 5%").rows
    assert plain.ci_high is not None
    none_of_500 = NormalDist().inv_cdf(0.95) ** 2 / (500 + NormalDist().inv_cdf(0.95) ** 2) / 0.8
    whole = math.hypot(math.log(plain.ci_high), math.log1p(none_of_500))
    assert widths[0] == pytest.approx(whole, rel=0.01), "no question flipped of those that were asked"
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("questions", [40, 100, 500])
def test_few_questions_seldom_pass_a_cost_that_must_be_excluded(questions: int) -> None:
    """Of 40 questions, of which none happened to flip, 23 % passed answers that cost 10 % more each."""
    right = questions * 3 // 4
    loss, passed = right / questions * (1 - 1 / 1.1), 0.0
    baseline = saved(scored_run("b", [answers(questions, questions - right)] * 3))
    for lost in range(questions // 5):
        now = scored_run("now", [answers(questions, questions - right + lost)] * 3)
        if against(now, baseline, "joules_per_correct_answer: 5%").rows[0].status != "pass":
            break
        passed += math.comb(questions, lost) * loss**lost * (1 - loss) ** (questions - lost)
    assert passed < 0.06


def test_an_effect_on_accuracy_is_no_surer_than_its_questions_allow() -> None:
    """Two settings with the same scores on 40 questions differed by 0 % at most, at 95 %, in `llem compare --by`."""
    one, other = ([each.result for each in scored_run("r", [answers(40, 10)] * 3) if each.result] for _ in range(2))
    low, high = interval([log_of_pair(metric("accuracy"), one, other)])
    assert low == pytest.approx(1 - 4 / 44 / 0.75, abs=0.01), "the score test's bound at 95.45 % where nothing changed"
    assert high == pytest.approx(1 / (1 - 4 / 44 / 0.75), abs=0.02)


def test_cycles_of_two_scorers_are_judged_in_no_metric_of_right_answers() -> None:
    """A grader that was edited while a run went on gave a mean of both, which passed budgets and comparisons."""
    run = scored_run("now", BEFORE)
    edited = run[1].result
    assert edited is not None
    assert edited.quality is not None
    edited = edited.model_copy(update={"quality": replace(edited.quality, scorer_version="2")})
    run[1] = replace(run[1], result=edited)
    limits = (ACCURACY, COST, parse_fail_if("joules_per_output_token", "5%"))
    budgets = [parse_budget("accuracy", ">= 0.5"), parse_budget("joules_per_output_token", "<= 9")]
    rows = judge_experiment(run, budgets, Comparison(limits), saved(scored_run("before", BEFORE))).rows
    of_answers = [row for row in rows if row.metric != "joules_per_output_token"]
    assert {row.status for row in of_answers} == {"not_comparable"}
    assert all("exact 1" in row.reason and "exact 2" in row.reason for row in of_answers)
    assert [row.status for row in rows if row not in of_answers] == ["pass", "pass"]


def test_a_cycle_in_turn_whose_answers_have_no_scores_is_left_out() -> None:
    """One cycle that could not be scored made all others `questions: 500 -> 0, 500 of them`."""
    one, other = ([each.result for each in scored_run(run, [answers(500, 100)] * 4) if each.result] for run in "ab")
    assert other[1].quality is not None
    unscored = replace(other[1].quality, scores=(), accuracy=None, joules_per_correct_answer=None, reason="it raised")
    other[1] = other[1].model_copy(update={"quality": unscored})
    rows = judge_in_turn(one, other, Comparison((ACCURACY, COST))).rows
    assert [row.status for row in rows] == ["pass", "pass"], [row.reason for row in rows]


def test_scores_in_between_are_the_same_as_those_a_baseline_has_of_them() -> None:
    """A baseline has four decimals: of equal runs of 500 thirds it was said that 500 questions got better."""
    row = judged([[1 / 3, 2 / 3] * 250] * 3, [[1 / 3, 2 / 3] * 250] * 3)
    assert row.reason.startswith("did not change (90 % interval -0.54 to +0.54 points) on 500 questions: none changed")


@pytest.mark.parametrize(
    ("before", "now", "status", "said"),
    [
        (0, 50, "fail", "no answer was right in c1, c2, c3"),
        (50, 50, "inconclusive", "nor in the baseline"),
        (50, 0, "not_comparable", "no answer was right in a cycle of the baseline"),
    ],
)
def test_no_right_answer_costs_more_than_any_limit(before: int, now: int, status: str, said: str) -> None:
    now_run = scored_run("now", [answers(50, now)] * 3)
    baseline = saved(scored_run("before", [answers(50, before)] * 3))
    (row,) = against(now_run, baseline, "joules_per_correct_answer: 5%").rows
    assert (row.status, said in row.reason) == (status, True), row.reason
    (row,) = judge_experiment(now_run, [parse_budget("joules_per_correct_answer", "<= 9")]).rows
    assert row.status == ("pass" if now == 0 else "fail")


def test_other_lengths_of_answers_are_the_same_work_for_right_answers_alone() -> None:
    now = scored_run("now", BEFORE, output_tokens=900)
    limits = ("accuracy: -1 point", "joules_per_correct_answer: 5%", "joules_per_output_token: 5%")
    report = against(now, saved(scored_run("before", BEFORE)), *limits)
    assert [row.status for row in report.rows] == ["pass", "pass", "not_comparable"]
    assert report.rows[2].reason == "output_tokens: 1000 -> 900"


def test_other_questions_or_another_scorer_are_other_work() -> None:
    now, before = scored_run("now", BEFORE, questions="f" * 64), saved(scored_run("before", BEFORE))
    (row,) = against(now, before).rows
    assert row.status == "not_comparable"
    assert row.reason.endswith("-> ffffffffffff (save the baseline again, or allow: [questions])")
    (row,) = against(now, before, "joules_per_output_token: 5%").rows
    assert row.status == "pass", "tokens are not scored"
    (row,) = against(now, before, allow=["questions"]).rows
    assert row.status == "pass", "an answer key was put right"
    fewer = scored_run("now", [answers(499, 100)] * 3)
    (row,) = against(fewer, before, allow=["questions", "input_tokens"]).rows
    assert row.reason == "questions: 500 -> 499 of them"
    rescored = scored_run("now", BEFORE, scorer_version="ab" * 32)
    (row,) = against(rescored, before).rows
    assert row.reason.startswith("scorer: exact ")
    assert row.reason.endswith("-> exact abababababab (save the baseline again, or allow: [scorer])")


def test_versions_that_differ_in_their_end_are_other_scorers() -> None:
    """A task's version has the harness in front; cut short, a task with corrected keys counted as the same."""
    versions = [f"lm_eval 0.4.13, task 1.0, {end * 12}" for end in "ab"]
    before, now = (scored_run(each, BEFORE, scorer_version=each) for each in versions)
    (row,) = against(now, saved(before)).rows
    assert row.status == "not_comparable"
    assert all(version in row.reason for version in versions)


def test_a_saved_baseline_judges_as_its_run_does(tmp_path: Path) -> None:
    """Scores are kept in a line a cycle: what the first has, and what others have otherwise."""
    flipping = [answers(500, 100), answers(500, 101), [0.5, *answers(499, 99)]]
    run, now = scored_run("before", flipping), scored_run("now", [answers(500, 115)] * 3)
    save_baseline("main", results_of(run), tmp_path)
    kept = open_baseline("main", tmp_path)
    (of_file,), (of_run,) = against(now, kept).rows, against(now, saved(run)).rows
    assert of_file == of_run
    assert of_file.status == "fail"
    (entry,) = kept.studies["study"].experiments.values()
    assert entry.runs[0].scores == {"c1": "0" * 100 + "1" * 400, "c2": "101:0", "c3": "1:0.5"}
    assert '"c2": "101:0"' in render(kept.studies["study"])
    rows = compare(open_side("main", tmp_path), [side_of("now", results_of(now))], limits=[ACCURACY])
    assert [row.verdict for row in rows if row.metric == "accuracy"] == ["fail"]

    older = replace(entry, runs=(replace(entry.runs[0], scores={}),))
    without = replace(kept, studies={"study": replace(kept.studies["study"], experiments={"dtype:float32": older})})
    (row,) = against(now, without).rows
    assert row.status == "not_comparable"
    assert row.reason.startswith("the baseline has no scores of each question: save it again")


@pytest.mark.parametrize(
    "cycles",
    [
        [(1.0, 0.0), (1.0, 0.0)],
        [(0.25, 1 / 3, 1.0), (0.25, 0.0, 1.0), (1.0, 0.0, 0.0)],
        [(0.5,), (1.0,), (0.0,)],
        [tuple(float(index % 3 > 0) for index in range(2000)), tuple(float(index % 2) for index in range(2000))],
    ],
)
def test_scores_come_back_as_they_were_saved(cycles: list[tuple[float, ...]]) -> None:
    lines = written_scores({f"c{number}": scores for number, scores in enumerate(cycles, 1)})
    for scores, back in zip(cycles, read_scores(lines).values(), strict=True):
        assert back == pytest.approx(scores, abs=1e-4)
    with pytest.raises(StoreError, match="the scores of c1"):
        read_scores({"c1": "yes no"})


def test_a_comparison_shows_points_and_their_interval_by_question() -> None:
    """One cycle is enough, though its scatter cannot tell that 30 lost and 20 gained are no change."""
    before = side_of("before", results_of(scored_run("before", [answers(500, 100)])))
    rows = []
    for scores in (answers(500, 110, at=20), answers(500, 140)):
        now = side_of("now", results_of(scored_run("now", [scores])))
        rows += compare(before, [now], metrics=["accuracy"])
    assert [row.verdict for row in rows] == ["not told apart", "lower"]
    assert "-8 points" in "\n".join(lines(rows[1:]))


def test_in_turn_right_answers_are_judged_by_question() -> None:
    before = [*results_of(scored_run("a", BEFORE))]
    now = [*results_of(scored_run("b", [answers(500, 115)] * 3))]
    report = judge_in_turn(before, now, Comparison((ACCURACY, COST)))
    assert [row.status for row in report.rows] == ["fail", "pass"]
    assert "15 lost, 0 gained" in report.rows[0].reason


def test_the_effect_of_an_axis_on_right_answers_is_as_uncertain_as_its_questions() -> None:
    """Three cycles of equal answers have no scatter, and 0.4 points were told apart from nothing."""
    before = [*results_of(scored_run("run", BEFORE))]
    few, many = ([*results_of(scored_run("run", [answers(500, wrong)] * 3))] for wrong in (102, 140))
    for name in ("accuracy", "joules_per_correct_answer"):
        pairs = [log_of_pair(metric(name), before, now) for now in (few, many)]
        assert [abs(pair.centre) > pair.half_width for pair in pairs] == [False, True], name
    single = log_of_pair(metric("accuracy"), before[:1], many[:1])
    assert 0 < single.half_width < abs(single.centre), "one cycle asks all the questions"


def test_another_board_answers_alike_and_costs_otherwise() -> None:
    """A point of 80 % is below what two boards' gains may differ by, and no gain makes answers wrong."""
    before: dict[str, JsonValue] = {"device_ids": ["GPU-a"], "device_count": 1}
    now: dict[str, JsonValue] = {**before, "device_ids": ["GPU-b"]}
    assert differences(before, now, metric("accuracy"), -0.0125) == []
    assert len(differences(before, now, metric("joules_per_correct_answer"), 0.05)) == 1
