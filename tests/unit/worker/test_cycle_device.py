"""Real cycles on a simulated GPU whose clock and limit were set, with a load that follows them: what results say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pynvml
import pytest

from pytest_llem.job.config import DeviceSettings, IdleSettings, MeasurementSettings, WarmupSettings
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.results.attempts import write_power
from pytest_llem.results.derive import derive_result
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.device import derive_device
from tests.simulated_nvml.loads import work
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Gpu, Simulation
from tests.unit.energy.cycle import uuids
from tests.unit.results.conftest import REPORT
from tests.unit.worker.scripted import make_job, run
from tests.unit.worker.test_cycle_padding import GpuEngine, engine

__all__ = ["engine", "make_simulation", "simulated_nvml_library", "simulation"]


@pytest.fixture
def gpu(simulation: Simulation, engine: GpuEngine) -> Gpu:
    """Its load is as fast as its clock, and draws what V^2 f says."""
    board: Gpu = simulation.gpus[0]
    board.offer_profiles(pynvml.NVML_POWER_PROFILE_MAX_Q)
    board.requested_profiles[0] = 1 << pynvml.NVML_POWER_PROFILE_MAX_Q
    engine.on_generate = lambda: work(board, 0.05)
    return board


def measured(simulation: Simulation, path: Path, **asked: int | str) -> Result:
    """One cycle of a second of load."""
    settings = MeasurementSettings(1.2, WarmupSettings(1, 1), IdleSettings(0.0, 0.0))
    job = dataclasses.replace(
        make_job(measurement=settings, device=DeviceSettings(**asked)),  # type: ignore[arg-type]
        devices=DeviceSet("cuda", uuids(simulation)),
        meter=MeterSettings("nvml"),
    )
    measurement = run(job, path)
    device = derive_device(job, measurement, path / "samples.jsonl")
    return derive_result(job, measurement, REPORT, study="study", environment={}, device=device)


def lock(mhz: int) -> None:
    pynvml.nvmlInit()
    pynvml.nvmlDeviceSetGpuLockedClocks(pynvml.nvmlDeviceGetHandleByIndex(0), mhz, mhz)
    pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0), 500_000)
    pynvml.nvmlShutdown()


def test_what_holds_is_read_in_the_measure_window(simulation: Simulation, gpu: Gpu, tmp_path: Path) -> None:
    lock(1110)

    result = measured(simulation, tmp_path, sm_clock_mhz=1110, power_limit_w=500, power_profile="max_q")

    assert [reason.code for reason in result.validity.reasons] == []
    (board,) = result.device.gpus
    assert {setting.name: setting.held for setting in board.settings} == {
        "power_limit_w": True,
        "sm_clock_mhz": True,
        "power_profile": True,
    }
    assert (board.power_limits_w, board.sm_clock_mhz, board.memory_clock_mhz) == ((500.0,), 1110.0, 2619.0)
    assert board.power_profiles == ("max_q",)
    write_power(tmp_path / "samples.jsonl", tmp_path / "power.parquet")
    columns = pq.read_table(tmp_path / "power.parquet", columns=["power_limit_w", "memory_clock_mhz", "clock_events"])
    assert set(columns["power_limit_w"].drop_null().to_pylist()) == {500.0}
    assert set(columns["memory_clock_mhz"].drop_null().to_pylist()) == {2619.0}


def test_heat_that_takes_the_clock_down_makes_the_cycle_invalid(
    simulation: Simulation, gpu: Gpu, tmp_path: Path
) -> None:
    lock(1110)
    gpu.slowed_to_mhz = 900

    result = measured(simulation, tmp_path, sm_clock_mhz=1110, power_limit_w=500)

    (reason,) = result.validity.reasons
    assert reason.code == "clock_not_held"
    assert "1110 asked, 900 in the median" in reason.message
    assert "sw_thermal_slowdown" in reason.message
