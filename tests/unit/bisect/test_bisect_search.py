"""The search over commits: right, cheap, and honest where its model does not hold."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import product

import pytest

from pytest_llem.bisect.search import CommitSearch, RunNoise
from tests.benchmarks.bisect_simulated import Found, searched

STEP = math.log(1.08)


def at(culprit: int, size: float = STEP) -> Callable[[int], float]:
    return lambda position: size * (position >= culprit)


def many(level: Callable[[int], Callable[[int], float]], noise: float = 0.02, last: int = 64) -> list[Found]:
    """Searches for every second commit of a line."""
    return [searched(random.Random(seed), last, level(seed), noise) for seed in range(2, last + 1, 2)]


def test_a_step_of_four_times_the_noise_is_found_with_few_builds() -> None:
    """A plain bisect trusts each verdict, and is wrong in a fifth of searches at this noise."""
    found = many(at)
    assert all(each.ending == "found" for each in found)
    assert sum(each.first == each.last == culprit for each, culprit in zip(found, range(2, 65, 2), strict=True)) >= 31
    assert sum(each.builds for each in found) / len(found) <= 2 * math.log2(64)


def test_equal_ends_are_not_searched() -> None:
    """Noise alone named some commit, and somebody reverted it."""
    found = many(lambda _: at(999))
    assert sum(each.ending == "no_difference" for each in found) >= 31
    assert sorted(each.builds for each in found)[16] <= 5


def test_a_gradual_change_is_no_commit() -> None:
    found = many(lambda _: lambda position: 0.2 * position / 64)
    assert sum(each.ending == "several" for each in found) >= 30


def test_commits_that_do_not_build_are_named_with_the_one_that_may_be_it() -> None:
    """The commit before one that cannot be built says nothing of which of both it was."""
    unbuilt = frozenset(range(29, 33))
    found = searched(random.Random(1), 64, at(31), 0.005, unbuilt)
    assert (found.ending, found.first, found.last) == ("found", 29, 33)


@pytest.mark.parametrize("culprit", [1, 5])
def test_either_end_may_be_next_to_it(culprit: int) -> None:
    found = searched(random.Random(culprit), 5, at(culprit), 0.01)
    assert (found.ending, found.first, found.last) == ("found", culprit, culprit)


def test_two_commits_need_no_search() -> None:
    found = searched(random.Random(0), 1, at(1), 0.01)
    assert (found.ending, found.first, found.builds) == ("found", 1, 2)


def test_the_posterior_is_that_of_the_levels_and_the_noise_together() -> None:
    """Against an integral over both levels and the variance by brute force."""
    runs = [(0, 0.0), (0, 0.01), (4, 0.09), (4, 0.07), (2, 0.05), (2, 0.08), (1, 0.02)]
    search = CommitSearch(4, RunNoise(0.02, 4.0))
    for position, level in runs:
        search.add(position, level)
    grid = [step / 500 for step in range(-20, 70)]
    spreads = [0.005 * 1.1**step for step in range(40)]
    weights = dict.fromkeys(range(1, 5), 0.0)
    for spread in spreads:  # evenly on the logarithm: of the scaled inverse chi-squared density that leaves
        prior = spread**-4.0 * math.exp(-4 * 0.02**2 / 2 / spread**2)
        likely = {
            (position, level): math.exp(-sum((y - level) ** 2 for p, y in runs if p == position) / 2 / spread**2)
            * spread ** -sum(p == position for p, _ in runs)
            for position, level in product((0, 1, 2, 4), grid)
        }
        for first in weights:
            before = sum(math.prod(likely[p, level] for p in (0, 1, 2, 4) if p < first) for level in grid)
            after = sum(math.prod(likely[p, level] for p in (0, 1, 2, 4) if p >= first) for level in grid)
            weights[first] += prior * before * after
    total = sum(weights.values())
    bad = search.is_bad()
    found = [bad[first] - bad[first - 1] for first in weights]
    assert found == pytest.approx([weight / total for weight in weights.values()], abs=0.002)
