"""Series as a line of blocks."""

from __future__ import annotations

import math

from pytest_llem.results.history.sparkline import sparkline


def test_a_step_is_seen_and_noise_is_not() -> None:
    """Scaled to its own range, noise of half a percent looks like a cliff."""
    assert sparkline([1.0, 1.08, 1.0, 2.0], 10) == "▁▁▁█"
    assert set(sparkline([1.0, 1.005, 0.998, 1.002], 10)) <= set("▄▅")


def test_many_values_share_the_width() -> None:
    assert sparkline([1.0] * 500 + [2.0] * 500, 4) == "▁▁██"


def test_what_cannot_be_drawn_is_blank() -> None:
    """A missing value drawn at the bottom reads as a gain."""
    assert sparkline([1.0, math.nan, 2.0], 9) == "▁ █"
    assert sparkline([], 5) == ""
    assert sparkline([0.0, 0.0], 5) == "▁▁"
