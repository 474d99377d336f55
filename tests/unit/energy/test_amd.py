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

from pytest_llem.energy.gpu_meter import AmdSmiMeter
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import ticks_from
from pytest_llem.energy.validity import DeviceEvidence, Evidence, check
from pytest_llem.job.config import Thresholds
from pytest_llem.job.measurement import Window
from tests.simulated_nvml import amd

needs_amdsmi = pytest.mark.skipif(find_spec("amdsmi") is None, reason="amdsmi is not installed")

CYCLE = """
import json, os, sys, time
from pathlib import Path
from pytest_llem.energy import registry
from pytest_llem.job.measurement import Window
from pytest_llem.job.job import DeviceSet, MeterSettings
meter = registry.open_meter(MeterSettings("amdsmi", explicit=True), DeviceSet("cpu"), Path(sys.argv[1]))
if sys.argv[2:]:
    os.environ["LLEM_AMD_PID"] = str(os.getpid())
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
    "invalid": [note.code for note in report.invalid], "temperature_c": list(report.facts["temperature_c"].values()),
}))
"""


def cycle(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    amd.build_amd_library(tmp_path / "rocm")
    environment = {**os.environ, "ROCM_PATH": str(tmp_path / "rocm"), "ROCM_HOME": str(tmp_path / "rocm")}
    done = subprocess.run(
        [sys.executable, "-c", CYCLE, str(tmp_path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs_amdsmi
def test_a_gpu_without_a_process_of_the_cycle_is_not_its_own(tmp_path: Path) -> None:
    found = cycle(tmp_path)

    assert found["invalid"] == ["meter_not_on_device"]
    assert found["power_w"] == 0


@needs_amdsmi
def test_energy_is_the_accumulator_times_its_resolution(tmp_path: Path) -> None:
    found = cycle(tmp_path, "on the GPU")

    assert found["meter"] == "amdsmi"
    assert found["devices"] == [amd.UUID]
    assert found["power_w"] == pytest.approx(amd.POWER_W, abs=found["bound_w"])
    assert found["bound_w"] < 0.1 * amd.POWER_W
    assert not found["invalid"]
    assert "not_verified" in found["notes"]
    assert found["notes"]["uncalibrated"].endswith("GPUs of its kind cannot be")
    assert found["temperature_c"] == [51.0]


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
    obstacle = AmdSmiMeter.obstacle()

    assert obstacle is not None
    assert obstacle.fix is not None
    assert ("amd-smi-lib" if find_spec("amdsmi") else "pytest-llem[amd]") in obstacle.fix
