"""The front of two metrics: what is surely on it, what may be, and what is dominated."""

from __future__ import annotations

import itertools
import random

import pytest

from pytest_llem.results.front import Spot, front, standings


def spots(*bounds: tuple[float, float]) -> list[Spot]:
    return [Spot(*each) for each in bounds]


def test_a_setting_is_dominated_only_by_one_that_is_better_in_both_beyond_doubt() -> None:
    energy, right = spots((5, 6), (3, 4), (5, 6), (1, 9)), spots((5, 6), (3, 4), (5.5, 7), (1, 2))
    assert standings(energy, right, [None] * 4) == ["possible", "dominated", "possible", "possible"]
    assert standings(spots((5, 6), (3, 4)), spots((1, 2), (3, 4)), [None] * 2) == ["on", "on"]


def test_the_same_answers_at_more_energy_are_dominated() -> None:
    """Both have the same interval of accuracy, which overlaps itself: a slower engine seemed possibly the best."""
    energy, right = spots((5, 6), (3, 4)), spots((0.4, 0.6), (0.4, 0.6))
    assert standings(energy, right, [None, None]) == ["on", "possible"]
    assert standings(energy, right, ["answers", "answers"]) == ["on", "dominated"]
    assert standings(energy, right, ["answers", "others"]) == ["on", "possible"]


def test_what_is_not_known_decides_nothing() -> None:
    unknown = Spot.of((None, None), higher=False)
    assert standings([unknown, unknown], spots((1, 2), (3, 4)), [None] * 2) == ["possible", "on"]


def test_lower_is_better_where_the_metric_says_so() -> None:
    assert Spot.of((1.0, 2.0), higher=False) == Spot(-2.0, -1.0)
    assert Spot.of((1.0, None), higher=True).high == float("inf")


@pytest.mark.parametrize("seed", range(20))
def test_every_setting_is_compared_with_every_other_one(seed: int) -> None:
    """Sorted bounds stand in for pairs, of which ten thousand experiments would have a hundred million."""
    draw = random.Random(seed)
    drawn = [sorted((draw.randrange(9), draw.randrange(9))) for _ in range(24)]
    x, y = (spots(*((low, high) for low, high in drawn[from_::2])) for from_ in (0, 1))
    names = [draw.choice((None, "a", "b")) for _ in x]
    wanted = []
    for at, other in itertools.groupby(itertools.product(range(12), repeat=2), key=lambda pair: pair[0]):
        others = [each for _, each in other if each != at]
        beats = [(x[each].low > x[at].high, y[each].low > y[at].high) for each in others]
        tied = [names[at] is not None and names[at] == names[each] for each in others]
        lost = any(more and (better or tie) for (more, better), tie in zip(beats, tied, strict=True))
        won = all(x[at].low > x[each].high or y[at].low > y[each].high for each in others)
        wanted.append("dominated" if lost else "on" if won else "possible")
    assert standings(x, y, names) == wanted


@pytest.mark.parametrize(("settings", "studies"), [(2, 1000), (6, 1000), (20, 500)])
@pytest.mark.parametrize("apart", [1, 2, 4])
def test_hardly_a_study_makes_a_wrong_claim(settings: int, studies: int, apart: int) -> None:
    """Settings that lie as far apart as they are uncertain, and farther: pairs alone might err in 5 %."""
    draw, claims, wrong = random.Random(18), 0, 0
    for _ in range(studies):
        true = [(draw.gauss(0, apart), draw.gauss(0, apart)) for _ in range(settings)]
        seen = [[value + draw.gauss(0, 1) for value in point] for point in true]
        x, y = (spots(*((point[axis] - 2, point[axis] + 2) for point in seen)) for axis in (0, 1))
        best, found = front(true), standings(x, y, [None] * settings)
        claims += sum(each != "possible" for each in found)
        wrong += any(each != "possible" and (each == "on") != (at in best) for at, each in enumerate(found))
    assert claims > 10
    assert wrong / studies <= 0.002


def test_the_front_has_each_of_equal_points() -> None:
    assert front([(1, 5), (2, 4), (2, 3), (1, 4), (3, 1), (3, 1), (0, 5)]) == {0, 1, 4, 5}
