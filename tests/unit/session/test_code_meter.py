"""`llem_meter` on simulated GPUs whose counters step as an H100's do."""

from __future__ import annotations

import time

import pytest

from pytest_llem.errors import MeterError
from pytest_llem.session.code_meter import CodeMeter, measure_code
from tests.simulated_nvml.plugin import MakeSimulation, make_simulation, simulated_nvml_library
from tests.simulated_nvml.simulation import Gpu

__all__ = ["make_simulation", "simulated_nvml_library"]


def block(seconds: float) -> CodeMeter:
    with measure_code("nvml") as meter:
        time.sleep(seconds)
    return meter


def test_a_block_is_measured_from_its_first_moment(make_simulation: MakeSimulation) -> None:
    """Its start was marked before the counter had stepped once: 35 of 36 blocks of a second had no energy."""
    gpu = make_simulation(1).gpus[0]
    gpu.set_power(400.0)

    for _ in range(3):
        meter = block(1.0)

        assert meter.energy_j == pytest.approx(400 * 1.0, rel=0.2)
        assert not meter.invalid, meter.invalid


def test_memory_that_the_test_itself_holds_is_no_reason_against_its_energy(make_simulation: MakeSimulation) -> None:
    make_simulation(1).gpus[0].memory_used = 20 * 2**30

    assert not block(0.5).invalid


def freeze(gpu: Gpu) -> None:
    gpu.frozen_at_ns = time.monotonic_ns() - 10**9


def test_a_sensor_that_stands_still_gives_no_number_and_says_so(make_simulation: MakeSimulation) -> None:
    freeze(make_simulation(1).gpus[0])

    meter = block(0.1)

    assert meter.energy_j is None
    assert "sensor_gap" in {note.code for note in meter.invalid}


def test_the_cpu_of_a_machine_with_gpus_is_metered_where_the_run_is_for_it(make_simulation: MakeSimulation) -> None:
    """The joules of GPUs on which nothing computed were those of the block."""
    make_simulation(1)

    with measure_code("auto", "cpu") as meter:
        sum(range(3_000_000))
    assert meter.meter in ("rapl", "estimate")

    with pytest.raises(MeterError, match="cannot be combined with the meter nvml"), measure_code("nvml", "cpu"):
        pass
