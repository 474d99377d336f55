"""A race that assumes that figures only rise or only fall along numbers: corners, bisection, and where it is false."""

from __future__ import annotations

import math

from pytest_llem.results.racing.boxes import boxes_of
from pytest_llem.study.limits import Budget
from pytest_llem.study.optimize import Optimize
from tests.unit.results.racing.test_additive import COST, GRID, LATENCY, Levels, Measured, settings_of

MONOTONE = Optimize(COST, assume="monotone")
LINE = settings_of({"batch": tuple(range(1, 41)), "dtype": ("a", "b")})


def cost(levels: Levels) -> float:
    """A cost that falls along the batch, and along the threads of a large one; of a small one it rises."""
    batch, threads = float(str(levels["batch"])), float(str(levels.get("threads", 1)))
    crossed = math.exp(0.1 * threads * (1 if batch < 4 else -1) * (1 if levels.get("cache") else 0.5))
    return crossed / math.sqrt(batch) * (1.0 if levels["dtype"] == "a" else 1.2 + ord(str(levels["dtype"])) / 100)


def test_corners_find_the_best_and_the_rest_is_never_measured() -> None:
    """Directions that differ from line to line must not mislead it: nothing is assumed of them."""
    study = Measured(cost)
    answer = study.race(MONOTONE)
    assert answer.best == (study.best(),)
    assert (answer.status, answer.rests_on) == ("found", "monotone")
    assert answer.sentence.startswith("if figures only rise or only fall along numbers, ")
    assert len(study.asked) <= 200
    inner = answer.fates["2-2-c-True"]
    assert (inner.state, inner.cycles) == ("dropped", 0)
    assert (inner.reason or "").startswith("cannot be the best if figures only rise or only fall along numbers: ")
    assert {fate.state for name, fate in answer.fates.items() if name not in answer.best} == {"dropped", "not needed"}


def test_the_edge_of_a_limit_is_found_by_bisection() -> None:
    """Of a limit that a number crosses, the best setting is in the middle of its axis, where no corner is."""
    study = Measured(cost, lambda levels: 0.02 * float(str(levels["batch"])), settings=LINE)
    answer = study.race(Optimize(COST, (Budget(LATENCY, "<=", 0.47),), max_cycles=12, assume="monotone"), rounds=12)
    assert study.best(0.47) == "23-a"
    assert "23-a" in answer.best
    assert len(answer.best) <= 5
    assert answer.fates["39-a"].state == "infeasible"
    assert answer.fates["2-a"].state in ("not needed", "dropped")
    assert len({name for name, _ in study.asked}) <= 40


def test_a_figure_that_falls_and_rises_is_refused() -> None:
    """Ends alone would certify an end, however much better the middle is."""
    study = Measured(lambda levels: 1 + abs(float(str(levels["batch"])) - 20) / 20, settings=LINE)
    answer = study.race(MONOTONE)
    assert answer.rests_on is None
    assert f"{COST} neither only rises nor only falls from " in answer.sentence
    assert study.best() in answer.best


def test_a_round_needs_what_the_race_then_asks_for() -> None:
    """A setting may be measured for the first time in any round; one that needed it may not have skipped it."""
    study = Measured(cost, lambda levels: 0.02 * float(str(levels["batch"])), settings=LINE)
    goal = Optimize(COST, (Budget(LATENCY, "<=", 0.47),), assume="monotone")
    study.race(goal)
    asked = set(study.asked)
    for rounds in (0, 1, 2, 5):
        needed = study.race(goal, rounds).needed
        assert {(name, rounds + 1) for name in needed} == {(name, at) for name, at in asked if at == rounds + 1}


def test_boxes_hold_all_settings_where_combinations_are_missing() -> None:
    """An excluded combination once was a corner that did not exist."""
    settings = [each for each in settings_of(GRID) if (each.levels["batch"], each.levels["threads"]) != (16, 16)]
    boxes = boxes_of(settings)
    assert {name for box in boxes for name in box.named.values()} == {each.id for each in settings}
    assert all(corner in box.named.values() for box in boxes for corner in box.corners)
