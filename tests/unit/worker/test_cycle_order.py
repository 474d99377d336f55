"""The order of a cycle, with an engine that writes down what is asked of it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_llem.engines.protocol import Quiesced
from pytest_llem.errors import EngineError, MeterError, OutOfMemoryError, WorkloadError
from pytest_llem.job.config import Arrival, IdleSettings, MeasurementSettings, WarmupSettings, WorkloadSettings
from pytest_llem.job.events import EventLog
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Deadlines, DeviceSet, JobDir, MeterSettings
from pytest_llem.job.measurement import EnergyReport, Measurement, Window
from pytest_llem.job.request import Recorded, Texts
from pytest_llem.job.wire import decode, encode
from pytest_llem.worker.cycle import run_cycle
from pytest_llem.worker.entry import run_job
from tests.timed import on_a_clock
from tests.unit.worker.scripted import (
    RecordingMeter,
    ScriptedEngine,
    codes,
    engine,
    make_job,
    meter,
    read_events,
    run,
)

pytestmark = on_a_clock

__all__ = ["engine", "meter"]


def test_windows_come_in_the_order_of_the_protocol(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    measurement = run(make_job(), tmp_path)
    assert [window.name for window in measurement.windows] == ["load", "idle", "warmup", "measure"]
    assert all(a.end_ns <= b.start_ns for a, b in zip(measurement.windows, measurement.windows[1:], strict=False))
    assert meter.stops == [measurement.windows]
    assert {edge for w in measurement.windows for edge in (w.start_ns, w.end_ns)} <= set(meter.marks)


def test_caches_are_emptied_before_every_repeat(engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path) -> None:
    run(make_job(), tmp_path)
    about = [call for call in engine.calls if call in ("reset", "generate")]
    assert about == ["reset", "generate"] * (len(about) // 2)
    assert len(about) > 4


def test_the_engine_rests_at_both_edges_of_the_measure_window(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    run(make_job(), tmp_path)
    first = engine.calls.index("reset_peak_memory")
    measured = engine.calls[first : engine.calls.index("memory")]
    assert measured[1] == "quiesce"
    assert measured[-1] == "quiesce"


def test_asking_an_engine_that_cannot_synchronise_is_no_part_of_the_window(
    engine: ScriptedEngine, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server may take seconds to say whether it is idle; one that can be synchronised must be, before the edge."""
    asked: list[int] = []
    answers: list[Quiesced] = ["drained"]

    def quiesce() -> Quiesced:
        asked.append(time.monotonic_ns())
        return answers[0]

    monkeypatch.setattr(engine, "quiesce", quiesce)
    drained = run(make_job(), tmp_path).windows[-1]
    assert asked[-2] <= drained.start_ns < drained.end_ns <= asked[-1]
    answers[0] = "synchronized"
    synchronised = run(make_job(), tmp_path).windows[-1]
    assert synchronised.start_ns < asked[-1] <= synchronised.end_ns


def test_the_measure_window_holds_whole_repeats_only(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    measurement = run(make_job(), tmp_path)
    window = measurement.windows[-1]
    assert measurement.repeats[0].start_ns >= window.start_ns
    assert measurement.repeats[-1].end_ns <= window.end_ns
    assert window.duration_s >= 0.01
    assert len(measurement.requests) == 4 * len(measurement.repeats)


def test_one_repeat_is_measured_even_when_it_takes_longer_than_asked(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    settings = MeasurementSettings(0.0, WarmupSettings(1, 1), IdleSettings(0.0))
    measurement = run(make_job(measurement=settings), tmp_path)
    assert len(measurement.repeats) == 1
    assert measurement.warmup.reason == "fixed"


def test_events_tell_what_happened(engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path) -> None:
    run(make_job(), tmp_path)
    events = list(read_events(tmp_path / "events.jsonl"))
    phases = [event["name"] for event in events if event["event"] == "phase"]
    assert phases == ["prepare", "load", "idle", "warmup", "measure", "unload"]
    edges = [(event["event"], event["name"]) for event in events if str(event["event"]).startswith("window")]
    assert edges[-2:] == [("window_begin", "measure"), ("window_end", "measure")]
    progress = [event for event in events if event["event"] == "progress" and event["name"] == "measure"]
    assert progress[0] | {"t_ns": 0} == {
        "t_ns": 0, "event": "progress", "name": "measure", "done": 4, "total": 4, "repeat": 0,
    }  # fmt: skip


def test_progress_is_calm(engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path) -> None:
    """Thousands of short batches must not become thousands of lines: writing them would disturb the measurement."""
    engine.on_generate = lambda: None
    settings = dataclasses.replace(make_job().config.measurement, min_duration_s=0.05)
    measurement = run(make_job(measurement=settings), tmp_path)
    events = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "progress"]
    assert len(measurement.repeats) > 20
    assert len(events) <= 4


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ({"cached_tokens": 2}, "prefix_cache_hit"),
        ({"missing_tokens": 1}, "output_length_differs"),
        ({"lost_input_tokens": 1}, "input_length_differs"),
        ({"cache_state": "unknown", "cached_tokens": None}, "prefix_cache_not_reset"),
        ({"read_back": {"dtype": "bfloat16", "batch_size": 2}}, "effective_differs"),
        ({"read_back": {"dtype": "float32", "batch_size": 1}}, "effective_differs"),
    ],
)
def test_what_was_not_meant_makes_the_cycle_invalid(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, what: dict[str, object], code: str
) -> None:
    for attribute, value in what.items():
        setattr(engine, attribute, value)
    assert codes(run(make_job(), tmp_path)) == [code]


def test_a_cache_that_nobody_emptied_does_no_harm_where_nothing_came_from_it(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    engine.cache_state, engine.cached_tokens = "unknown", 0
    assert codes(run(make_job(), tmp_path)) == []


def test_a_good_cycle_has_no_notes_and_survives_the_way_through_json(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    measurement = run(make_job(), tmp_path)
    assert codes(measurement) == []
    assert encode(decode(Measurement, encode(measurement))) == encode(measurement)


@pytest.mark.parametrize("phase", ["prepare", "load", "generate"])
def test_a_failure_releases_engine_and_meter(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, phase: str
) -> None:
    engine.fail_in = phase
    with pytest.raises(OutOfMemoryError):
        run(make_job(), tmp_path)
    assert engine.calls[-1] == "shutdown"
    assert meter.stops == [()]
    assert [thread.name for thread in threading.enumerate()].count("llem-heartbeat") == 0


def test_a_meter_that_died_with_the_engine_hides_no_failure(
    engine: ScriptedEngine, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SGLang ends every child of its process when it shuts down, and the sampler is one."""

    def gone(windows: Sequence[Window]) -> EnergyReport:
        raise MeterError("the energy sampler ended by itself")

    monkeypatch.setattr(meter, "stop", gone)
    engine.fail_in = "load"
    with pytest.raises(OutOfMemoryError):
        run(make_job(), tmp_path)


def test_an_engine_that_nobody_verified_says_so_in_its_results(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    assert [note.code for note in run(make_job(engine="sglang"), tmp_path).warnings] == ["engine_not_verified"]


def test_prefill_is_measured_in_one_window_of_whole_repeats(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    settings = dataclasses.replace(make_job().config.measurement, phases=("prefill",), min_duration_s=0.1)
    measurement = run(make_job(measurement=settings), tmp_path)
    window = measurement.windows[-1]
    assert window.name == "prefill"
    assert window.repeats is not None
    assert window.repeats > 1
    assert {request.output_tokens for request in measurement.requests} == {3}
    assert measurement.warnings == ()


def test_an_engine_without_a_border_says_that_decode_was_not_split(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    settings = dataclasses.replace(make_job().config.measurement, phases=("decode",))
    measurement = run(make_job(measurement=settings), tmp_path)
    assert [note.code for note in measurement.warnings] == ["decode_not_split"]
    assert measurement.windows[-1].name == "measure"


@pytest.mark.parametrize(("settled", "told"), [(True, []), (None, []), (False, ["idle_not_settled"])])
def test_idle_power_that_has_not_settled_is_told(
    engine: ScriptedEngine,
    meter: RecordingMeter,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settled: bool | None,
    told: list[str],
) -> None:
    """It is subtracted as idle power all the same, so the reader must know."""
    monkeypatch.setattr("pytest_llem.worker.cycle.settle", lambda power_w, max_wait_s: (30.0, settled))
    measurement = run(dataclasses.replace(make_job(), devices=DeviceSet("cuda", ("GPU-1",))), tmp_path)
    assert [note.code for note in measurement.warnings] == told
    assert measurement.timing["settle_s"] == 30.0


def test_no_meter_measures_no_energy_and_no_idle(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = dataclasses.replace(make_job(), meter=MeterSettings("none"))
    measurement = run(job, tmp_path)
    assert measurement.energy is None
    assert [window.name for window in measurement.windows] == ["load", "warmup", "measure"]


def test_a_meter_on_the_host_is_not_opened_in_the_worker(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytest_llem.worker.cycle.open_meter", lambda *_: pytest.fail("opened"))
    job = dataclasses.replace(make_job(), meter=MeterSettings("nvml", placement="host"))
    measurement = run(job, tmp_path)
    assert measurement.energy is None
    assert "idle" in {window.name for window in measurement.windows}


def _stuck_cycle(path: Path) -> None:
    made = ScriptedEngine()
    made.on_generate = lambda: time.sleep(1.2)
    settings = MeasurementSettings(0.0, WarmupSettings(0, 0), IdleSettings(1.2, 0.0))
    job = dataclasses.replace(make_job(measurement=settings), deadlines=Deadlines(60.0, heartbeat_s=0.4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: made)
        patch.setattr("pytest_llem.worker.cycle.open_meter", lambda *_: RecordingMeter())
        run(job, path)


def test_heartbeats_stop_when_the_engine_is_stuck(tmp_path: Path) -> None:
    """A thread that beats whatever happens would hide a deadlock from the hang detection.

    In a process of its own, as cycles are: use of the CPU by threads of earlier tests would count as the engine's.
    """
    process = multiprocessing.get_context("spawn").Process(target=_stuck_cycle, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    told = [(event["event"], event.get("name")) for event in read_events(tmp_path / "events.jsonl")]
    stuck = told[told.index(("window_begin", "measure")) : told.index(("progress", "measure"))]
    assert told.count(("heartbeat", "idle")) >= 3
    assert stuck.count(("heartbeat", "measure")) <= 1


def test_arrivals_at_an_engine_that_does_not_serve_are_refused(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """They would otherwise be ignored, and the result would claim a load that never was."""
    workload = dataclasses.replace(make_job().config.workload, arrival=Arrival("constant", rate_per_s=1.0))
    with pytest.raises(EngineError, match="does not serve"):
        run(make_job(workload=workload), tmp_path)


def test_an_engine_error_names_its_phase(engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path) -> None:
    engine.fail_in = "load"
    job_dir = JobDir(tmp_path)
    events = EventLog(job_dir.events)
    with pytest.raises(EngineError):
        run_cycle(make_job(), job_dir, events, start_method="spawn", isolation="process")
    assert events.phase == "load"


def test_a_server_on_another_machine_is_measured_without_energy(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """Energy of this machine would pass for that of the server."""
    measurement = run(make_job(settings={"base_url": "http://203.0.113.77:8000/v1"}), tmp_path)
    assert measurement.energy is None
    assert [note.code for note in measurement.warnings] == ["server_elsewhere"]
    assert measurement.invalid == ()
    assert measurement.requests


def test_the_texts_of_a_package_come_with_the_job(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """A container has not the package that made them, and would look for its data set on the hub."""
    workload = WorkloadSettings("nobody_has_it", prompts=2, input_tokens=None, output_tokens=3)
    job = dataclasses.replace(make_job(workload=workload), texts=Texts(("one", "three"), 4))
    measurement = run(job, tmp_path)
    assert [request.input_tokens for request in measurement.requests[:2]] == [3, 5]
    assert measurement.rows_skipped == 4


def test_broken_lines_of_a_trace_are_told_or_refused_before_the_model_is_loaded(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """In an image or on a node nobody has looked at the file before."""
    workload = WorkloadSettings("t.jsonl", prompts=2, input_tokens=None, output_tokens=3)
    texts = Texts((), 0, "mooncake", (Recorded(prompt_tokens=5, answer_tokens=3),) * 2, 3, 1, ("t.jsonl:2: x",), "y")
    job = dataclasses.replace(make_job(workload=workload), texts=texts)
    with pytest.raises(WorkloadError, match=r"t\.jsonl:2: x"):
        run(job, tmp_path)
    assert "load" not in engine.calls
    allowing = dataclasses.replace(job, meter=dataclasses.replace(job.meter, thresholds={"failed_requests_rel": 0.4}))
    measurement = run(allowing, tmp_path)
    assert (measurement.dataset_format, measurement.rows_broken) == ("mooncake", 1)
    assert ["t.jsonl:2: x" in note.message for note in measurement.warnings if note.code == "lines_broken"] == [True]


def test_questions_are_looked_at_before_the_model_is_loaded(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """As above. A scorer that is not in the image scores where pytest runs, and is no reason to end here."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"text": "one", "key": "1"}\n{"text": "two", "key": {"a": 1}}\n')
    workload = WorkloadSettings(str(path), 2, None, 3, ignore_eos=False, score="exact", answer_column="key")

    with pytest.raises(WorkloadError, match=r"q\.jsonl:2: no answer key for the scorer exact"):
        run(make_job(workload=workload), tmp_path)

    assert "load" not in engine.calls
    run(make_job(workload=dataclasses.replace(workload, score="of_a_package")), tmp_path)
    assert "load" in engine.calls


def test_a_data_set_is_read_before_the_model_is_loaded_and_its_error_is_no_traceback(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong column was found after a minute of loading, and shown as the end of a log of this package's lines."""
    job = make_job()
    workload = dataclasses.replace(job.config.workload, dataset=str(tmp_path / "none.csv"))
    job_dir = JobDir(tmp_path / "job")
    job_dir.write_job(dataclasses.replace(job, config=dataclasses.replace(job.config, workload=workload)))
    assert run_job(job_dir, job_dir, start_method="spawn", isolation="process") == 1
    error = read_json(job_dir.error)
    assert (error["category"], error["phase"]) == ("workload", "prepare")
    assert "Traceback" in str(error["traceback"])
    assert "load" not in engine.calls
    assert "Traceback" not in capfd.readouterr().err
