"""What is recorded of a cycle on this machine, whatever its runner does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.engines import builtin
from pytest_llem.engines.builtin import builtin_place
from pytest_llem.errors import EngineSettingError, LlemError
from pytest_llem.job.job import DeviceSet, Job, JobDir, load_job
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.lease_files import is_free
from pytest_llem.machine.leases import Lease, LeaseRequest
from pytest_llem.runners.measure_here import CycleRequest, HeldDevices, error_of, measure_here
from pytest_llem.runners.protocol import OnEvent, Runner
from tests.unit.worker.scripted import make_job


class StartsNothing(Runner):
    """Fails each cycle before a worker could be started, as Docker does without an image."""

    spec = RunnerSpec("local", "study")

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        assert lease is not None
        assert not is_free("cpu")
        job_dir.write_error(LlemError("there is no such image"))
        return RunReport("local", "study", "process", facts={"own": True})

    def close(self) -> None:
        """Nothing is kept."""


@pytest.fixture
def request_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CycleRequest:
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    return CycleRequest(
        make_job().config,
        Demand("cpu", ("cpu",), 1),
        LeaseRequest("study one c1", "run"),
        lambda devices: make_job(),
        tmp_path / "run",
        residual_bytes=0,
        cooldown="auto",
        before_run=lambda devices: Note("settings_unchecked", "nothing to compare"),
    )


def test_a_cycle_whose_settings_are_refused_leaves_its_job(tmp_path: Path, request_here: CycleRequest) -> None:
    """Whoever looks into it is asked for that file, and repeats the cycle with it."""
    job_dir = JobDir(tmp_path / "run" / "c1")

    def refuse(devices: DeviceSet) -> None:
        raise EngineSettingError("no such setting")

    with pytest.raises(EngineSettingError):
        measure_here(StartsNothing(), HeldDevices(), replace(request_here, before_run=refuse), job_dir)

    assert load_job(job_dir.job) == make_job()
    assert is_free("cpu")


class NeedsModel(StartsNothing):
    """Sees whether a built-in model is there when a cycle begins."""

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        assert builtin_place("builtin:tiny-llama").is_dir()
        return super().run(job, job_dir, on_event, lease)


def test_a_built_in_model_is_made_before_the_cycle_has_a_device(
    tmp_path: Path, request_here: CycleRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by the worker, it would count for the cycle's time limits, and keep a device from others."""
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    free: list[bool] = []

    def make(name: str, directory: Path) -> None:
        free.append(is_free("cpu"))

    monkeypatch.setattr(builtin, "make_builtin", make)
    wanted = replace(request_here, config=replace(make_job().config, model="builtin:tiny-llama"))
    measure_here(NeedsModel(), HeldDevices(), wanted, JobDir(tmp_path / "run" / "c1"))
    assert free == [True]


def test_a_cycle_without_a_worker_leaves_its_job_its_error_and_what_was_done(
    tmp_path: Path, request_here: CycleRequest
) -> None:
    """Its job used to be written before anything could fail; a report of the failure asks for that file."""
    job_dir, waits = JobDir(tmp_path / "run" / "c1"), list[str | None]()

    job, report = measure_here(StartsNothing(), HeldDevices(), request_here, job_dir, waits.append)

    error = error_of(job_dir)
    assert error is not None
    assert error.message == "there is no such image"
    assert load_job(job_dir.job) == job
    assert report.facts == {
        "own": True,
        "lease": ["cpu"],
        "cooldown_s": 0.0,
        "cooldown_ended": "first cycle",
        "concurrent_workers": 1,
    }
    assert [note.code for note in report.notes] == ["settings_unchecked"]
    assert waits == ["cooling down", None]
    assert is_free("cpu")
