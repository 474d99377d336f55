"""Token lengths are drawn as asked, and the same everywhere."""

from __future__ import annotations

import statistics

import pytest

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Lengths
from pytest_llem.workload.build import draw_lengths


def test_fixed_length_needs_no_chance() -> None:
    assert draw_lengths(7, 3, seed=1) == [7, 7, 7]


def test_uniform_covers_its_range_and_only_that() -> None:
    lengths = draw_lengths(Lengths("uniform", 3, 6), 500, seed=0)
    assert set(lengths) == {3, 4, 5, 6}


def test_lognormal_has_the_mean_that_was_asked_for() -> None:
    """`mean` is that of the lengths, not of their logarithm, which would be off by exp(sigma^2/2) = 1.13 here."""
    lengths = draw_lengths(Lengths("lognormal", 1, 10_000, mean=200.0, sigma=0.5), 20_000, seed=3)
    assert statistics.fmean(lengths) == pytest.approx(200.0, rel=0.02)


def test_lognormal_is_clipped() -> None:
    lengths = draw_lengths(Lengths("lognormal", 50, 60, mean=55.0, sigma=2.0), 200, seed=3)
    assert min(lengths) == 50
    assert max(lengths) == 60


def test_a_seed_gives_the_same_lengths_in_every_release() -> None:
    """Stored baselines compare the same work only as long as these numbers stay."""
    assert draw_lengths(Lengths("uniform", 1, 1000), 5, seed=42) == [640, 26, 276, 224, 737]
    assert draw_lengths(Lengths("lognormal", 1, 1000, mean=100.0, sigma=1.0), 5, seed=42) == [87, 9, 33, 28, 114]


@pytest.mark.parametrize(
    "lengths",
    [
        0,
        Lengths("uniform", 0, 3),
        Lengths("uniform", 5, 4),
        Lengths("lognormal", 1, 5),
        Lengths("lognormal", 1, 5, 3.0),
    ],
)
def test_impossible_lengths_are_refused(lengths: int | Lengths) -> None:
    with pytest.raises(WorkloadError) as caught:
        draw_lengths(lengths, 1, seed=0)
    assert caught.value.fix
