"""A verdict says which valid cycles it does not rest on, because they did not measure the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.results.baselines import baseline_of
from pytest_llem.results.gate_report import GateRow
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.sections.performance import distribution
from pytest_llem.results.state import Outcome
from pytest_llem.study.limits import Budget, Comparison, FailIf
from tests.unit.results.conftest import Bench

Cycles = Callable[..., list[Outcome]]


@pytest.fixture
def cycles(bench: Bench, key: CycleKey, tmp_path: Path) -> Cycles:
    """Five valid cycles, of which some lost a window's energy; a run holds only numbers from its own meter."""

    def make(run_id: str, *, blind: tuple[int, ...] = (), estimated: tuple[int, ...] = ()) -> list[Outcome]:
        outcomes = []
        for cycle, noise in enumerate((1.0, 1.01, 0.99, 1.005, 0.995), 1):
            measurement = bench.measurement(10 * noise)
            if cycle in blind:
                report = bench.energy()
                lost = replace(report.windows[1], energy_j=None, uncertainty_j=None)
                measurement = replace(measurement, energy=replace(report, windows=(report.windows[0], lost)))
            if cycle in estimated:
                report = replace(bench.energy(10 * noise), meter="estimate", measured=False)
                measurement = replace(measurement, energy=report)
            each = replace(key, cycle=cycle)
            result = bench.result(measurement, each).model_copy(update={"run_id": run_id})
            outcomes.append(Outcome("valid", each, tmp_path, result, None, 1, ()))
        return outcomes

    return make


def rows(cycles: Cycles, *blind: int) -> list[GateRow]:
    """A budget's and a comparison's row; the latter against a run of equal cycles."""
    before = Results(tuple(outcome.result for outcome in cycles("before") if outcome.result is not None))
    compare = Comparison((FailIf("avg_power_w", 0.05),))
    budgets = [Budget("avg_power_w", "<=", 11.0)]
    report = judge_experiment(cycles("now", blind=blind), budgets, compare, baseline_of("before", before))
    return list(report.rows)


def test_cycles_without_the_metric_are_named(cycles: Cycles) -> None:
    for row in rows(cycles, 2, 4):
        assert row.status == "pass"
        assert "not used: c2 without avg_power_w, c4 without avg_power_w" in row.reason


def test_too_few_that_measured_it_are_inconclusive(cycles: Cycles) -> None:
    for row in rows(cycles, 1, 2, 3, 4):
        assert row.status == "inconclusive"
        assert "c4 without avg_power_w" in row.reason


def test_nothing_is_named_where_all_measured_it(cycles: Cycles) -> None:
    assert not any("without" in row.reason for row in rows(cycles))


def test_a_percentile_of_too_few_in_some_cycles_says_what_it_takes(bench: Bench, key: CycleKey, tmp_path: Path) -> None:
    """Six latencies in each; a user who reads `without ttft_p90_s` would look for a fault of the engine."""
    few = bench.result()
    enough = few.model_copy(
        update={"latency": replace(few.latency, ttft_s=distribution([0.1 + place / 1000 for place in range(10)]))}
    )
    outcomes = [
        Outcome("valid", replace(key, cycle=cycle), tmp_path, result.model_copy(update={"cycle": cycle}), None, 1, ())
        for cycle, result in enumerate((few, few, enough), 1)
    ]
    (row,) = judge_experiment(outcomes, [Budget("ttft_p90_s", "<=", 1.0)]).rows
    assert row.status == "inconclusive"
    assert "c1 without ttft_p90_s, c2 without ttft_p90_s (ttft_p90_s takes at least 10 values" in row.reason


def judged(cycles: Cycles, estimated: tuple[int, ...], *allow: str) -> list[GateRow]:
    """Equal runs of estimates: a budget and a comparison of energy, and a comparison of throughput."""
    before = Results(tuple(o.result for o in cycles("before", estimated=estimated) if o.result is not None))
    compare = Comparison((FailIf("avg_power_w", 0.05), FailIf("output_tokens_per_s", -0.05)), allow=allow)
    budgets = [Budget("avg_power_w", "<=", 30.0)]
    now = cycles("now", estimated=estimated)
    return list(judge_experiment(now, budgets, compare, baseline_of("before", before)).rows)


ALL = (1, 2, 3, 4, 5)


@pytest.mark.parametrize("estimated", [ALL, (3,)], ids=["all", "one of five"])
def test_an_estimate_of_energy_is_not_judged(cycles: Cycles, estimated: tuple[int, ...]) -> None:
    """Half to twice of the figure: a gate on it passed and failed as if it had been measured."""
    budget, energy, throughput = judged(cycles, estimated)
    for row in (budget, energy):
        assert row.status == "inconclusive"
        assert "estimated by the meter estimate, not measured" in row.reason
        assert "compare: {allow: [estimated_energy]}" in row.reason
    assert throughput.status == "pass"


def test_energy_that_was_not_taken_at_all_is_no_estimate(bench: Bench, key: CycleKey, tmp_path: Path) -> None:
    result = bench.result(replace(bench.measurement(), energy=None))
    cycle = Outcome("valid", key, tmp_path, result, None, 1, ())
    (row,) = judge_experiment([cycle], [Budget("avg_power_w", "<=", 30.0)]).rows
    assert (row.status, row.reason) == ("inconclusive", "this run did not measure it")


def test_a_study_may_judge_estimates_all_the_same(cycles: Cycles) -> None:
    assert [row.status for row in judged(cycles, ALL, "estimated_energy")] == ["pass"] * 3
