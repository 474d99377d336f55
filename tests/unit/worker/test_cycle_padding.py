"""Real cycles on simulated GPUs: the padding of the measure window, and that its energy is right."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from pytest_llem.energy.registry import meter_class
from pytest_llem.engines.protocol import Quiesced
from pytest_llem.job.config import IdleSettings, MeasurementSettings, WarmupSettings
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Measurement, Window, WindowEnergy
from pytest_llem.job.request import Completion
from pytest_llem.worker.windows import Metering, choose_padding, idle_padding_s, with_step
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Simulation
from tests.unit.energy.cycle import BUSY_W, IDLE_W, calibrate, quicken, uuids
from tests.unit.worker.scripted import ScriptedEngine, make_job, read_events, run

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]


class GpuEngine(ScriptedEngine):
    """Loads the simulated GPU while it generates."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self.gpu = simulation.gpus[0]
        self.state: Quiesced = "synchronized"
        self.repeat_s = 0.05
        self.on_generate = self.work

    def work(self) -> None:
        self.gpu.set_power(BUSY_W)
        time.sleep(self.repeat_s)
        self.gpu.set_power(IDLE_W)

    def quiesce(self) -> Quiesced:
        self._note("quiesce")
        return self.state


@pytest.fixture
def engine(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> GpuEngine:
    quicken(simulation)
    # Longer than elsewhere: a busy machine reads some steps late, and three of five must be close.
    simulation.gpus[0].period_ns = 40_000_000
    calibrate(simulation)
    made = GpuEngine(simulation)
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: made)
    return made


def cycle(simulation: Simulation, path: Path, *, min_duration_s: float = 0.1, meter: str = "auto") -> Measurement:
    settings = MeasurementSettings(min_duration_s, WarmupSettings(1, 1), IdleSettings(0.1, 0.0))
    job = dataclasses.replace(
        make_job(measurement=settings), devices=DeviceSet("cuda", uuids(simulation)), meter=MeterSettings(meter)
    )
    return run(job, path)


def measured(measurement: Measurement) -> tuple[Window, WindowEnergy]:
    assert measurement.energy is not None
    (window,) = [window for window in measurement.windows if window.name == "measure"]
    (energy,) = [energy for energy in measurement.energy.windows if energy.name == "measure"]
    return window, energy


def assert_right(engine: GpuEngine, energy: WindowEnergy) -> None:
    assert energy.uncertainty_j is not None
    truth_j = engine.gpu.energy_between_j(energy.start_ns, energy.end_ns)
    assert energy.energy_j == pytest.approx(truth_j, abs=energy.uncertainty_j)
    assert energy.uncertainty_j < 0.1 * truth_j


def test_a_short_window_rests_for_five_of_the_calibrated_periods(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path
) -> None:
    window, energy = measured(cycle(simulation, tmp_path))

    assert window.quiet_before_s is not None
    assert window.quiet_after_s is not None
    assert 0.2 <= window.quiet_before_s < 0.5
    assert energy.estimator == "counter_outer_edge"
    assert_right(engine, energy)


@pytest.mark.parametrize("state", ["drained", "unknown"])
def test_an_engine_that_is_not_synchronised_is_never_taken_for_quiet(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path, state: Quiesced
) -> None:
    engine.state = state

    window, energy = measured(cycle(simulation, tmp_path))

    assert (window.quiet_before_s, window.quiet_after_s) == (None, None)
    assert energy.estimator == "counter_interpolated"


def test_a_long_window_lies_inside_the_same_load(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_llem.worker.windows.SHORT_WINDOW_S", 0.15)

    measurement = cycle(simulation, tmp_path, min_duration_s=0.6)

    window, energy = measured(measurement)
    assert (window.quiet_before_s, window.quiet_after_s) == (None, None)
    assert energy.estimator == "counter_interpolated"
    assert_right(engine, energy)
    calls = engine.calls
    first, last = calls.index("reset_peak_memory"), calls.index("memory")
    assert calls[first + 1 : last].count("generate") == len(measurement.repeats)
    # One repeat warms up; then comes the lead-in, and behind the window the lead-out.
    assert calls[:first].count("generate") >= 2
    assert calls[last:].count("generate") >= 1
    assert measurement.requests[0].start_ns >= window.start_ns
    assert "lead" in {e["name"] for e in read_events(tmp_path / "events.jsonl") if e["event"] == "progress"}


def test_unmeasured_repeats_leave_no_trace_in_what_was_observed(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that could not be emptied before the lead-out is no fault of the window."""
    monkeypatch.setattr("pytest_llem.worker.windows.SHORT_WINDOW_S", 0.0)
    memory = engine.memory

    def then_unknown() -> tuple[()]:
        memory()
        engine.cache_state = "unknown"
        return ()

    monkeypatch.setattr(engine, "memory", then_unknown)

    measurement = cycle(simulation, tmp_path)

    assert measurement.engine.cache_reset == "cleared"
    assert "prefix_cache_not_reset" not in {note.code for note in measurement.invalid}


def test_a_repeat_too_long_to_be_wasted_gets_idle_padding(
    simulation: Simulation, engine: GpuEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_llem.worker.windows.SHORT_WINDOW_S", 0.0)
    monkeypatch.setattr("pytest_llem.worker.windows.MAX_UNMEASURED_REPEAT_S", 0.01)

    window, _ = measured(cycle(simulation, tmp_path))

    assert window.quiet_before_s is not None
    assert window.quiet_after_s is not None


def test_a_meter_of_the_cpu_gets_no_padding(simulation: Simulation, engine: GpuEngine, tmp_path: Path) -> None:
    window, _ = measured(cycle(simulation, tmp_path, meter="estimate"))

    assert (window.quiet_before_s, window.quiet_after_s) == (None, None)
    assert engine.calls.count("generate") == 1 + 2


@pytest.mark.parametrize(
    ("seconds", "synchronise", "kind"), [(0.3, True, "idle"), (10.0, True, "same_load"), (0.3, False, "same_load")]
)
def test_idle_padding_is_chosen_only_where_it_pays(seconds: float, synchronise: bool, kind: str) -> None:
    assert choose_padding(seconds, 0.1, can_synchronise=synchronise).kind == kind


@pytest.mark.parametrize(("meter", "steps"), [("nvml", True), ("amdsmi", False), ("rapl", False), ("estimate", False)])
def test_only_a_meter_that_finds_counter_steps_asks_for_padding(meter: str, steps: bool) -> None:
    assert meter_class(meter, DeviceSet("cuda")).steps_visibly is steps


def test_idle_padding_begins_when_the_counter_shows_idle_power() -> None:
    assert idle_padding_s(0.1, 0.1) == pytest.approx(0.6)
    assert Metering(None, Path("samples.jsonl")).settle_s() == pytest.approx(0.15), "a sensor of which nothing is known"


def test_windows_of_the_load_state_the_engines_step() -> None:
    """Energy needs it where a counter may keep in step with the engine."""
    windows = [Window("idle", 0, 1), Window("measure", 1, 2, repeats=3)]
    done = [Completion(0, 4, (1, 2, 3, 4), 0, 9, "length", (10_000_000, 30_000_000, 30_000_000, 51_000_000))]

    assert [window.step_s for window in with_step(windows, done)] == [None, pytest.approx(0.0205)]
    assert with_step(windows, [dataclasses.replace(done[0], token_times_ns=None)]) == windows


@pytest.mark.parametrize(("tokens", "step_s"), [(4, 31e-9), (40, None)])
def test_arrivals_tell_the_engines_steps_where_each_brings_a_token(tokens: int, step_s: float | None) -> None:
    windows = [Window("idle", 0, 1), Window("measure", 1, 2, repeats=1), Window("decode", 2, 3)]
    answer = Completion(0, 4, (), 0, 90, "stop", output_tokens=tokens, chunk_times_ns=(10, 40, 71, 103))

    assert [window.step_s for window in with_step(windows, [answer])] == [None, step_s, step_s]
