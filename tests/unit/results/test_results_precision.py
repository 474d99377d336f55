"""When the cycles so far pin down the headline metric."""

from __future__ import annotations

import math

import pytest

from pytest_llem.results.statistics import relative_half_width


def test_five_cycles_against_the_textbook() -> None:
    """Student's t for four degrees of freedom is 2.776, and 3.495 for one of two looks; the standard error is 0.01."""
    step = 0.01 * math.sqrt(5)
    values = [math.exp(-step), math.exp(-step), 1.0, math.exp(step), math.exp(step)]
    assert relative_half_width(values) == pytest.approx(math.expm1(0.02776), rel=1e-3)
    assert relative_half_width(values, looks=2) == pytest.approx(math.expm1(0.03495), rel=1e-3)


def test_it_does_not_depend_on_the_unit() -> None:
    values = [1.0, 1.02, 0.99, 1.01, 1.0]
    assert relative_half_width([1000 * value for value in values]) == pytest.approx(relative_half_width(values))


@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0, 1.1, 1.0, 1.1], [1.0, 0.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0, 1.0]]
)
def test_too_few_or_unusable_values_are_never_precise(values: list[float]) -> None:
    assert relative_half_width(values) is None
