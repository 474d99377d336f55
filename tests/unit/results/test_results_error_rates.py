"""The error rates that gates promise, simulated at fixed seeds; tests/benchmarks/gate_error_rates.py has them all."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from pytest_llem.results.gates import judge_budget, judge_ratio, judge_runs
from pytest_llem.results.statistics import FIRST_LOOK, RunSpread, relative_half_width

LIMIT = 0.03
TRIALS = 1500
WITHIN = 0.05 + 2 * math.sqrt(0.05 * 0.95 / TRIALS)
"""The promised 5 %, and two standard errors of a share that is simulated."""


def run(rng: random.Random, cycles: int, noise: float, rho: float = 0.0, level: float = 1.0) -> list[float]:
    """Cycles of a first-order autoregression: `rho` is the correlation of successive ones."""
    state = rng.gauss(0, 1)
    values = []
    for _ in range(cycles):
        values.append(level * math.exp(noise * state))
        state = rho * state + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)
    return values


def false_alarms(verdicts: Iterator[str]) -> float:
    return sum(status == "fail" for status in verdicts) / TRIALS


@pytest.mark.parametrize(
    ("before", "now"),
    [((10, 0.01), (3, 0.05)), ((3, 0.05), (10, 0.01)), ((10, 0.02), (3, 0.02)), ((5, 0.02), (5, 0.05))],
)
def test_a_change_at_the_limit_fails_in_five_percent(before: tuple[int, float], now: tuple[int, float]) -> None:
    """A variance pooled over 10 quiet cycles and 3 noisy ones gave 20 %."""
    rng = random.Random(7)
    verdicts = (judge_ratio(run(rng, *before), run(rng, *now, level=1 + LIMIT), LIMIT).status for _ in range(TRIALS))
    assert false_alarms(verdicts) <= WITHIN


@pytest.mark.parametrize("runs", [2, 3])
def test_a_noisy_run_against_several_quiet_ones_fails_in_five_percent(runs: int) -> None:
    rng = random.Random(8)
    verdicts = (
        judge_runs([run(rng, 10, 0.01) for _ in range(runs)], run(rng, 4, 0.06, level=1 + LIMIT), LIMIT).status
        for _ in range(TRIALS)
    )
    assert false_alarms(verdicts) <= WITHIN


def test_correlated_cycles_are_recognised_from_ten_on() -> None:
    """Successive cycles that correlate by 0.6 gave 20 % at the limit; twenty of them say so themselves."""
    rng = random.Random(9)
    verdicts = (
        judge_ratio(run(rng, 20, 0.04, 0.6), run(rng, 20, 0.04, 0.6, level=1 + LIMIT), LIMIT).status
        for _ in range(TRIALS // 2)
    )
    assert sum(status == "fail" for status in verdicts) / (TRIALS // 2) <= 0.065
    verdict = judge_ratio(run(rng, 20, 0.02, 0.8), run(rng, 20, 0.02, 0.8), LIMIT)
    assert "cycles follow one another" in verdict.reason


@pytest.mark.parametrize("noise", [0.01, 0.02, 0.03, 0.05])
def test_target_ci_keeps_its_coverage(noise: float) -> None:
    """After three cycles, with an interval for one look, 68 % of those that stopped held the true value."""
    rng, target, most = random.Random(10), 0.02, 10
    stopped = held = 0
    for _ in range(TRIALS):
        values = run(rng, most, noise)
        for count in range(FIRST_LOOK, most + 1):
            width = relative_half_width(values[:count], most - FIRST_LOOK + 1)
            if width is not None and width <= target:
                stopped += 1
                held += abs(sum(map(math.log, values[:count])) / count) <= math.log1p(target)
                break
    assert stopped - held <= 0.01 * TRIALS, "of all studies, whatever their noise"
    if noise <= target:
        assert held / stopped >= 0.95, "of those that stop, where the target can be reached"


def test_a_measured_spread_between_runs_takes_the_place_of_the_assumed_one() -> None:
    """Runs that differ by 2 %: with one baseline run and an assumed 1 % a change at the limit failed far too often."""
    rng, spread = random.Random(11), RunSpread(common=0.016, between=0.012, degrees=30)
    shares = []
    for known in (None, spread):
        verdicts = (
            judge_runs(
                [run(rng, 5, 0.01, level=rng.lognormvariate(0, 0.02))],
                run(rng, 5, 0.01, level=(1 + LIMIT) * rng.lognormvariate(0, 0.02)),
                LIMIT,
                spread=known,
            ).status
            for _ in range(TRIALS)
        )
        shares.append(false_alarms(verdicts))
    assert shares[0] > 0.2
    assert shares[1] <= WITHIN


def test_a_budget_in_joules_holds_beyond_what_the_sensor_is_off_by() -> None:
    """Ten quiet cycles on a board whose gain is 5 % low passed a budget that the work exceeds by 3 %."""
    values = run(random.Random(12), 10, 0.002)
    assert judge_budget(values, 1.03).status == "pass"
    assert judge_budget(values, 1.03, systematic=0.05).status == "inconclusive"
    assert judge_budget(values, 1.08, systematic=0.05).status == "pass"
    assert judge_budget(values, 0.93, systematic=0.05).status == "fail"
    assert judge_budget(values, 0.97, systematic=0.05).status == "inconclusive"
