"""Real cycles on a simulated GPU: warm-up until it has settled, idle power of a hot die, and what results say."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

import pytest

from pytest_llem.energy.thermal import thermal_reading
from pytest_llem.job.config import IdleSettings, MeasurementSettings, WarmupSettings
from pytest_llem.job.job import DeviceSet, Job, MeterSettings
from pytest_llem.job.measurement import Measurement
from pytest_llem.results.derive import derive_result
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.thermal import derive_thermal
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Simulation
from tests.timed import on_a_clock
from tests.unit.energy.cycle import IDLE_W, uuids
from tests.unit.results.conftest import REPORT
from tests.unit.worker.scripted import make_job, run
from tests.unit.worker.test_cycle_padding import GpuEngine, engine

__all__ = ["engine", "make_simulation", "simulated_nvml_library", "simulation"]

SETTLES_AFTER_S = 1.0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A die of seconds, not minutes: the sampler reads its temperature twice a second."""
    for name, seconds in {
        "RANGE_S": 1.5,
        "HOLD_S": 0.5,
        "GROUP_S": 0.55,
        "SLOWEST_S": 0.3,
        "WATCH_PERIOD_S": 0.1,
    }.items():
        monkeypatch.setattr(f"pytest_llem.energy.thermal.{name}", seconds)
    # The warm-up goes on for longer, so that one repeat that was woken late changes nothing afterwards.
    monkeypatch.setattr("pytest_llem.energy.thermal.WARM_UP_REL", 0.001)
    # Repeats of 50 ms: one that is woken 5 ms late took a tenth more, and says nothing of the die.
    monkeypatch.setattr(thermal_reading, "__kwdefaults__", {"limit_rel": 0.2})


def gpu_job(
    simulation: Simulation,
    thermal: Literal["settled", "repeatable"] = "settled",
    placement: Literal["host", "worker"] = "worker",
    max_s: float = 20.0,
    idle_s: float = 0.0,
) -> Job:
    warmup = WarmupSettings(1, 1, thermal=thermal, thermal_max_s=max_s)
    settings = MeasurementSettings(0.3, warmup, IdleSettings(idle_s, 5.0))
    return dataclasses.replace(
        make_job(measurement=settings),
        devices=DeviceSet("cuda", uuids(simulation)),
        meter=MeterSettings("nvml", placement=placement),
    )


def result_of(job: Job, measurement: Measurement, path: Path) -> Result:
    thermal = derive_thermal(job, measurement, path / "samples.jsonl")
    return derive_result(job, measurement, REPORT, study="study", environment={}, thermal=thermal)


def codes(notes: object) -> list[str]:
    assert isinstance(notes, tuple)
    return [note.code for note in notes if note.code == "not_thermally_settled"]


def warming(engine: GpuEngine) -> None:
    """Let the GPU gain 10 degrees a second under load, and then keep its temperature."""
    started: list[float] = []
    work = engine.work

    def work_and_warm() -> None:
        started.append(time.monotonic())
        engine.gpu.temperature_c = 40 + round(10 * min(SETTLES_AFTER_S, started[-1] - started[0]))
        work()

    engine.on_generate = work_and_warm


@on_a_clock
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("placement", ["worker", "host"])
def test_a_settled_warm_up_goes_on_until_the_temperature_stays(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path, placement: Literal["host", "worker"]
) -> None:
    """Also where the meter is on the host of the container, and the worker must look for itself."""
    warming(engine)
    job = gpu_job(simulation, placement=placement)
    measurement = run(job, tmp_path)
    assert measurement.warmup.reason == "fixed"
    assert measurement.warmup.duration_s >= SETTLES_AFTER_S + 1.5
    assert len(measurement.warmup_repeats) == measurement.warmup.repeats > 10
    if placement == "worker":
        result = result_of(job, measurement, tmp_path)
        assert (result.thermal.mode, result.thermal.state, result.thermal.temperature_c) == ("settled", "settled", 50.0)
        assert (codes(result.validity.reasons), codes(result.warnings)) == ([], [])


@pytest.mark.usefixtures("hasty")
def test_a_gpu_that_does_not_settle_in_time_gives_no_settled_result(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path
) -> None:
    warming(engine)
    job = gpu_job(simulation, max_s=0.4)
    measurement = run(job, tmp_path)
    assert (measurement.warmup.reason, measurement.warmup.converged) == ("thermal_max_s", False)
    result = result_of(job, measurement, tmp_path)
    assert (result.status, result.thermal.state) == ("invalid", "unsettled")
    assert (codes(result.validity.reasons), codes(result.warnings)) == (["not_thermally_settled"], [])


def test_a_figure_from_an_unsettled_die_is_valid_and_says_so(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path
) -> None:
    job = gpu_job(simulation, "repeatable")
    measurement = run(job, tmp_path)
    assert measurement.warmup.repeats == 1
    result = result_of(job, measurement, tmp_path)
    assert (result.thermal.state, result.thermal.distance_c) == ("unsettled", None)
    assert result.thermal.uncertainty_rel is not None
    assert result.thermal.uncertainty_rel > 0
    assert (codes(result.validity.reasons), codes(result.warnings)) == ([], ["not_thermally_settled"])


def test_idle_power_is_measured_while_the_die_is_hot(simulation: Simulation, engine: GpuEngine, tmp_path: Path) -> None:
    """Leakage follows the die: idle power before the load is that of a cold one."""
    work = engine.work

    def work_and_leak() -> None:
        work()
        engine.gpu.set_power(IDLE_W + 20.0)

    engine.on_generate = work_and_leak
    job = gpu_job(simulation, "repeatable", idle_s=0.5)
    result = result_of(job, run(job, tmp_path), tmp_path)
    assert result.thermal.hot_idle_power_w == pytest.approx(IDLE_W + 20.0, rel=0.02)
    assert result.energy.idle_power_w == pytest.approx(IDLE_W, rel=0.02)
    assert result.thermal.hot_idle_power_uncertainty_w is not None


def test_a_cpu_has_no_thermal_state_and_no_warning(engine: GpuEngine, simulation: Simulation, tmp_path: Path) -> None:
    job = dataclasses.replace(
        gpu_job(simulation, "repeatable"), devices=DeviceSet("cpu"), meter=MeterSettings("estimate")
    )
    measurement = run(job, tmp_path)
    assert "hot_idle" not in {window.name for window in measurement.windows}
    result = result_of(job, measurement, tmp_path)
    assert (result.thermal.state, result.thermal.uncertainty_rel) == ("unknown", None)
    assert codes(result.warnings) == []
