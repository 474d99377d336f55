"""What is said of each metric, which docs/metrics.md prints, holds in results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llem.job.metric_names import METRIC_NAMES, percentile_name
from pytest_llem.job.percentiles import least_values
from pytest_llem.results.metrics import SHIPPED, metric
from tests.unit.results.conftest import Bench


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_all_is_said(name: str) -> None:
    assert None not in vars(METRIC_NAMES[name]).values()


def test_without_a_meter_the_energy_is_absent_and_the_rest_is_there(bench: Bench) -> None:
    result = bench.result(replace(bench.measurement(), energy=None))
    assert {name for name, each in SHIPPED.items() if each.energy and each.of(result) is not None} == set()
    never = {name for name, each in SHIPPED.items() if each.absent == "never in a valid result"}
    assert never == {"output_tokens_per_s", "total_tokens_per_s", "requests_per_s"}
    assert [name for name in never if metric(name).of(result) is None] == []


def test_formulas_hold(bench: Bench) -> None:
    """Two repeats of three requests with 8 + 4 tokens in 2 s at 10 W, 4 W of them idle."""
    result = bench.result()
    expected = {
        "energy_j": 20.0,
        "joules_per_output_token": 20 / 24,
        "joules_per_total_token": 20 / 72,
        "joules_per_request": 20 / 6,
        "wh_per_1000_queries": 20 / 6 * 1000 / 3600,
        "tokens_per_joule": 24 / 20,
        "avg_power_w": 10.0,
        "idle_power_w": 4.0,
        "energy_above_idle_j": 20.0 - 4.0 * 2,
        "output_tokens_per_s": 12.0,
        "total_tokens_per_s": 36.0,
        "requests_per_s": 3.0,
        "load_s": 0.25,
        "ttft_p50_s": 0.1,
        "tpot_mean_s": 0.01,
        "itl_mean_s": 0.01,
        "e2el_p50_s": 0.13,
    }
    assert {name: metric(name).of(result) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_how_many_values_a_percentile_takes_is_said_as_it_is(percentile: float) -> None:
    said = str(METRIC_NAMES[percentile_name("ttft", percentile)].absent)
    assert f"fewer than {least_values(percentile)} values" in said
