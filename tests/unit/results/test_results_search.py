"""How a search plans its windows, and when it ends; whole searches over simulated queues of known capacity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.search import LargestLoad, LoadWindow, NextLoad, plan, share_interval, verdict_at
from pytest_llem.study.search import IN_FLIGHT, RATE, Search
from tests.benchmarks.load_search import QUEUES, Queue, constant, search_once

SEARCH = Search(RATE, 1.0, 200.0)
AT = 0.95


def window(load: float, good: int, requests: int = 1000) -> LoadWindow:
    return LoadWindow(load, load, good, requests, requests)


def searched(search: Search, measure: Callable[[float], LoadWindow]) -> tuple[LargestLoad, list[LoadWindow]]:
    windows: list[LoadWindow] = []
    while isinstance(step := plan(search, AT, windows), NextLoad):
        assert search.low <= step.load <= search.high
        windows.append(measure(step.load))
    return step, windows


def knee(capacity: float) -> Callable[[float], LoadWindow]:
    """A server that serves everyone in time up to its capacity, and saturates beyond."""

    def measure(load: float) -> LoadWindow:
        if load <= capacity:
            return window(load, 1000)
        return replace(window(load, 300), overloaded=True, served_per_s=capacity)

    return measure


@pytest.mark.parametrize("capacity", [1.5, 9.3, 47.0, 180.0])
def test_a_server_that_tips_over_is_found_in_a_few_windows(capacity: float) -> None:
    """What an overloaded server still served says where to look: bisection alone would need eight windows."""
    answer, windows = searched(SEARCH, knee(capacity))

    assert answer.load == pytest.approx(capacity, rel=0.03)
    assert answer.ending == "found"
    assert len(windows) <= 7
    assert answer.met is not None
    assert answer.not_met is not None
    assert windows[answer.met].load <= capacity < windows[answer.not_met].load


def test_a_server_that_serves_the_upper_end_is_at_least_that_good() -> None:
    """An open answer must not look like a measured one."""
    answer, windows = searched(SEARCH, lambda load: window(load, 1000))

    assert (answer.ending, answer.load, answer.high) == ("at_least", 200.0, None)
    assert windows[-1].load == 200.0
    assert len(windows) <= 5


@pytest.mark.parametrize(("at", "requests"), [(0.99, 100), (0.99, 300), (1.0, 1000)])
def test_a_bracket_that_ends_below_the_answer_has_no_upper_end(at: float, requests: int) -> None:
    """So few requests do not show 99 % by themselves: the upper end was "found", with an interval of that one load."""
    windows: list[LoadWindow] = []
    while isinstance(step := plan(SEARCH, at, windows), NextLoad):
        windows.append(window(step.load, requests, requests))

    assert (step.ending, step.high) == ("at_least", None)
    assert step.load is not None
    assert 100 < step.load <= 200


def test_an_answer_that_may_lie_below_the_bracket_has_no_lower_end() -> None:
    search = Search(RATE, 10.0, 12.0, max_windows=2)
    windows: list[LoadWindow] = []
    while isinstance(step := plan(search, AT, windows), NextLoad):
        windows.append(window(step.load, 48, 50) if not windows else window(step.load, 40, 50))

    assert (step.ending, step.low) == ("not_converged", 0.0)


def test_repeats_of_the_same_good_requests_count_once() -> None:
    """A window of three repeats, none of them late, was taken for three times as sure as its own result says."""
    three = LoadWindow(200.0, 200.0, 1200, 1200, 400.0)

    assert share_interval([three]) == binomial_interval(400, 400)


def test_a_window_of_mostly_late_requests_is_as_sure_as_its_own_result_says() -> None:
    """Neighbours that were late together counted as one each: 35 to 45 % was stated where 25 to 57 % was known."""
    late = LoadWindow(8.0, 8.0, 160, 400, 40.0)

    assert share_interval([late]) == binomial_interval(16, 40)
    assert verdict_at(8.0, 0.5, [late]) == "undecided"


def test_a_server_that_fails_at_the_lower_end_has_no_answer() -> None:
    answer, windows = searched(SEARCH, lambda load: window(load, 500))

    assert (answer.ending, answer.load, answer.met) == ("none", None, None)
    assert windows[-1].load == 1.0


def test_windows_that_are_used_up_leave_an_interval_and_say_so() -> None:
    answer, windows = searched(replace(SEARCH, max_windows=3), knee(47.0))

    assert answer.ending == "not_converged"
    assert len(windows) == 3
    assert answer.low is not None
    assert answer.high is not None
    assert answer.low < 47.0 < answer.high


def test_a_share_that_is_not_told_from_the_slo_is_measured_again() -> None:
    """Half of such windows are on the wrong side by chance, and bisection goes the wrong way after each of them."""
    tried: list[float] = []

    def measure(load: float) -> LoadWindow:
        tried.append(load)
        good = 100 if load < 40 else 95 if load < 50 else 40
        return window(load, good, 100)

    answer, _ = searched(SEARCH, measure)

    repeated = {load for load in tried if tried.count(load) > 1}
    assert repeated
    assert all(40 <= load < 50 for load in repeated)
    assert answer.load == pytest.approx(45, rel=0.12)


def test_windows_of_one_load_count_together() -> None:
    one = window(10.0, 98, 100)

    assert verdict_at(10.0, AT, [one]) == "undecided"
    assert verdict_at(10.0, AT, [one] * 6) == "met"
    assert verdict_at(10.0, AT, [one, replace(one, overloaded=True)]) == "not_met"


def test_requests_that_are_late_together_tell_as_little_as_a_few() -> None:
    """Counted as independent, one queue that lasted for fifty requests decided where the search went on."""
    together = replace(window(10.0, 900), effective=20.0)

    assert verdict_at(10.0, AT, [window(10.0, 900)]) == "not_met"
    assert verdict_at(10.0, AT, [together]) == "undecided"


def test_a_window_that_tells_nothing_is_repeated_once_and_then_given_up() -> None:
    lost = LoadWindow(14.14, 14.14, unusable="foreign_process: python computed on GPU 0")
    first = plan(SEARCH, AT, [])
    again = plan(SEARCH, AT, [lost])
    ended = plan(SEARCH, AT, [lost, lost])

    assert isinstance(first, NextLoad)
    assert isinstance(again, NextLoad)
    assert again.load == first.load == 14.14
    assert isinstance(ended, LargestLoad)
    assert (ended.ending, ended.load) == ("given_up", None)
    assert "foreign_process" in ended.reason


@pytest.mark.parametrize("capacity", [1, 13, 255])
def test_requests_in_flight_are_found_to_the_last_one(capacity: int) -> None:
    search = Search(IN_FLIGHT, 1, 256)

    answer, windows = searched(search, lambda load: window(load, 1000 if load <= capacity else 100))

    assert answer.load == pytest.approx(capacity, rel=0.05)
    assert all(each.load == int(each.load) for each in windows)


@pytest.mark.parametrize("capacity", [1, 3, 5])
def test_a_small_number_in_flight_is_found_between_two_neighbours(capacity: int) -> None:
    """The next number cannot be nearer than a third: it was tried until the windows were used up."""
    search = Search(IN_FLIGHT, 1, 64)

    answer, windows = searched(search, lambda load: window(load, 1000 if load <= capacity else 300))

    assert (answer.ending, answer.load, answer.low, answer.high) == ("found", capacity, capacity, capacity)
    assert len(windows) < 8


@pytest.mark.parametrize("disturbed", range(5))
def test_one_disturbed_window_does_not_decide_a_search(disturbed: int) -> None:
    """One that stalled outweighed all that came later: the answer was just below it, with a narrow interval."""
    windows: list[LoadWindow] = []
    while isinstance(step := plan(SEARCH, AT, windows), NextLoad):
        stalled = len(windows) == disturbed
        windows.append(window(step.load, 550 if stalled else 1000 if step.load <= 50 else 300))

    assert step.low is not None
    assert step.high is not None
    assert step.low / 1.05 <= 50 <= step.high * 1.05


def test_a_number_in_flight_that_failed_by_accident_is_tried_again() -> None:
    """Between a number that is kept and the next one that is not there is nothing left to try but these two."""
    search, tried = Search(IN_FLIGHT, 1, 64), list[float]()

    def measure(load: float) -> LoadWindow:
        tried.append(load)
        stalled = load == 8 and tried.count(8) == 1
        return window(load, 30 if stalled or load > 40 else 60, 60)

    answer, _ = searched(search, measure)

    assert tried.count(8) > 1
    assert answer.high is None or answer.high >= 40, "one stalled window decided the search"


def test_a_plan_depends_on_nothing_but_the_windows() -> None:
    """Each process plans for itself: two that disagreed would measure different loads under one name."""
    windows: list[LoadWindow] = []
    for _ in range(4):
        step, same = plan(SEARCH, AT, windows), plan(SEARCH, AT, list(windows))
        assert step == same
        assert isinstance(step, NextLoad)
        windows.append(knee(30.0)(step.load))


FAST: Sequence[Queue] = (QUEUES[0][0], Queue("16 slots, 0.4 s", 16, constant(0.4), 0.4, 0.1, 0.9))


@pytest.mark.parametrize(("queue", "capacity"), [(FAST[0], 53.41), (FAST[1], 32.71)])
def test_the_capacity_of_a_queue_is_found(queue: Queue, capacity: float) -> None:
    """The small form of `tests/benchmarks/load_search.py`, whose table of 100 seeds is in docs/load.md."""
    answers = [search_once(queue, 2000, seed, SEARCH) for seed in range(2)]

    for answer, count in answers:
        assert count <= 8
        assert answer.load is not None
        assert abs(math.log(answer.load / capacity)) < 0.05
        assert answer.low is not None
        assert answer.high is not None
        assert answer.low * 0.97 <= capacity <= answer.high * 1.03
