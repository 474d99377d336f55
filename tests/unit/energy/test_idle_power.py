"""Idle power of an earlier cycle: taken where the GPU's conditions match, and stated as what it is."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from pytest_llem.energy.idle_power import MAX_AGE_S, usable
from pytest_llem.energy.protocol import Conditions
from pytest_llem.job.config import IdleSettings, MeasurementSettings, WarmupSettings
from pytest_llem.job.job import DeviceSet, IdleReference, Job, JobDir, MeterSettings
from pytest_llem.job.measurement import Measurement, write_measurement
from pytest_llem.results.energy_schema import Energy
from pytest_llem.results.sections.energy import Work, derive_energy
from pytest_llem.runners import measure_here
from tests.simulated_nvml.simulation import Simulation
from tests.unit.energy.cycle import IDLE_W, uuids
from tests.unit.worker.scripted import RecordingMeter, make_job, run
from tests.unit.worker.test_cycle_padding import GpuEngine, engine

__all__ = ["engine"]

RUNNER = "local:"


def one_cycle(simulation: Simulation, run_dir: Path, name: str, reuse: str = "matching") -> Measurement:
    settings = MeasurementSettings(0.1, WarmupSettings(1, 1), IdleSettings(0.5, 5.0, reuse))  # type: ignore[arg-type]
    job = dataclasses.replace(
        make_job(measurement=settings), devices=DeviceSet("cuda", uuids(simulation)), meter=MeterSettings("auto")
    )
    job_dir = JobDir(run_dir / name)
    job_dir.path.mkdir()
    job = measure_here.load_idle_power(job, run_dir, RUNNER)
    measurement = run(job, job_dir.path)
    write_measurement(job_dir.measurement, measurement)
    measure_here.store_idle_power(job, job_dir, run_dir, RUNNER)
    return measurement


def energy_of(measurement: Measurement) -> Energy:
    return derive_energy(measurement.energy, Work(0.1, 1, 1, 1, 1, separable_phases=False))


def windows_of(measurement: Measurement) -> set[str]:
    return {window.name for window in measurement.windows}


def test_a_cycle_takes_an_earlier_ones_idle_power_until_the_gpu_is_warmer(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path
) -> None:
    first = one_cycle(simulation, tmp_path, "first")
    second = one_cycle(simulation, tmp_path, "second")
    simulation.gpus[0].temperature_c += 6
    third = one_cycle(simulation, tmp_path, "third")

    assert ["idle" in windows_of(cycle) for cycle in (first, second, third)] == [True, False, True]
    measured, reused = energy_of(first), energy_of(second)
    assert measured.idle_power_reused_from is None
    assert measured.idle_power_age_s is not None
    assert reused.idle_power_w == measured.idle_power_w == pytest.approx(IDLE_W, rel=0.05)
    assert reused.idle_power_uncertainty_w is not None
    assert measured.idle_power_uncertainty_w is not None
    assert reused.idle_power_uncertainty_w > measured.idle_power_uncertainty_w
    assert reused.idle_power_reused_from is not None
    assert "cycle 1" in reused.idle_power_reused_from
    assert reused.idle_power_age_s is not None
    assert reused.idle_power_age_s > measured.idle_power_age_s
    assert reused.energy_above_idle_j is not None


def test_by_default_every_cycle_measures_its_own_and_lends_nothing(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path
) -> None:
    job = make_job()

    assert job.config.measurement.idle.reuse == "never"
    assert measure_here.load_idle_power(job, tmp_path, RUNNER) is job
    one_cycle(simulation, tmp_path, "only", "never")
    assert not (tmp_path / ".idle-power").exists()


REFERENCE = IdleReference(110.0, 0.5, 40.0, 1980.0, "580.1", time.time(), "study/a cycle 1, attempt 1")
NOW = Conditions(110.0, 40.0, 1980.0, "580.1")


class Conditioned(RecordingMeter):
    def __init__(self, now: Conditions | None) -> None:
        super().__init__()
        self._now = now

    def conditions(self) -> Conditions | None:
        return self._now


@pytest.mark.parametrize(
    ("age_s", "now", "holds"),
    [
        (0, NOW, True),
        (0, dataclasses.replace(NOW, temperature_c=42.9, power_w=113.0, sm_clock_mhz=1950.0), True),
        (0, dataclasses.replace(NOW, temperature_c=43.5), False),
        (0, dataclasses.replace(NOW, sm_clock_mhz=1900.0), False),
        (0, dataclasses.replace(NOW, power_w=114.0), False),
        (0, dataclasses.replace(NOW, driver="581.0"), False),
        (MAX_AGE_S + 60, NOW, False),
        (-60, NOW, False),
        (0, None, False),
    ],
)
def test_a_reference_holds_within_stated_bounds_only(age_s: float, now: Conditions | None, holds: bool) -> None:
    """The age counts from now: the tests before this one may have taken longer than it."""
    reference = dataclasses.replace(REFERENCE, measured_at=time.time() - age_s)

    assert (usable(reference, Conditioned(now)) is not None) is holds


@pytest.mark.parametrize(("power_w", "uncertainty_w"), [(110.0, 0.81), (113.0, 3.5)])
def test_what_present_power_differs_by_is_in_the_uncertainty(power_w: float, uncertainty_w: float) -> None:
    found = usable(REFERENCE, Conditioned(dataclasses.replace(NOW, power_w=power_w)))

    assert found is not None
    assert found.uncertainty_w == pytest.approx(uncertainty_w, rel=0.02)
    assert usable(REFERENCE, RecordingMeter()) is None


@pytest.mark.parametrize(
    ("change", "shared"),
    [({"workload": None}, True), ({"dtype": "bfloat16"}, False), ({"settings": {"batch_size": 8}}, False)],
)
def test_a_reference_is_shared_by_what_loads_alike(tmp_path: Path, change: dict[str, object], shared: bool) -> None:
    from pytest_llem.job.files import write_json
    from pytest_llem.job.wire import encode

    settings = MeasurementSettings(0.1, idle=IdleSettings(reuse="matching"))
    job = dataclasses.replace(make_job(measurement=settings), devices=DeviceSet("cuda", ("GPU-1",)))
    record = measure_here._idle_power_entry(job, tmp_path, RUNNER)
    record.parent.mkdir()
    write_json(record, encode(REFERENCE))
    if "workload" in change:
        change = {"workload": dataclasses.replace(job.config.workload, prompts=job.config.workload.prompts + 1)}
    other: Job = dataclasses.replace(job, config=dataclasses.replace(job.config, **change))  # type: ignore[arg-type]

    loaded = measure_here.load_idle_power(other, tmp_path, RUNNER)

    assert (loaded.idle_reference == REFERENCE) is shared
