"""The promised error rates of gates: 5 cycles, 2 % noise, a limit of 3 %."""

from __future__ import annotations

import pytest

from tests.benchmarks.gate_error_rates import SAMPLES, rates

STUDIES = 400
FOUND = {"normal": 0.95, "lognormal": 0.95, "drift": 0.95, "heavy tails": 0.94, "skewed": 0.93}


@pytest.mark.parametrize("shape", SAMPLES)
def test_equal_runs_raise_no_alarm_in_more_than_one_study_of_a_hundred(shape: str) -> None:
    assert rates(SAMPLES[shape], STUDIES).study_false_alarms <= 0.01


@pytest.mark.parametrize("shape", FOUND)
def test_equal_runs_are_rarely_undecided_and_regressions_are_found(shape: str) -> None:
    found = rates(SAMPLES[shape], STUDIES)
    assert found.inconclusive <= 0.05
    assert found.found >= FOUND[shape]
