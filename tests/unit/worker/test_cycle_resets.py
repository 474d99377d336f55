"""Emptying caches between repeats is no part of what is measured: not of its time, and not of its energy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from pytest_llem.energy.protocol import EnergyEstimate, Meter, window_energy
from pytest_llem.engines.protocol import CacheState, Completion, Progress, Request
from pytest_llem.job.config import IdleSettings, MeasurementSettings, Phase, WarmupSettings
from pytest_llem.job.job import MeterSettings
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Window
from pytest_llem.job.report import RunReport
from pytest_llem.results.derive import derive_result
from pytest_llem.results.schema import Result
from tests.unit.worker.scripted import ScriptedEngine, make_job, run

LOAD_W, IDLE_W = 400.0, 100.0
REPEAT_S, RESET_S = 0.06, 0.04


class SlowResets(ScriptedEngine):
    """Computes for 60 ms, and takes 40 ms to empty its cache, as a server that is asked over HTTP does."""

    reset_w = IDLE_W

    def __init__(self) -> None:
        super().__init__()
        self.powers: list[tuple[int, int, float]] = []

    def _spend(self, seconds: float, power_w: float) -> None:
        start_ns = time.monotonic_ns()
        time.sleep(seconds)
        self.powers.append((start_ns, time.monotonic_ns(), power_w))

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        self.on_generate = lambda: self._spend(REPEAT_S, LOAD_W)
        return super().generate(requests, progress)

    def reset(self) -> CacheState:
        self._spend(RESET_S, self.reset_w)
        return super().reset()


class TrueMeter(Meter):
    """Knows the power at every moment: that of the engine's work, and idle power else. Its readings are exact."""

    name: ClassVar[str] = "true"

    def __init__(self, engine: SlowResets) -> None:
        self._engine = engine

    def start(self) -> None:
        pass

    def mark(self) -> int:
        return time.monotonic_ns()

    def energy_j(self, window: Window) -> float:
        joules = IDLE_W * window.duration_s
        for start_ns, end_ns, power_w in self._engine.powers:
            inside_ns = min(end_ns, window.end_ns) - max(start_ns, window.start_ns)
            joules += (power_w - IDLE_W) * max(0, inside_ns) / 1e9
        return joules

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        device = MeteredDevice("package-0", "board", "cpu")
        accounted = tuple(
            window_energy(window, {device.id: EnergyEstimate(self.energy_j(window), 0.0, "exact", 2)})
            for window in windows
        )
        return EnergyReport("true", True, "cpu_package", "worker", (device,), accounted)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    seconds: float = 0.55,
    idle_s: float = 0.02,
    phases: tuple[Phase, ...] = (),
    reset_w: float = IDLE_W,
) -> Result:
    engine = SlowResets()
    engine.reset_w = reset_w
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: engine)
    monkeypatch.setattr("pytest_llem.worker.cycle.open_meter", lambda *_: TrueMeter(engine))
    settings = MeasurementSettings(seconds, WarmupSettings(0, 0), IdleSettings(idle_s, 0.0), phases)
    job = dataclasses.replace(make_job(measurement=settings), meter=MeterSettings("auto"))
    measurement = run(job, path)
    return derive_result(job, measurement, RunReport("local", "default", "process"), study="s", environment={})


def test_rates_are_over_the_time_without_resets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the window 40 % were resets: throughput read 12 / 0.1 s."""
    result = measured(monkeypatch, tmp_path)
    assert result.workload.repeats > 3
    assert result.throughput.output_tokens_per_s == pytest.approx(12 / REPEAT_S, rel=0.05)
    assert result.throughput.requests_per_s == pytest.approx(4 / REPEAT_S, rel=0.05)
    assert result.throughput.duration_s == pytest.approx(result.workload.repeats * REPEAT_S, rel=0.05)
    assert result.timing["reset_s"] == pytest.approx((result.workload.repeats - 1) * RESET_S, rel=0.1)
    assert result.timing["measure_s"] is not None
    assert "resets_in_window" in [warning.code for warning in result.warnings]


def test_energy_is_that_of_the_load_without_what_idles_in_resets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    energy = measured(monkeypatch, tmp_path).energy
    assert energy.avg_power_w == pytest.approx(LOAD_W, rel=0.02)
    assert energy.joules_per_output_token == pytest.approx(LOAD_W * REPEAT_S / 12, rel=0.05)
    (gross,) = [window.energy_j for window in energy.windows if window.name == "measure"]
    assert gross is not None
    assert energy.energy_j is not None
    assert energy.reset_energy_j == pytest.approx(gross - energy.energy_j)
    assert energy.devices[0].energy_j == pytest.approx(energy.energy_j)


@pytest.mark.parametrize("reset_w", [IDLE_W, 250.0, LOAD_W])
def test_the_bound_holds_whatever_a_reset_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reset_w: float
) -> None:
    """What it draws above idle power looks like the load's."""
    result = measured(monkeypatch, tmp_path, reset_w=reset_w)
    energy = result.energy
    assert energy.energy_j is not None
    assert energy.uncertainty_j is not None
    assert result.throughput.duration_s is not None
    assert abs(energy.energy_j - LOAD_W * result.throughput.duration_s) <= energy.uncertainty_j + 0.5
    assert energy.uncertainty_j == energy.reset_energy_uncertainty_j


def test_a_bound_wider_than_a_study_accepts_is_no_valid_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two fifths of the window: what was drawn in them is unknown by more than a quarter of the rest."""
    reasons = measured(monkeypatch, tmp_path).validity.reasons
    assert [(reason.code, "workload.prompts" in reason.message) for reason in reasons] == [("window_too_short", True)]


def test_without_idle_power_what_resets_draw_stays_in_and_in_the_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    energy = measured(monkeypatch, tmp_path, idle_s=0.0).energy
    assert energy.reset_energy_j is None
    assert [window.energy_j for window in energy.windows if window.name == "measure"] == [energy.energy_j]
    assert energy.reset_energy_uncertainty_j is not None
    assert energy.reset_energy_uncertainty_j > IDLE_W * RESET_S


def test_one_repeat_has_its_reset_before_the_window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = measured(monkeypatch, tmp_path, seconds=0.01)
    assert result.workload.repeats == 1
    assert (result.timing["reset_s"], result.energy.reset_energy_j) == (0, None)
    assert result.throughput.output_tokens_per_s == pytest.approx(12 / REPEAT_S, rel=0.05)
    assert result.energy.uncertainty_j == 0
    assert result.warnings == ()


def test_a_phase_is_measured_without_them_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (prefill, _) = measured(monkeypatch, tmp_path, seconds=0.25, phases=("prefill",)).energy.phases
    assert prefill.energy_per_repeat_j == pytest.approx(LOAD_W * REPEAT_S, rel=0.05)
