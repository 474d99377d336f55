"""A valid result names what weakens it: idle power that was none, and a warm-up that did not end by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import WarmupSettings
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.measurement import WarmupOutcome
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from tests.unit.results.conftest import REPORT, Bench

Warned = Callable[[WarmupOutcome, WarmupSettings], dict[str, str]]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"idle": {"settled": False, "slope_w_per_s": -3.5, "power_w": 80.0}}, ["idle_not_settled"]),
        ({"idle": {"settled": True, "slope_w_per_s": -0.1, "power_w": 80.0}}, []),
        ({"idle": None}, []),
        ({}, []),
    ],
)
def test_idle_power_that_was_still_changing(bench: Bench, facts: Mapping[str, JsonValue], told: list[str]) -> None:
    result = bench.result(replace(bench.measurement(), energy=replace(bench.energy(), facts=facts)))
    assert [warning.code for warning in result.warnings] == told
    assert result.status == "valid"
    assert all("-3.5 W" in warning.message for warning in result.warnings)


@pytest.fixture
def warned(bench: Bench, key: CycleKey) -> Warned:
    def derive(outcome: WarmupOutcome, settings: WarmupSettings) -> dict[str, str]:
        job = bench.job(key)
        measured = replace(job.config.measurement, warmup=settings)
        job = replace(job, config=replace(job.config, measurement=measured))
        measurement = replace(bench.measurement(), warmup=outcome)
        result = derive_result(job, measurement, REPORT, study=key.study, environment={})
        return {warning.code: warning.message for warning in result.warnings}

    return derive


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (WarmupOutcome(10, 4.0, False, "max_repeats", 0.12), ("max_repeats", "10 repeats", "12.0%", "5.0%")),
        (WarmupOutcome(4, 60.1, False, "max_s", 0.08), ("max_s", "60.1 s", "8.0%")),
        (WarmupOutcome(2, 70.0, False, "max_s", None), ("max_s", "too few to tell")),
        (WarmupOutcome(10, 4.0, False, "max_repeats", 0.02), ("power had not",)),
    ],
)
def test_a_warm_up_that_did_not_converge(warned: Warned, outcome: WarmupOutcome, words: tuple[str, ...]) -> None:
    message = warned(outcome, WarmupSettings())["warmup_not_converged"]
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("outcome", "settings"),
    [
        (WarmupOutcome(3, 0.5, True, "converged", 0.01), WarmupSettings()),
        (WarmupOutcome(2, 0.5, False, "fixed", None), WarmupSettings(2, 2)),
        (WarmupOutcome(2, 0.5, False, "max_repeats", 0.2), WarmupSettings(1, 2, 5.0)),
    ],
)
def test_a_warm_up_that_did_as_it_was_told(warned: Warned, outcome: WarmupOutcome, settings: WarmupSettings) -> None:
    """Two repeats cannot be judged by the last three: the study chose so, and is not nagged about it."""
    assert warned(outcome, settings) == {}


@pytest.mark.parametrize(
    ("kind", "judged_by", "told"),
    [
        ("cuda", "latency", ["warmup_latency_only"]),
        ("cuda", "latency and power", []),
        ("cpu", "latency", []),
    ],
)
def test_a_warm_up_whose_power_nobody_saw_is_told(
    bench: Bench, key: CycleKey, kind: Literal["cpu", "cuda"], judged_by: str, told: list[str]
) -> None:
    """It was called converged like any other, and power settles after latency."""
    job = replace(bench.job(key), devices=DeviceSet(kind, ("GPU-1",) if kind == "cuda" else ()))
    measurement = replace(bench.measurement(), warmup=WarmupOutcome(3, 0.5, True, "converged", 0.01, judged_by))
    warnings = derive_result(job, measurement, REPORT, study=key.study, environment={}).warnings
    assert [warning.code for warning in warnings] == told


def test_process_time_says_nothing_of_idle_power(bench: Bench) -> None:
    """An idle worker uses no CPU time: that was reported as an idle power of 0 W and subtracted as such."""
    report = replace(bench.energy(idle_w=0.01), meter="estimate", measured=False, scope="process_estimate")
    energy = bench.result(replace(bench.measurement(), energy=report)).energy
    assert energy.energy_j == 20.0
    assert (energy.idle_power_w, energy.idle_power_uncertainty_w) == (None, None)
    assert (energy.energy_above_idle_j, energy.energy_above_idle_uncertainty_j) == (None, None)
