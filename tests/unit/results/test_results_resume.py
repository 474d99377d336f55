"""Resuming reuses the newest valid result of the same work in the same place, and says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note, RunReport
from pytest_llem.machine.environment import identity
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.resume import EarlierRuns, Reuse
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

HERE: dict[str, JsonValue] = {
    "cpu": {"model": "X", "logical_cores": 2, "governor": None},
    "packages": {"torch": "2.13"},
}


def place(host: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return identity(
        host,
        engine="transformers",
        runner="local",
        image=None,
        device_kind="cpu",
        device_count=0,
        meter="auto",
        inputs={},
    )


def never(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
    pytest.fail("measured again")


@pytest.fixture
def out(tmp_path: Path, key: CycleKey, worker: MakeWorker) -> Path:
    """A results folder with one run of one valid cycle."""
    get_or_measure(RunStore.create(tmp_path, "run-1", environment=HERE), key, worker(key))
    return tmp_path


def test_a_matching_result_is_referenced_not_measured(out: Path, key: CycleKey) -> None:
    store = RunStore.create(out, "run-2", environment=HERE)
    outcome = get_or_measure(store, key, never, reuse=lambda: EarlierRuns(out, "run-2").find(key, place(HERE)))
    assert (outcome.state, outcome.source_run, outcome.attempts) == ("valid", "run-1", 0)
    assert outcome.result is not None
    assert (outcome.result.run_id, outcome.result.source_run) == ("run-2", "run-1")
    (item,) = rebuild_manifest(store.run_dir).items
    assert (item.state, item.source_run) == ("valid", "run-1")


def test_a_reused_result_gets_the_percentiles_that_its_study_chose_since(
    out: Path, key: CycleKey, worker: MakeWorker
) -> None:
    """They change no measurement: whoever adds one would else measure a whole sweep again, or miss it in silence."""
    chosen = (50.0, 75.0, 90.0)
    found = EarlierRuns(out, "run-2").find(key, place(HERE), percentiles=chosen)
    assert found.result is not None
    assert found.result.latency.e2el_s is not None
    assert found.result.latency.e2el_s.percentiles == {"75": pytest.approx(0.13)}
    (measurement,) = out.rglob("measurement.json")
    measurement.unlink()
    assert EarlierRuns(out, "run-2").find(key, place(HERE), percentiles=(50.0, 90.0)).result is not None
    lacking = EarlierRuns(out, "run-2").find(key, place(HERE), percentiles=chosen)
    assert lacking.result is None
    assert str(lacking.reason).startswith("it does not state all of the study's percentiles")


def test_a_reused_result_keeps_its_first_source(out: Path, key: CycleKey) -> None:
    for number in (2, 3):
        store = RunStore.create(out, f"run-{number}", environment=HERE)
        earlier = EarlierRuns(out, f"run-{number}")
        outcome = get_or_measure(store, key, never, reuse=lambda earlier=earlier: earlier.find(key, place(HERE)))  # type: ignore[misc]
    assert outcome.source_run == "run-1"


def test_another_place_is_measured_again_and_the_difference_recorded(
    out: Path, key: CycleKey, worker: MakeWorker
) -> None:
    there: dict[str, JsonValue] = {**HERE, "packages": {"torch": "2.14"}}
    store = RunStore.create(out, "run-2", environment=there)
    measure = worker(key)
    get_or_measure(store, key, measure, reuse=lambda: EarlierRuns(out, "run-2").find(key, place(there)))
    assert measure.attempts == [1]
    (item,) = rebuild_manifest(store.run_dir).items
    assert item.not_reused == "package_torch: 2.13 -> 2.14"


def find(out: Path, key: CycleKey) -> Reuse:
    return EarlierRuns(out, "run-9").find(key, place(HERE))


def test_the_reason_names_what_is_missing(out: Path, key: CycleKey) -> None:
    assert find(out, replace(key, study="other")).reason == "no earlier run of this study"
    assert find(out, replace(key, config_hash="f" * 16)).reason == "no earlier run of this configuration"
    assert find(out, replace(key, cycle=2)).reason == "no earlier cycle 2"


def test_invalid_results_are_not_reused(out: Path, key: CycleKey, bench: Bench, worker: MakeWorker) -> None:
    second = replace(key, cycle=2)
    spoilt = replace(bench.measurement(), invalid=(Note("throttled", "3 s"),))
    get_or_measure(RunStore.open(out / "run-1"), second, worker(second, spoilt))
    assert find(out, second).reason == "cycle 2 was invalid (throttled)"


def test_a_renamed_experiment_is_found_by_its_configuration(out: Path, key: CycleKey) -> None:
    renamed = replace(key, experiment_id="another name")
    reuse = find(out, renamed)
    assert reuse.result is not None
    store = RunStore.create(out, "run-2", environment=HERE)
    outcome = get_or_measure(store, renamed, never, reuse=lambda: reuse)
    assert outcome.result is not None
    assert outcome.result.experiment.id == "another name"


def test_the_present_run_does_not_count_as_earlier(out: Path, key: CycleKey) -> None:
    assert EarlierRuns(out, "run-1").find(key, place(HERE)).result is None


def test_the_newest_of_several_results_is_taken(out: Path, key: CycleKey, worker: MakeWorker) -> None:
    later = worker(key)
    later.run_id = "run-2"
    outcome = get_or_measure(RunStore.create(out, "run-2", environment=HERE), key, later)
    file = JobDir(outcome.directory).result
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "created_at": "2999-01-01T00:00:00+00:00"}))
    found = find(out, key).result
    assert found is not None
    assert found.run_id == "run-2"


def test_what_was_judged_by_other_limits_is_measured_again(out: Path, key: CycleKey) -> None:
    reuse = EarlierRuns(out, "run-9").find(key, place(HERE), {"clocks_rel": 0.1})
    assert (reuse.result, reuse.reason) == (None, "it was judged by other limits of validity")


@pytest.mark.parametrize("name", ["result.json", "state.json"])
@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"schema_version": 99}', "\0", None])
def test_what_cannot_be_read_is_measured_again(
    out: Path, key: CycleKey, worker: MakeWorker, name: str, content: str | None
) -> None:
    """One truncated file of one earlier run must not end every later run."""
    (file,) = out.glob(f"run-1/*/*/c1/{name}")
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    store = RunStore.create(out, "run-2", environment=HERE)
    outcome = get_or_measure(store, key, worker(key), reuse=lambda: EarlierRuns(out, "run-2").find(key, place(HERE)))
    assert (outcome.state, outcome.source_run) == ("valid", None)
    (item,) = rebuild_manifest(store.run_dir).items
    assert item.not_reused is not None
    assert item.not_reused.startswith(f"cycle 1 is unreadable: {file}")


def test_an_older_result_serves_where_the_newest_cannot_be_read(out: Path, key: CycleKey, worker: MakeWorker) -> None:
    outcome = get_or_measure(RunStore.create(out, "run-2", environment=HERE), key, worker(key))
    JobDir(outcome.directory).result.write_text("{")
    found = find(out, key).result
    assert found is not None
    assert found.run_id == "run-1"
