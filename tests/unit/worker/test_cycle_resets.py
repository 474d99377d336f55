"""Emptying caches between repeats is no part of what is measured: not of its time, and not of its energy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.timed import on_a_clock
from tests.unit.worker.powered import IDLE_W, LOAD_W, REPEAT_S, RESET_S, PoweredEngine, measured

pytestmark = on_a_clock


def test_rates_are_over_the_time_without_resets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the window 40 % were resets: throughput read 12 / 0.1 s."""
    engine = PoweredEngine()
    result = measured(monkeypatch, tmp_path, engine=engine)
    repeats = result.workload.repeats
    assert repeats > 3
    repeat_s, reset_s = engine.took_s(REPEAT_S, repeats), engine.took_s(RESET_S, repeats - 1)
    assert result.throughput.output_tokens_per_s == pytest.approx(12 / repeat_s, rel=0.1)
    assert result.throughput.requests_per_s == pytest.approx(4 / repeat_s, rel=0.1)
    assert result.throughput.duration_s == pytest.approx(repeats * repeat_s, rel=0.1)
    assert result.timing["reset_s"] == pytest.approx((repeats - 1) * reset_s, rel=0.25)
    assert result.timing["measure_s"] is not None
    assert "resets_in_window" in [warning.code for warning in result.warnings]


def test_energy_is_that_of_the_load_without_what_idles_in_resets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = PoweredEngine()
    result = measured(monkeypatch, tmp_path, engine=engine)
    energy, repeat_s = result.energy, engine.took_s(REPEAT_S, result.workload.repeats)
    assert energy.avg_power_w == pytest.approx(LOAD_W, rel=0.1)
    assert energy.joules_per_output_token == pytest.approx(LOAD_W * repeat_s / 12, rel=0.1)
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
    messages = {reason.code: reason.message for reason in reasons}
    assert "workload.prompts" in messages["window_too_short"]


def test_without_idle_power_what_resets_draw_stays_in_and_in_the_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    energy = measured(monkeypatch, tmp_path, idle_s=0.0).energy
    assert energy.reset_energy_j is None
    assert [window.energy_j for window in energy.windows if window.name == "measure"] == [energy.energy_j]
    assert energy.reset_energy_uncertainty_j is not None
    assert energy.reset_energy_uncertainty_j > IDLE_W * RESET_S


def test_one_repeat_has_its_reset_before_the_window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = PoweredEngine()
    result = measured(monkeypatch, tmp_path, seconds=0.01, engine=engine)
    assert result.workload.repeats == 1
    assert (result.timing["reset_s"], result.energy.reset_energy_j) == (0, None)
    assert result.throughput.output_tokens_per_s == pytest.approx(12 / engine.took_s(REPEAT_S, 1), rel=0.1)
    assert result.energy.uncertainty_j == 0
    assert "resets_in_window" not in [warning.code for warning in result.warnings]


def test_a_phase_is_measured_without_them_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = PoweredEngine()
    (prefill, _) = measured(monkeypatch, tmp_path, seconds=0.25, phases=("prefill",), engine=engine).energy.phases
    assert prefill.energy_per_repeat_j == pytest.approx(LOAD_W * engine.took_s(REPEAT_S), rel=0.1)
