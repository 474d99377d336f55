"""Change points: how often they are wrong, and where they lie. The whole proof is tests/benchmarks/change_points.py."""

from __future__ import annotations

import math
import random

import pytest

from pytest_llem.results.history.changes import ChangePoint, find_changes


def runs(rng: random.Random, count: int, noise: float, step: float = 0.0, at: int = 0) -> list[tuple[float, ...]]:
    """Runs of three cycles whose levels scatter by `noise`, and are higher by `step` from run `at` on."""
    levels = [math.exp(rng.gauss(0, noise)) * (1 + step if number >= at else 1) for number in range(count)]
    return [tuple(level * math.exp(rng.gauss(0, 0.002)) for _ in range(3)) for level in levels]


def test_a_year_of_equal_runs_is_quiet() -> None:
    """Twenty experiments, measured daily: a history that cries wolf is switched off."""
    rng = random.Random(1)
    assert [find_changes(runs(rng, 365, 0.01)) for _ in range(20)] == [[]] * 20


def test_noise_that_is_larger_than_assumed_is_learned() -> None:
    """Taken for 1 %, noise of 3 % is a step a week."""
    rng = random.Random(2)
    assert sum(bool(find_changes(runs(rng, 100, 0.03))) for _ in range(20)) <= 1  # 0.1 on average


def test_eight_percent_are_found_within_five_runs_where_they_happened() -> None:
    rng = random.Random(3)
    found = [find_changes(runs(rng, 35, 0.01, 0.08, at=30)) for _ in range(100)]
    assert sum(len(changes) == 1 and changes[0].first == 30 for changes in found) >= 95
    assert sum(changes[0].low <= 1.08 <= changes[0].high for changes in found if changes) >= 82  # 90 % on average


def test_bad_runs_are_no_change_point() -> None:
    """Another job on the machine, two nights in a row."""
    rng = random.Random(4)
    series = runs(rng, 60, 0.01)
    for bad in (12, 30, 31, 50):
        series[bad] = tuple(value * 1.3 for value in series[bad])
    assert find_changes(series) == []


def test_what_was_found_stays_found() -> None:
    """Each run is judged by those before it: the history must not tell another story every morning."""
    rng = random.Random(5)
    series = runs(rng, 40, 0.01, 0.1, at=20)
    series += [tuple(value * 0.93 for value in run) for run in runs(rng, 20, 0.01)]
    whole = [_place(change) for change in find_changes(series)]
    assert [first for first, *_ in whole] == [20, 40]
    for seen in range(len(series) + 1):
        assert [_place(change) for change in find_changes(series[:seen])] == [each for each in whole if each[1] < seen]


def _place(change: ChangePoint) -> tuple[int, int, int, int]:
    return change.first, change.found, change.earlier, change.later


def test_the_size_sharpens_as_runs_come() -> None:
    """Three runs that came out high by luck made +12 % of +8 %, and thirty more did not put it right."""
    rng = random.Random(8)
    lucky = [1.12, 1.13, 1.12]
    series = runs(rng, 30, 0.02) + [(value,) * 3 for value in lucky] + runs(rng, 30, 0.02, 0.08)
    (found,) = find_changes(series[:33])
    (known,) = find_changes(series)
    assert (known.first, known.found) == (found.first, found.found) == (30, 32)
    assert not found.low < 1.08
    assert known.low < 1.08 < known.high
    assert known.high - known.low < 0.6 * (found.high - found.low)


def test_the_next_change_ends_the_level_that_a_size_is_of() -> None:
    """Measured to the end, a step that was mended in between has no size."""
    rng = random.Random(9)
    series = runs(rng, 60, 0.005, 0.08, at=20)
    series[40:] = runs(rng, 20, 0.005)
    up, down = find_changes(series)
    assert (up.first, down.first) == (20, 40)
    assert up.low < 1.08 < up.high
    assert down.low < 1 / 1.08 < down.high
    one_bad = series[:]
    one_bad[30] = (2.0, 2.0, 2.0)
    assert abs(find_changes(one_bad)[0].ratio / up.ratio - 1) < 0.003


def test_a_change_that_hides_in_noise_says_where_else_it_may_lie() -> None:
    (change,) = find_changes([(1.0,), (1.02,)] * 10 + [(1.03,)] + [(1.05,), (1.07,)] * 5)
    assert change.first - change.earlier <= 20 <= change.first + change.later
    assert change.earlier + change.later > 0


@pytest.mark.parametrize("left_out", [(), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)])
def test_a_run_without_a_ratio_is_passed_over(left_out: tuple[float, ...]) -> None:
    """No request met its target: the logarithm of 0 took the whole page down. Numbers count all runs."""
    rng = random.Random(6)
    series = runs(rng, 40, 0.01, 0.08, at=20)
    (without,) = find_changes(series)
    (change,) = find_changes([left_out, *series])
    assert (change.first, change.found) == (without.first + 1, without.found + 1)


def test_equal_values_have_no_change_point() -> None:
    """Greedy answers score alike every night: a spread of 0 must divide nothing."""
    assert find_changes([(1.0, 1.0)] * 50) == []
    (change,) = find_changes([(1.0, 1.0)] * 20 + [(0.9, 0.9)] * 5)
    assert (change.first, round(change.ratio, 3)) == (20, 0.9)
