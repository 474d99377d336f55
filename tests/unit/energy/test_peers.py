"""Zeus and CodeCarbon as meters, in an interpreter that has them: this one, or `LLEM_PEERS_PYTHON`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pytest_llem
from pytest_llem.energy import registry
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings
from tests.simulated_nvml.plugin import MakeSimulation
from tests.unit.energy.cycle import uuids

PYTHON = os.environ.get("LLEM_PEERS_PYTHON", sys.executable)
CYCLE = """
import json, sys, time
from pathlib import Path
from pytest_llem.energy import checked, registry
from pytest_llem.job.wire import encode
from pytest_llem.job.measurement import Window
from pytest_llem.job.job import DeviceSet, MeterSettings
name, out, uuid = sys.argv[1:]
meter = registry.open_meter(MeterSettings(name, explicit=True), DeviceSet("cuda", (uuid,)), Path(out))
meter.start()
start = checked.edge(meter)
time.sleep(0.5)
middle = checked.edge(meter)
time.sleep(0.3)
end = checked.edge(meter)
windows = [Window("measure", start, end), Window("prefill", start, middle), Window("odd", start, end - 1)]
report = checked.account(meter, windows)
print(json.dumps(encode(report)))
"""


def measured(name: str, tmp_path: Path, uuid: str) -> Any:
    """The report of `CYCLE`, run by the interpreter that has the package; skips without one."""
    if not has(name):
        pytest.skip(f"{name} is not installed (LLEM_PEERS_PYTHON may name an interpreter that has it)")
    done = subprocess.run(
        [PYTHON, "-c", CYCLE, name, str(tmp_path), uuid],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(pytest_llem.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def has(package: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["zeus", "codecarbon"])
def test_a_peer_measures_the_leased_gpu_as_it_always_does(
    make_simulation: MakeSimulation, tmp_path: Path, name: str
) -> None:
    """And not the other one, which works as well."""
    simulation = make_simulation(2)
    simulation.gpus[0].set_power(500.0)

    report = measured(name, tmp_path, uuids(simulation)[1])

    measure, prefill, odd = report["windows"]
    assert measure["energy_j"] == pytest.approx(0.8 * 110, rel=0.35)
    assert prefill["energy_j"] < measure["energy_j"]
    assert odd["energy_j"] is None
    assert "cross_check" in [note["code"] for note in report["notes"]]
    assert not report["invalid"]


@pytest.mark.parametrize("name", ["zeus", "codecarbon"])
def test_a_peers_counter_that_stands_still_is_no_energy(
    make_simulation: MakeSimulation, tmp_path: Path, name: str
) -> None:
    simulation = make_simulation(1)
    simulation.gpus[0].frozen_at_ns = time.monotonic_ns()

    report = measured(name, tmp_path, *uuids(simulation))

    assert report["windows"][0]["energy_j"] is None
    assert "sensor_gap" in [note["code"] for note in report["invalid"]]


@pytest.mark.parametrize("name", ["zeus", "codecarbon"])
def test_a_peer_that_is_not_installed_is_an_error_with_the_command(tmp_path: Path, name: str) -> None:
    if registry.obstacles()[name] is None:
        pytest.skip(f"{name} is installed here")

    with pytest.raises(MeterError) as caught:
        registry.open_meter(MeterSettings(name, explicit=True), DeviceSet("cpu"), tmp_path)

    assert caught.value.fix == f"pip install 'pytest-llem[{name}]'"
