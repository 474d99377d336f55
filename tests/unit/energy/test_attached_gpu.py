"""`llem attach` on a GPU whose true energy is known: the simulated one, read by the real sampler process."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE
from pytest_llem.results.reading import load
from tests.simulated_nvml.simulation import Simulation
from tests.timed import on_a_clock
from tests.unit.energy.cycle import BUSY_W, IDLE_W, calibrate, quicken

STOP = """
import os, sys, time
open(sys.argv[1], "w")
while os.path.exists(sys.argv[1]): time.sleep(0.01)
time.sleep(0.3)
"""


@on_a_clock
def test_a_commands_energy_is_that_of_its_gpu_with_idle_power_from_before(
    simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle power of a command was that of the time while it ran, and energy above idle nothing."""
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "leases"))
    quicken(simulation)
    calibrate(simulation)
    flag, (gpu,) = tmp_path / "running", simulation.gpus

    def work() -> None:
        while not flag.exists():
            time.sleep(0.005)
        gpu.set_power(BUSY_W)
        time.sleep(0.5)
        gpu.set_power(IDLE_W)
        flag.unlink()

    worker = threading.Thread(target=work)
    worker.start()
    out = tmp_path / "runs"
    try:
        assert main(["attach", "-o", str(out), "--idle-s", "0.5", "--", sys.executable, "-c", STOP, str(flag)]) == 0
    finally:
        worker.join()
    (result,) = load(out)
    energy = result.energy
    window = next(window for window in energy.windows if window.name == "measure")
    truth_j = gpu.energy_between_j(window.start_ns, window.end_ns)
    assert (energy.meter, energy.measured, result.runner.device_kind) == ("nvml", True, "cuda")
    assert energy.energy_j == pytest.approx(truth_j, abs=2 * (energy.uncertainty_j or 0.0))
    assert energy.idle_power_w == pytest.approx(IDLE_W, rel=0.05)
    above = energy.energy_above_idle_j
    assert above == pytest.approx((BUSY_W - IDLE_W) * 0.5, rel=0.3)
    assert not result.validity.reasons
    assert "idle_before_command" in {note.code for note in result.warnings}
    assert result.device.gpus[0].id == gpu.uuid.decode()


@on_a_clock
def test_a_command_under_two_power_limits_has_the_joules_of_neither(
    simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was valid, and compared with commands under the lower limit."""
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "leases"))
    flag, (gpu,) = tmp_path / "running", simulation.gpus

    def lower() -> None:
        while not flag.exists():
            time.sleep(0.005)
        time.sleep(1.2)  # the limit is read each half second
        gpu.power_limit_mw = 300_000
        time.sleep(1.2)
        flag.unlink()

    lowering = threading.Thread(target=lower)
    lowering.start()
    out = tmp_path / "runs"
    try:
        main(["attach", "-o", str(out), "--idle-s", "0.5", "--", sys.executable, "-c", STOP, str(flag)])
    finally:
        lowering.join()
    (result,) = load(out)
    assert "power_limit_changed" in {reason.code for reason in result.validity.reasons}
    assert {700.0, 300.0} <= set(result.device.gpus[0].power_limits_w)
