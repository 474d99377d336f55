"""One run's store: measured once, recorded always, readable by everyone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from pytest_llem.errors import DeviceError, EngineError, StoreError, WorkerCrashedError
from pytest_llem.job.files import slug
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note, RunReport
from pytest_llem.results import attempts as attempts_module
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import PlannedCycle, StudyPlan, read_manifest, rebuild_manifest
from pytest_llem.results.reading import load, read_result
from pytest_llem.results.store import RunStore, set_attempt_aside

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "llem-results", "run-1", environment={"hostname": "here"})


def never(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
    pytest.fail("measured again")


def test_a_cycle_is_measured_once_for_all_consumers(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    measure = worker(key)
    first = get_or_measure(store, key, measure)
    again = get_or_measure(RunStore.open(store.run_dir), key, never)
    assert measure.attempts == [1]
    assert first.state == again.state == "valid"
    assert first.result == again.result
    assert first.message() == ""


def test_artifacts_lie_where_the_design_says(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    outcome = get_or_measure(store, key, worker(key))
    assert outcome.directory.relative_to(store.run_dir).as_posix() == "study/batch_size-1-01234567/c1"
    assert (store.run_dir.parent / ".gitignore").read_text().splitlines()[-1] == "*"
    assert read_result(outcome.directory / "result.json").run_id == "run-1"


@pytest.mark.parametrize("text", ["../../etc", "a b/c", "x" * 300, "...", "Ünïcode"])
def test_slugs_are_safe_names(text: str) -> None:
    assert len(slug(text)) <= 80
    assert set(slug(text)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not slug(text).startswith(".")


def test_invalid_cycles_are_retried_and_every_attempt_is_kept(
    store: RunStore, key: CycleKey, bench: Bench, worker: MakeWorker
) -> None:
    noisy = replace(bench.measurement(), invalid=(Note("foreign_process", "pid 7"),))
    outcome = get_or_measure(store, key, worker(key, noisy, bench.measurement()), retries=2)
    assert (outcome.state, outcome.attempts) == ("valid", 2)
    superseded = read_result(outcome.directory / "attempt-1" / "result.json")
    assert superseded.validity.reasons[0].code == "foreign_process"
    assert outcome.result is not None
    assert outcome.result.attempt == 2


def test_an_attempt_that_is_retried_is_no_end_for_others_who_look(
    store: RunStore, key: CycleKey, bench: Bench, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate in another process took the first, invalid attempt for final, or found its result gone."""
    noisy = replace(bench.measurement(), invalid=(Note("foreign_process", "pid 7"),))
    seen: list[object] = []

    def set_aside(directory: Path, attempt: int) -> None:
        seen.append(store.outcome(key))
        really(directory, attempt)
        seen.append(store.outcome(key))

    really = set_attempt_aside
    monkeypatch.setattr(attempts_module, "set_attempt_aside", set_aside)
    assert get_or_measure(store, key, worker(key, noisy, bench.measurement()), retries=1).state == "valid"
    assert seen == [None, None]


def test_retries_end_and_the_outcome_says_why(store: RunStore, key: CycleKey, bench: Bench, worker: MakeWorker) -> None:
    noisy = replace(bench.measurement(), invalid=(Note("foreign_process", "pid 7"),))
    measure = worker(key, noisy)
    outcome = get_or_measure(store, key, measure, retries=1)
    assert measure.attempts == [1, 2]
    assert outcome.state == "invalid"
    assert "invalid after 2 attempts" in outcome.message()
    assert "foreign_process: pid 7" in outcome.message()


def test_failures_are_final_and_carry_fix_and_log(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    outcome = get_or_measure(store, key, worker(key, EngineError("no such model", fix="name another")), retries=3)
    assert (outcome.state, outcome.attempts) == ("failed", 1)
    assert get_or_measure(store, key, never).state == "failed"
    for part in ("no such model", "fix: name another", str(outcome.directory), "    started"):
        assert part in outcome.message()


def test_an_error_raised_before_the_worker_starts_is_recorded(
    store: RunStore, key: CycleKey, worker: MakeWorker
) -> None:
    outcome = get_or_measure(store, key, worker(key, DeviceError("device is held by pid 9")))
    assert outcome.state == "failed"

    def refuse(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        raise DeviceError("no lease")

    other = replace(key, cycle=2)
    assert get_or_measure(store, other, refuse).state == "failed"
    assert JobDir(store.directory(other)).error.exists()


def test_a_dead_worker_is_crashed_not_failed(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    outcome = get_or_measure(store, key, worker(key, WorkerCrashedError("signal 11")))
    assert outcome.state == "crashed"


def test_a_worker_that_left_nothing_is_crashed(store: RunStore, key: CycleKey, bench: Bench) -> None:
    def silent(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        return bench.job(key), RunReport("local", "default", "process")

    outcome = get_or_measure(store, key, silent)
    assert outcome.state == "crashed"
    assert "neither a measurement nor an error" in outcome.message()


def test_an_interrupt_is_recorded_and_goes_on(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    with pytest.raises(KeyboardInterrupt):
        get_or_measure(store, key, worker(key, KeyboardInterrupt()))
    assert get_or_measure(store, key, never).state == "interrupted"


def test_a_bug_is_recorded_and_goes_on(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    with pytest.raises(ZeroDivisionError):
        get_or_measure(store, key, worker(key, ZeroDivisionError("oops")))
    outcome = get_or_measure(store, key, never)
    assert outcome.state == "failed"
    assert "ZeroDivisionError: oops" in outcome.message()


def test_cycles_with_other_work_are_invalid(store: RunStore, key: CycleKey, bench: Bench, worker: MakeWorker) -> None:
    second = replace(key, cycle=2)
    get_or_measure(store, key, worker(key))
    outcome = get_or_measure(store, second, worker(second, bench.measurement(output_tokens=5)))
    assert outcome.state == "invalid"
    assert "work_differs" in outcome.message()


def die_while_measuring(run_dir: Path, key: CycleKey) -> None:
    def killed(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    get_or_measure(RunStore.open(run_dir), key, killed)


def test_a_killed_pytest_process_leaves_a_crashed_cycle(store: RunStore, key: CycleKey) -> None:
    process = multiprocessing.get_context("fork").Process(target=die_while_measuring, args=(store.run_dir, key))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((store.directory(key) / "state.json").read_text())["state"] == "running"
    assert [item.state for item in rebuild_manifest(store.run_dir).items] == ["crashed"]
    outcome = get_or_measure(store, key, never)
    assert outcome.state == "crashed"
    assert f"pid {process.pid}" in outcome.message()


def count_and_measure(run_dir: Path, key: CycleKey, bench: Bench, tally: Path) -> None:
    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        with tally.open("a") as stream:
            stream.write("x")
        job_dir.write_job(bench.job(key))
        from pytest_llem.job.measurement import write_measurement

        write_measurement(job_dir.measurement, bench.measurement())
        return bench.job(key), RunReport("local", "default", "process")

    assert get_or_measure(RunStore.open(run_dir), key, measure).state == "valid"


def test_processes_share_one_measurement(store: RunStore, key: CycleKey, bench: Bench, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=count_and_measure, args=(store.run_dir, key, bench, tally)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert tally.read_text() == "x"


def test_readings_become_parquet_with_units(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    inner = worker(key)

    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        job_dir.samples.parent.mkdir(parents=True, exist_ok=True)
        readings = [
            {"t_ns": 0, "event": "devices", "devices": ["GPU-1"]},
            {"t_ns": 1, "device": "GPU-1", "power_w": 10.5},
            {"t_ns": 2, "device": "GPU-1", "temperature_c": 40},
        ]
        job_dir.samples.write_text("".join(json.dumps(line) + "\n" for line in readings) + '{"t_ns": 3, "po')
        return inner(attempt, job_dir)

    table = pq.read_table(JobDir(get_or_measure(store, key, measure).directory).power)
    assert table.select(["t_ns", "device", "power_w", "temperature_c"]).to_pylist() == [
        {"t_ns": 1, "device": "GPU-1", "power_w": 10.5, "temperature_c": None},
        {"t_ns": 2, "device": "GPU-1", "power_w": None, "temperature_c": 40.0},
    ]
    assert table.schema.field("power_w").metadata == {b"unit": b"W"}


def test_the_manifest_lists_what_ran_and_what_did_not(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    get_or_measure(store, key, worker(key))
    plan = StudyPlan(
        "study",
        "studies/study.yaml",
        cycles=tuple(PlannedCycle(key.experiment_id, key.config_hash, cycle) for cycle in (2, 1)),
    )
    rebuild_manifest(store.run_dir, studies=(plan,), finished=True, facts={"exitstatus": 0})
    manifest = read_manifest(store.run_dir / "run.json")
    assert [(item.cycle, item.state) for item in manifest.items] == [(2, "pending"), (1, "valid")]
    assert (store.run_dir / manifest.items[1].directory / "result.json").exists()
    assert manifest.finished_at is not None
    assert manifest.environment == {"hostname": "here"}


def test_a_run_is_created_once(store: RunStore) -> None:
    with pytest.raises(StoreError, match="exists already"):
        RunStore.create(store.run_dir.parent, "run-1", environment={})


def test_newer_results_are_refused_with_the_remedy(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    path = get_or_measure(store, key, worker(key)).directory / "result.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(StoreError, match="99 is newer"):
        read_result(path)


def test_a_broken_result_names_file_and_field(store: RunStore, key: CycleKey, worker: MakeWorker) -> None:
    path = get_or_measure(store, key, worker(key)).directory / "result.json"
    data = json.loads(path.read_text())
    data["energy"]["energy_j"] = "lots"
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=r"result\.json: energy\.energy_j"):
        read_result(path)


@pytest.mark.parametrize("field", ["samples", "terms"])
def test_a_window_without_a_required_field_is_refused(
    store: RunStore, key: CycleKey, worker: MakeWorker, field: str
) -> None:
    path = get_or_measure(store, key, worker(key)).directory / "result.json"
    data = json.loads(path.read_text())
    del data["energy"]["windows"][0][field]
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=rf"energy\.windows\.0\.{field}"):
        read_result(path)


@pytest.mark.parametrize("how", ["gone", "leads nowhere", "leads to itself"])
def test_a_result_whose_state_is_missing_is_not_left_out_in_silence(
    store: RunStore, worker: MakeWorker, key: CycleKey, how: str
) -> None:
    """Its cycle counted as never begun, and comparisons went on without it."""
    for cycle in (1, 2):
        each = replace(key, cycle=cycle)
        get_or_measure(store, each, worker(each))
    state = store.directory(key) / "state.json"
    shutil.copytree(state.parent, state.parent.with_name("c1 copy"))
    assert len(load(store.run_dir)) == 2
    state.unlink()
    if how != "gone":
        state.symlink_to("state.json" if how == "leads to itself" else "nowhere")

    with pytest.raises(StoreError, match=f"{state}: missing beside a result"):
        load(store.run_dir)


def test_a_saturated_cycle_is_not_tried_again(store: RunStore, key: CycleKey, bench: Bench, worker: MakeWorker) -> None:
    """It is no disturbance: the study asks for that load, and a search would pay for each of its windows twice."""
    measure = worker(key, replace(bench.measurement(), invalid=(Note("saturated", "9 arrived and 5 were served"),)))
    assert get_or_measure(store, key, measure, retries=3).state == "invalid"
    assert measure.attempts == [1]
