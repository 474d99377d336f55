"""Cycles that ran on different kinds of machines are no repetitions: neither a budget nor a comparison judges them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.job import DeviceSet
from pytest_llem.results.baselines import baseline_of
from pytest_llem.results.derive import derive_result
from pytest_llem.results.gate_report import GateRow
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.state import Outcome
from pytest_llem.study.limits import Budget, Comparison, FailIf
from tests.unit.results.conftest import REPORT, Bench

Cycles = Callable[..., list[Outcome]]


@pytest.fixture
def cycles(bench: Bench, key: CycleKey, tmp_path: Path) -> Cycles:
    """Five valid cycles, each on the node and board named: `H100/0` is the first H100."""

    def make(run_id: str, *boards: str) -> list[Outcome]:
        outcomes = []
        for cycle, (board, noise) in enumerate(zip(boards, (1.0, 1.01, 0.99, 1.005, 0.995), strict=True), 1):
            each = replace(key, cycle=cycle)
            job = replace(bench.job(each), devices=DeviceSet("cuda", (board,)), run_id=run_id)
            gpu: JsonValue = {"uuid": board, "name": board.partition("/")[0], "driver": "580.1", "power_limit_w": 700.0}
            place: dict[str, JsonValue] = {"hostname": board, "gpus": [gpu], "cpu": {"model": "cpu"}}
            report = replace(REPORT, name="ray", environment=place, inputs={})
            measurement = bench.measurement(10 * noise)
            result = derive_result(job, measurement, report, study=key.study, environment=place)
            outcomes.append(Outcome("valid", each, tmp_path, result, None, 1, ()))
        return outcomes

    return make


def rows(before: list[Outcome], now: list[Outcome], allow: tuple[str, ...] = (), limit: float = 0.2) -> list[GateRow]:
    """A budget's and a comparison's row."""
    known = Results(tuple(outcome.result for outcome in before if outcome.result is not None))
    compare = Comparison((FailIf("avg_power_w", limit),), allow=allow)
    report = judge_experiment(now, [Budget("avg_power_w", "<=", 20.0)], compare, baseline_of("before", known))
    return list(report.rows)


H100 = ("H100/0", "H100/1", "H100/2", "H100/3", "H100/4")
MIXED = ("H100/0", "H100/1", "A100/0", "H100/2", "H100/3")


def test_boards_of_one_model_may_differ(cycles: Cycles) -> None:
    assert [row.status for row in rows(cycles("before", *H100), cycles("now", *reversed(H100)))] == ["pass", "pass"]


def test_cycles_on_two_models_are_judged_by_no_gate(cycles: Cycles) -> None:
    for row in rows(cycles("before", *H100), cycles("now", *MIXED)):
        assert row.status == "not_comparable"
        assert "device_models: c1 H100, c3 A100" in row.reason


def test_a_baseline_of_two_models_is_none_for_one_of_them(cycles: Cycles) -> None:
    budget, comparison = rows(cycles("before", *MIXED), cycles("now", *H100))

    assert budget.status == "pass"
    assert comparison.status == "not_comparable"
    assert "device_models: A100, H100 -> H100" in comparison.reason


def test_a_mixture_is_judged_where_the_study_allows_it(cycles: Cycles) -> None:
    found = rows(cycles("before", *H100), cycles("now", *MIXED), ("device_models",))

    assert [row.status for row in found] == ["pass", "pass"]


def test_other_boards_than_the_baselines_count_with_the_gain_of_each(cycles: Cycles) -> None:
    """One cycle on another board is enough, whichever cycle that was."""
    now = cycles("now", "H100/0", "H100/0", "H100/9", "H100/0", "H100/0")

    _, comparison = rows(cycles("before", *["H100/0"] * 5), now, limit=0.05)

    assert comparison.status == "not_comparable"
    assert "other boards (H100/0 -> H100/0, H100/9)" in comparison.reason
