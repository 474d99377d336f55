from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from pytest_llem.energy import calibration
from pytest_llem.energy.calibrate import calibrate, save
from pytest_llem.errors import MeterError
from tests.simulated_nvml.simulation import Gpu, Simulation
from tests.unit.energy.cycle import BUSY_W, IDLE_W, quicken, uuids


class SteadyLoad:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def burst(self, seconds: float) -> tuple[int, int]:
        start = self._gpu.set_power(BUSY_W)
        time.sleep(seconds)
        return start, self._gpu.set_power(IDLE_W)


@pytest.fixture
def machine(simulation: Simulation, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Simulation:
    """Counters that step five times as often as the idle time is made for, so that less of it has as many steps.

    A busy machine reads them too late: the second try has counters half as fast, the fifth those of an H100.
    """
    quicken(simulation, slower=getattr(request.node, "execution_count", 1))
    monkeypatch.setattr("pytest_llem.energy.calibrate.IDLE_PERIODS", 12)
    return simulation


def run(machine: Simulation) -> calibration.Calibration:
    return calibrate(uuids(machine)[0], lambda: SteadyLoad(machine.gpus[0]), short_bursts=8, long_bursts=6)


def test_the_sensors_properties_are_found_and_kept(machine: Simulation) -> None:
    machine.gpus[0].ramp_ns = 3_000_000

    found = run(machine)

    assert found.period_ns == pytest.approx(machine.gpus[0].period_ns, rel=0.05)
    assert found.counter_type == "accumulating"
    assert found.ramp_ns is not None
    assert found.ramp_uncertainty_ns is not None
    # A busy machine reads steps late, which the jitter shows. k=2 leaves out one run in twenty: twice that none.
    assert found.ramp_uncertainty_ns < max(2_000_000, 3 * found.jitter_ns)
    assert found.ramp_ns == pytest.approx(3_000_000, abs=max(2 * found.ramp_uncertainty_ns, 1_000_000))
    assert found.settle_ns is not None
    assert found.step_w == pytest.approx(BUSY_W - IDLE_W, rel=0.05)
    assert found.conditions is not None
    assert found.conditions["sm_clock_mhz"] == 1980
    assert not found.expired
    assert calibration.load(found.uuid, found.driver) == found


@pytest.mark.parametrize(("fault", "burst"), [("frozen", 1), ("frozen", 6), ("reset", 6)])
def test_a_counter_that_stops_or_jumps_meanwhile_is_not_calibrated(fault: str, burst: int, machine: Simulation) -> None:
    """It ended in a traceback of `statistics`, or in a calibration that said nothing of it."""
    gpu = machine.gpus[0]

    class Breaking(SteadyLoad):
        bursts = 0

        def burst(self, seconds: float) -> tuple[int, int]:
            self.bursts += 1
            done = super().burst(seconds)
            if self.bursts == burst:
                # Within the reads that follow
                threading.Timer(0.1, self.happen).start()
            return done

        def happen(self) -> None:
            if fault == "frozen":
                gpu.frozen_at_ns = time.monotonic_ns()
            else:
                gpu.counter_offset_mj -= 10**6

    with pytest.raises(MeterError, match="the energy counter"):
        calibrate(uuids(machine)[0], lambda: Breaking(gpu), short_bursts=2, long_bursts=1)


def test_a_part_time_counter_is_recognised(machine: Simulation) -> None:
    machine.gpus[0].duty = 0.25

    found = run(machine)

    assert found.counter_type == "part_time"
    assert found.duty == pytest.approx(0.25, abs=0.25)
    assert found.ramp_ns is None


def test_a_counter_that_fast_polling_disturbs_is_polled_gently(machine: Simulation) -> None:
    machine.gpus[0].disturb_below_ns = 1_500_000
    machine.gpus[0].disturb_j = 0.02

    found = calibrate(uuids(machine)[0])

    assert found.fast_polling_error_rel is not None
    assert found.fast_polling_error_rel > 0.05
    assert found.poll_step_ns >= 2_000_000


def test_without_a_load_the_ramp_stays_unknown_and_missed_steps_do_not_lengthen_the_period(
    machine: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_llem.energy.calibrate.IDLE_PERIODS", 30)
    quicken(machine)
    machine.gpus[0].late_ns = 45_000_000
    machine.gpus[0].late_every = 40

    found = calibrate(uuids(machine)[0])

    assert found.period_ns == pytest.approx(20_000_000, rel=0.03)
    assert found.ramp_ns is None
    assert found.counter_type == "unknown"


def test_a_busy_gpu_is_not_calibrated(machine: Simulation) -> None:
    machine.gpus[0].set_pids(4242)

    with pytest.raises(MeterError, match="4242"):
        calibrate(uuids(machine)[0])


def test_a_calibration_of_another_driver_is_not_used(machine: Simulation) -> None:
    save(calibration.Calibration(uuids(machine)[0], "old", 100_000_000, 0, 0, 500_000))

    assert calibration.load(uuids(machine)[0], "new") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("period_ns", "fast"),
        ("period_ns", None),
        ("duty", []),
        ("made_at", "yesterday"),
        ("made_at", "2026-11-29"),
        ("made_at", "9999-12-31T00:00:00+00:00"),
        ("conditions", 1),
        ("counter_type", "sundial"),
        ("unknown", 1),
    ],
)
def test_a_broken_calibration_is_none(tmp_path: Path, field: str, value: object) -> None:
    """A wrong type was a traceback in the middle of a measurement."""
    whole = calibration.Calibration("g", "d", 1, 1, 1, 1, made_at="2026-11-29T00:00:00+00:00")
    path = calibration.path_of("g", "d", tmp_path)
    path.write_text(json.dumps(whole._asdict()))
    assert calibration.load("g", "d", tmp_path) == whole

    path.write_text(json.dumps({**whole._asdict(), field: value}))

    assert calibration.load("g", "d", tmp_path) is None
    assert calibration.foreign("g", "d", tmp_path) is None


def test_a_calibration_that_is_no_file_is_none(tmp_path: Path) -> None:
    os.mkfifo(calibration.path_of("g", "d", tmp_path))
    assert calibration.load("g", "d", tmp_path) is None

    calibration.path_of("g", "e", tmp_path).write_text("[" * 100_000)
    assert calibration.load("g", "e", tmp_path) is None
