"""What the stated uncertainty is worth: on every sensor and load, many windows at random phase on a virtual clock."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import pytest

from pytest_llem.energy.estimators import from_steady_counter
from pytest_llem.energy.series import ticks_from
from pytest_llem.job.measurement import Window
from tests.benchmarks.energy_accuracy_cases import (
    CASES,
    DECODE_W,
    IDLE_W,
    LOADS,
    SENSORS,
    Case,
    calibration_of,
    plan_load,
)
from tests.benchmarks.energy_accuracy_virtual import Run, run_virtually
from tests.simulated_nvml.simulation import Simulation
from tests.simulated_nvml.virtual import virtual_sampler

WINDOWS = 40
LOSSY = ("blind", "lossy")


def runs(case: Case, simulation: Simulation, *lengths: float) -> list[Run]:
    return run_virtually(case, dict.fromkeys(lengths, WINDOWS), simulation)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_bound_holds_wherever_a_number_is_called_valid(case: Case, simulation: Simulation) -> None:
    found = runs(case, simulation, 0.1, 1.0)

    valid = [run for run in found if run.valid]
    assert bool(valid) is (case.name not in LOSSY)
    assert sum(run.covered for run in valid) >= 0.95 * len(valid)


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda case: case.name)
def test_the_bound_holds_for_every_load(sensor: Case, simulation: Simulation) -> None:
    """No valid number is wrong, whatever the sensor hides; each is calibrated by the real method."""
    short, answered = {}, 0
    for name, load in LOADS.items():
        found = run_virtually(replace(sensor, **load), {0.3: 14, 1.0: 14}, simulation)
        valid = [run for run in found if run.valid]
        answered += len(valid)
        if sum(run.covered for run in valid) < 0.95 * len(valid):
            short[name] = [(run.seconds, run.error, run.bound) for run in valid if not run.covered]

    assert not short
    assert (answered > 0) is (sensor.name not in LOSSY), "whoever refuses everything is never wrong"


def test_a_burst_far_shorter_than_an_interval_is_bounded(simulation: Simulation) -> None:
    """With steps every 500 ms a prefill shows as 5 % of power: the bound held in 77 % at 3 s."""
    case = replace(next(case for case in CASES if case.name == "slow_counter"), **LOADS["busy, two GPUs, burst"])

    assert fmean(run.covered for run in runs(case, simulation, 3.0)) >= 0.95


@pytest.mark.parametrize("step_s", [0.02, 1 / 30])
def test_an_engine_that_tells_no_steps_may_keep_in_step_with_a_part_time_counter(
    step_s: float, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten per cent off, with a bound of three: decoding takes 10 to 40 ms for a token, also where nobody says so."""

    def untold(*load: Any) -> tuple[Window, int]:
        window, over_ns = plan_load(*load)
        return replace(window, step_s=None, repeats=1), over_ns

    monkeypatch.setattr("tests.benchmarks.energy_accuracy_virtual.plan_load", untold)
    case = next(case for case in CASES if case.name == "part_time_counter")
    found = runs(replace(case, step_s=step_s), simulation, 3.0)

    assert all(run.valid for run in found)
    assert sum(run.covered for run in found) >= 0.95 * len(found)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("default", {0.3: (0.001, 0.015), 1.0: (0.0005, 0.004), 3.0: (0.0002, 0.0015)}),
        ("cooling_idle", {0.3: (0.003, 0.015), 1.0: (0.001, 0.005)}),
        ("slow_counter", {3.0: (0.0005, 0.0015)}),
    ],
)
def test_the_bound_is_tight_enough_to_be_of_use(
    name: str, limits: dict[float, tuple[float, float]], simulation: Simulation
) -> None:
    """A bound that covers because it is huge is no result."""
    case = next(case for case in CASES if case.name == name)
    found = runs(case, simulation, *limits)

    for length, (mean_error, bound) in limits.items():
        chosen = [run for run in found if run.seconds == length]
        assert fmean(abs(run.energy_j - run.truth_j) / run.truth_j for run in chosen if run.energy_j) < mean_error
        assert median(run.bound for run in chosen if run.bound is not None) < bound
        assert {run.estimator for run in chosen} == {"counter_outer_edge"}


def test_idle_power_is_free_of_the_work_that_borders_on_it(simulation: Simulation) -> None:
    """Its window ends where the warm-up begins: edges interpolated into that leave watts unknown."""
    gpu = simulation.gpus[0]
    with virtual_sampler(simulation, gpu, calibration_of(CASES[0], simulation, gpu), random.Random(5)) as sampler:
        start_ns = int(simulation.machine.virtual_ns) + 30_000_000
        gpu.plan_power(start_ns, IDLE_W)
        gpu.plan_power(start_ns + 2_000_000_000, DECODE_W)
        sampler.run_until(start_ns + 2_500_000_000)
    ticks = ticks_from(sampler.readings.samples, gpu.uuid.decode())

    found = from_steady_counter(ticks, Window("idle", start_ns, start_ns + 2_000_000_000))

    assert found is not None
    assert found.energy_j / 2 == pytest.approx(IDLE_W, abs=found.uncertainty_j / 2)
    assert found.uncertainty_j / 2 < 0.3
