"""The same name is the same input only while the same lies under it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.job.config import Arrival, ExperimentConfig
from pytest_llem.job.job import JobDir
from pytest_llem.job.measurement import write_measurement
from pytest_llem.machine.environment import READ_WHOLE_BYTES, content_digest, identity, input_facts
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.comparability import conditions
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.resume import EarlierRuns, Reuse
from pytest_llem.results.store import RunStore
from tests.unit.results.conftest import REPORT, Bench

Configure = Callable[..., ExperimentConfig]


@pytest.fixture
def configure(bench: Bench, key: CycleKey) -> Configure:
    def make(dataset: Path | str = "synthetic", **changes: object) -> ExperimentConfig:
        config = bench.job(key).config
        return replace(config, workload=replace(config.workload, dataset=str(dataset)), **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


@pytest.fixture
def resume(tmp_path: Path, bench: Bench, key: CycleKey) -> Callable[[ExperimentConfig], Reuse]:
    """Measures a configuration in one run, and then looks for it from the next."""
    out = tmp_path / "out"

    def look(config: ExperimentConfig) -> Reuse:
        if not out.exists():
            job = replace(bench.job(key), config=config)

            def measure(attempt: int, job_dir: JobDir) -> tuple[object, object]:
                job_dir.write_job(job)
                write_measurement(job_dir.measurement, bench.measurement())
                return job, REPORT

            get_or_measure(RunStore.create(out, "run-1", environment={}), key, measure)  # type: ignore[arg-type]
        here = identity(
            {},
            engine=config.engine,
            runner="local",
            image=None,
            device_kind="cpu",
            device_count=0,
            meter="auto",
            inputs=input_facts(config),
        )
        return EarlierRuns(out, "run-2").find(key, here)

    return look


def test_an_edited_data_set_is_measured_again(
    prompts: Path, configure: Configure, resume: Callable[[ExperimentConfig], Reuse]
) -> None:
    """The old result was adopted: its prompts were others."""
    config = configure(prompts)
    assert resume(config).result is not None
    os.utime(prompts, ns=(0, 0))
    assert resume(config).result is not None
    prompts.write_text("one\ntwo\nfour!\n")
    reuse = resume(config)
    assert reuse.result is None
    assert str(reuse.reason).startswith("dataset_files: ")


def test_an_edited_file_of_arrival_times_is_measured_again(
    prompts: Path, tmp_path: Path, configure: Configure, resume: Callable[[ExperimentConfig], Reuse]
) -> None:
    times = tmp_path / "times.txt"
    times.write_text("0\n1\n")
    config = configure(prompts)
    config = replace(config, workload=replace(config.workload, arrival=Arrival("schedule", file=str(times))))
    assert resume(config).result is not None
    times.write_text("0\n2\n")
    assert str(resume(config).reason).startswith("arrival_file: ")


def test_a_model_directory_counts_with_all_its_files(tmp_path: Path, configure: Configure) -> None:
    model = tmp_path / "model"
    (model / "tokenizer").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    facts = input_facts(configure(model=str(model), lora=str(model)))
    assert set(facts) == {"model_files", "lora_files", "lora_fingerprint"}
    (model / ".lock").write_text("x")
    assert input_facts(configure(model=str(model)))["model_files"] == facts["model_files"]
    (model / "tokenizer" / "vocab.txt").write_text("a")
    assert input_facts(configure(model=str(model)))["model_files"] != facts["model_files"]


def test_large_files_count_by_size_and_time(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as stream:
        stream.truncate(READ_WHOLE_BYTES + 1)
    os.utime(weights, ns=(5, 5))
    before = content_digest(weights)
    assert content_digest(weights) == before
    os.utime(weights, ns=(6, 6))
    assert content_digest(weights) != before


def test_the_hubs_inputs_count_by_their_commit(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = configure("aienergyscore", model="owner/name")
    assert input_facts(config) == {}
    for directory, commit in (("models--owner--name", "abc"), ("datasets--EnergyStarAI--text_generation", "def")):
        (tmp_path / directory / "refs").mkdir(parents=True)
        (tmp_path / directory / "refs" / "main").write_text(f"{commit}\n")
    assert input_facts(config) == {"model_commit": "abc", "dataset_commit": "def"}
    assert input_facts(replace(config, revision="v2")) == {"dataset_commit": "def"}


def test_what_is_made_or_served_elsewhere_has_no_facts(configure: Configure) -> None:
    assert input_facts(configure()) == {}
    assert input_facts(configure(engine="openai", model="served/name")) == {}


def test_the_model_of_a_server_that_is_started_is_one_of_its_inputs(tmp_path: Path, configure: Configure) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    config = configure(engine="openai", model=str(model))
    assert input_facts(config) == {}
    assert list(input_facts(replace(config, settings={"command": ["serve"]}))) == ["model_files"]


def test_another_adapter_of_the_same_name_is_another_condition(
    tmp_path: Path, configure: Configure, bench: Bench, key: CycleKey
) -> None:
    def found() -> dict[str, object]:
        job = replace(bench.job(key), config=configure(lora=str(tmp_path / "lora")))
        return dict(conditions(derive_result(job, bench.measurement(), REPORT, study=key.study, environment={})))

    (tmp_path / "lora").mkdir()
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(b"a" * 100)
    before = found()
    os.utime(weights, ns=(5, 5))
    assert found() == before
    weights.write_bytes(b"b" * 100)
    assert {name for name, value in found().items() if value != before[name]} == {"lora_fingerprint"}
