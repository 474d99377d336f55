"""The meter of AMD GPUs, through the real `amdsmi` package on a simulated library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import ticks_from
from pytest_llem.energy.validity import DeviceEvidence, Evidence, check
from pytest_llem.job.config import Thresholds
from pytest_llem.job.measurement import Window
from tests.simulated_nvml import amd
from tests.timed import on_a_clock

needs_amdsmi = pytest.mark.skipif(find_spec("amdsmi") is None, reason="amdsmi is not installed")

CYCLE = """
import json, os, sys, time
from pathlib import Path
from pytest_llem.energy import registry
from pytest_llem.job.measurement import Window
from pytest_llem.job.job import DeviceSet, MeterSettings
leased, runs_on = json.loads(sys.argv[2]), json.loads(sys.argv[3])
devices = DeviceSet("rocm", tuple(leased)) if leased else DeviceSet("cpu")
settings = MeterSettings("auto" if leased else "amdsmi", explicit=not leased)
meter = registry.open_meter(settings, devices, Path(sys.argv[1]))
for gpu in runs_on:
    Path(os.environ["LLEM_AMD_PROCESSES"], f"{gpu}-{os.getpid()}").write_text("0")
meter.start()
time.sleep(0.3)
start = meter.mark()
time.sleep(1.0)
end = meter.mark()
time.sleep(0.2)
report = meter.stop([Window("measure", start, end)])
window = report.windows[0]
print(json.dumps({
    "meter": report.meter, "devices": [device.id for device in report.devices],
    "power_w": (window.energy_j or 0) / (end - start) * 1e9,
    "bound_w": (window.uncertainty_j or 0) / (end - start) * 1e9,
    "estimator": window.estimator, "notes": {note.code: note.message for note in report.notes},
    "invalid": [note.code for note in report.invalid], "reasons": [note.message for note in report.invalid],
    "temperature_c": list(report.facts["temperature_c"].values()),
}))
"""


def cycle(tmp_path: Path, *, gpus: int = 1, leased: tuple[str, ...] = (), runs_on: tuple[int, ...] = ()) -> Any:
    if not (tmp_path / "rocm").exists():  # another try has the same folder
        amd.build_amd_library(tmp_path / "rocm")
    (tmp_path / "processes").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", CYCLE, str(tmp_path), json.dumps(leased), json.dumps(runs_on)],
        env={**os.environ, **amd.environment(tmp_path / "rocm", gpus, tmp_path / "processes")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@on_a_clock
@needs_amdsmi
def test_a_gpu_without_a_process_of_the_cycle_is_not_its_own(tmp_path: Path) -> None:
    found = cycle(tmp_path)

    assert found["invalid"] == ["meter_not_on_device"]
    assert found["power_w"] == 0


@on_a_clock
@needs_amdsmi
def test_energy_is_the_accumulator_times_its_resolution(tmp_path: Path) -> None:
    found = cycle(tmp_path, runs_on=(0,))

    assert found["meter"] == "amdsmi"
    assert found["devices"] == [amd.UUID]
    assert found["power_w"] == pytest.approx(amd.POWER_W, abs=found["bound_w"])
    assert found["bound_w"] < 0.1 * amd.POWER_W
    assert not found["invalid"]
    assert "not_verified" in found["notes"]
    assert found["notes"]["uncalibrated"].endswith("GPUs of its kind cannot be")
    assert found["temperature_c"] == [51.0]


@on_a_clock
@needs_amdsmi
def test_two_of_four_leased_gpus_are_the_cycles_and_no_other_draws_for_it(tmp_path: Path) -> None:
    """amdsmi lists GPUs in another order than HIP: by its order the energy would be that of the other two."""
    found = cycle(tmp_path, gpus=4, leased=(amd.uuid(1), amd.uuid(3)), runs_on=(1, 3))

    assert found["meter"] == "amdsmi"
    assert found["devices"] == [amd.uuid(1), amd.uuid(3)]
    assert found["power_w"] == pytest.approx(2 * amd.POWER_W + 4 * amd.STEP_W, abs=found["bound_w"])
    assert not found["invalid"]


@on_a_clock
@needs_amdsmi
def test_a_cycle_that_the_driver_shows_on_a_gpu_that_it_did_not_lease_is_invalid(tmp_path: Path) -> None:
    """Had HIP numbered its GPUs otherwise than amdsmi says, part of the energy would be that of another board."""
    found = cycle(tmp_path, gpus=4, leased=(amd.uuid(1),), runs_on=(1, 2))

    assert found["invalid"] == ["meter_not_on_device"]
    assert found["reasons"] == [f"the cycle ran on {amd.uuid(2)}, which it did not lease"]


def test_an_accumulator_that_stands_still_or_jumps_is_a_reason_against_its_energy() -> None:
    """It is read at a fixed distance: without power readings, a board that stood still had drawn nothing."""

    def reasons(*millijoules: float) -> set[str]:
        readings = tuple(
            Sample(i * 20_000_000, amd.UUID, None, mj, bracket_ns=500_000) for i, mj in enumerate(millijoules)
        )
        board = DeviceEvidence(amd.UUID, ticks_from(readings, amd.UUID), readings, (), None)
        window = Window("measure", 200_000_000, 1_200_000_000)
        return {note.code for note in check(Evidence((window,), (board,), (), "worker"), (), Thresholds())}

    steady = [6000.0 * i for i in range(100)]

    assert not reasons(*steady)
    assert reasons(*steady[:30], *[steady[30]] * 70) == {"sensor_gap"}
    assert reasons(*steady[:30], *[mj - 180_000 for mj in steady[30:]]) == {"counter_reset"}
    assert reasons(*steady[:30], *[mj + 1e9 for mj in steady[30:]]) == {"counter_reset"}


def test_without_the_package_or_its_library_the_remedy_is_named() -> None:
    """In a process of its own, as the package keeps a library that it has loaded."""
    code = "from pytest_llem.energy.gpu_meter import AmdSmiMeter; print(AmdSmiMeter.obstacle().fix)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ("amd-smi-lib" if find_spec("amdsmi") else "pytest-llem[amd]") in done.stdout, done.stderr
