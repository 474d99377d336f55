"""The promised error rates of gates on right answers, in small; tests/benchmarks/quality_gates.py has them whole."""

from __future__ import annotations

import pytest

from pytest_llem.study.limits import parse_fail_if
from tests.benchmarks.quality_gates import ENGINES, covered, equal_runs, found, nearly_stable, power


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cycles", [(3, 3), (1, 1), (2, 4)])
def test_equal_runs_do_not_alarm(engine: str, cycles: tuple[int, int]) -> None:
    """By the choice of questions alone, half of the studies with sampled decoding would."""
    rates = equal_runs(ENGINES[engine], 2, cycles=cycles, questions=200)
    assert rates.gate_false_alarms == 0


def test_three_points_of_500_questions_are_found() -> None:
    assert power(0.03, 0.0, 500) >= 0.95
    assert found(nearly_stable, 30, 0.05, 0.0) >= 0.95


def test_bounds_hold_the_change_over_draws_of_questions() -> None:
    assert min(covered(0.04, 0.01, 500, 200)) > 0.92


def test_a_point_takes_thousands_of_questions() -> None:
    half = parse_fail_if("accuracy", "-0.5 points")
    assert power(0.01, 0.0, 2500, half) < 0.95 < power(0.01, 0.0, 4000, half)
