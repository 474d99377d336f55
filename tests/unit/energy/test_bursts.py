"""What calibration can tell from a counter's steps alone, and what it cannot, on a virtual clock."""

from __future__ import annotations

import random

import pytest

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.window_edges import lag_of
from tests.benchmarks.energy_accuracy_cases import CALIBRATION_W, IDLE_W
from tests.simulated_nvml.simulation import Simulation
from tests.simulated_nvml.virtual import calibrate_virtually

MS = 1_000_000


def found(simulation: Simulation, held_w: float = 0.0, **settings: float) -> Calibration:
    gpu = simulation.gpus[0]
    gpu.ramp_ns = 0
    for name, value in settings.items():
        setattr(gpu, name, type(getattr(gpu, name))(value))

    def load(start_ns: int, end_ns: int) -> None:
        gpu.plan_power(start_ns, CALIBRATION_W)
        gpu.plan_power(end_ns, IDLE_W + held_w)
        if held_w:
            gpu.plan_power(end_ns + 50 * MS, IDLE_W)

    return calibrate_virtually(simulation, gpu, load, random.Random(3))


@pytest.mark.parametrize("cause", ["delay_ns", "filter_ns", "ramp_ns"])
def test_a_late_sensor_cannot_be_told_from_a_slow_board(simulation: Simulation, cause: str) -> None:
    """A true ramp of 20 ms was the only reading of this: 20 ms were taken off every window."""
    calibration = found(simulation, **{cause: 20 * MS})

    assert calibration.counter_type == "accumulating"
    assert calibration.ramp_ns == pytest.approx(20 * MS, abs=MS)
    assert calibration.rise_ns == pytest.approx(20 * MS, abs=MS)
    assert calibration.ramp_uncertainty_ns is not None
    assert calibration.ramp_uncertainty_ns < MS


def test_the_difference_of_fall_and_rise_can_be_told_and_when_idle_power_shows(simulation: Simulation) -> None:
    falls = found(simulation, fall_ns=20 * MS)
    late = found(simulation, fall_ns=0, delay_ns=100 * MS)
    held = found(simulation, delay_ns=0, held_w=150.0)

    assert (falls.rise_ns or 0) < MS
    assert falls.ramp_ns == pytest.approx(20 * MS, abs=MS)
    assert late.settle_ns == pytest.approx(100 * MS, abs=8 * MS)
    assert held.settle_ns == pytest.approx(50 * MS, abs=8 * MS)
    assert held.ramp_ns == pytest.approx(150 * 50 * MS / (CALIBRATION_W - IDLE_W), abs=MS)
    assert lag_of(held).step_w == pytest.approx(CALIBRATION_W - IDLE_W, rel=0.01)


@pytest.mark.parametrize("settings", [{"blind_ns": 60 * MS}, {"lost_share": 0.03}, {"lost_share": 0.1}])
def test_a_counter_that_loses_energy_is_recognised(simulation: Simulation, settings: dict[str, float]) -> None:
    assert found(simulation, **settings).counter_type == "lossy"


@pytest.mark.parametrize("settings", [{"late_ns": 7 * MS, "late_every": 5}, {"jitter_ns": 6 * MS}, {"period_ns": 20e6}])
def test_awkward_readings_are_no_loss(simulation: Simulation, settings: dict[str, float]) -> None:
    assert found(simulation, **settings).counter_type == "accumulating"
