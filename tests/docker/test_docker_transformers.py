"""The shipped transformers image, really built, and the same study in it and beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.containers.runner import DockerRunner
from pytest_llem.job.config import IdleSettings, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import Measurement, read_measurement
from pytest_llem.job.report import RunnerSpec
from pytest_llem.job.wire import encode
from pytest_llem.runners.local import LocalRunner
from pytest_llem.runners.protocol import Runner
from pytest_llem.study.runner_settings import DockerSettings

pytestmark = [pytest.mark.docker, pytest.mark.engine]


def measure(runner: Runner, directory: Path, small: Job) -> Measurement:
    """One cycle on the built-in model."""
    config = replace(
        small.config,
        workload=WorkloadSettings("synthetic", prompts=4, input_tokens=32, output_tokens=16, seed=7),
        measurement=MeasurementSettings(min_duration_s=0.2, idle=IdleSettings(duration_s=0.0)),
    )
    job = replace(small, config=config, deadlines=replace(small.deadlines, timeout_s=120.0))
    job_dir = JobDir(directory / f"{runner.spec.name}-{small.cycle}")
    job_dir.write_job(job)
    runner.run(job, job_dir, lambda event: None)
    assert not job_dir.error.exists(), job_dir.error.read_text()
    return read_measurement(job_dir.measurement)


def work(measurement: Measurement) -> dict[str, object]:
    """What has to be the same wherever a cycle runs: that of one repeat."""
    first = [request for request in measurement.requests if request.repeat == 0]
    return {
        "prompts": measurement.prompts_hash,
        "outputs": {repeat.outputs_hash for repeat in measurement.repeats},
        "tokens": [(request.index, request.input_tokens, request.output_tokens) for request in first],
    }


def encoded(measurement: Measurement) -> dict[str, object]:
    """As it is written to `measurement.json`."""
    data = encode(measurement)
    assert isinstance(data, dict)
    return dict(data)


def test_a_container_does_the_same_work_as_a_local_process(
    transformers_image: str, tmp_path: Path, small_job: Callable[..., Job]
) -> None:
    pytest.importorskip("transformers")
    job = small_job(1, engine="transformers", settings={"batch_size": 2})
    local = LocalRunner(RunnerSpec("local", "study"), tmp_path)
    contained = DockerRunner(
        RunnerSpec("docker", "study", image=transformers_image), DockerSettings(lifecycle="session")
    )
    try:
        beside, inside = measure(local, tmp_path, job), measure(contained, tmp_path, job)
    finally:
        local.close()
        contained.close()

    assert work(beside) == work(inside)
    assert {window.name for window in beside.windows} == {window.name for window in inside.windows}
    assert encoded(inside).keys() == encoded(beside).keys()
    assert inside.worker.start_method == "forkserver"
    assert inside.engine.effective["dtype"] == beside.engine.effective["dtype"]


def test_the_image_runs_as_its_own_user_and_needs_no_network(
    transformers_image: str, tmp_path: Path, small_job: Callable[..., Job]
) -> None:
    runner = DockerRunner(RunnerSpec("docker", "study", image=transformers_image))
    try:
        measurement = measure(runner, tmp_path, small_job(1, engine="transformers", settings={"batch_size": 2}))
        facts = runner.image("transformers")
    finally:
        runner.close()

    assert facts.user == "llem"
    assert facts.labels["llem.engine"] == "transformers"
    assert measurement.worker.isolation == "container"
