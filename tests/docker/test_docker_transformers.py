"""The shipped transformers image, really built, and the same study in it and beside it."""

from __future__ import annotations

import time
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


def measure(runner: Runner, directory: Path, small: Job) -> tuple[Measurement, float]:
    """One cycle on the built-in model; the measurement, and what it took beyond the worker's own time in seconds."""
    config = replace(
        small.config,
        workload=WorkloadSettings("synthetic", prompts=4, input_tokens=32, output_tokens=16, seed=7),
        measurement=MeasurementSettings(min_duration_s=1.0, idle=IdleSettings(duration_s=0.0)),
    )
    job = replace(small, config=config, deadlines=replace(small.deadlines, timeout_s=120.0))
    job_dir = JobDir(directory / f"{runner.spec.name}-{small.cycle}")
    job_dir.write_job(job)
    begun = time.monotonic()
    runner.run(job, job_dir, lambda event: None)
    total = time.monotonic() - begun
    assert not job_dir.error.exists(), job_dir.error.read_text()
    measurement = read_measurement(job_dir.measurement)
    cycle_s = measurement.timing["cycle_s"]
    assert cycle_s is not None
    return measurement, total - cycle_s


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


def shape(value: object) -> object:
    """The keys of nested mappings, without what is data."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return type(value).__name__ if not isinstance(value, (list, tuple)) else "list"


def tokens_per_s(measurement: Measurement) -> float:
    seconds = sum(window.duration_s for window in measurement.windows if window.name == "measure")
    return sum(request.output_tokens for request in measurement.requests) / seconds


def joules_per_token(measurement: Measurement) -> float | None:
    if measurement.energy is None:
        return None
    joules = [window.energy_j for window in measurement.energy.windows if window.name == "measure"]
    if not joules or joules[0] is None:
        return None
    return joules[0] / sum(request.output_tokens for request in measurement.requests)


def test_a_container_does_the_same_work_as_a_local_process(
    transformers_image: str,
    tmp_path: Path,
    small_job: Callable[..., Job],
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("transformers")
    jobs = [small_job(cycle, engine="transformers", settings={"batch_size": 2}) for cycle in (1, 2)]
    local = LocalRunner(RunnerSpec("local", "study"), tmp_path)
    contained = DockerRunner(
        RunnerSpec("docker", "study", image=transformers_image), DockerSettings(lifecycle="session")
    )
    try:
        beside, inside = zip(
            *[(measure(local, tmp_path, job), measure(contained, tmp_path, job)) for job in jobs], strict=True
        )
    finally:
        local.close()
        contained.close()

    assert work(beside[1][0]) == work(inside[1][0])
    assert shape(encode(beside[1][0].windows)) == shape(encode(inside[1][0].windows))
    assert encoded(inside[1][0]).keys() == encoded(beside[1][0]).keys()
    assert inside[1][0].worker.start_method == "forkserver"
    assert inside[1][0].engine.effective["dtype"] == beside[1][0].engine.effective["dtype"]
    ratio = tokens_per_s(inside[1][0]) / tokens_per_s(beside[1][0])
    energies = joules_per_token(inside[1][0]), joules_per_token(beside[1][0])
    extra_s = inside[1][1] - beside[1][1]
    record_property("throughput_ratio", str(ratio))
    with capsys.disabled():
        energy = f"{energies[0] / energies[1]:.3f}" if energies[0] and energies[1] else "unknown"
        print(
            f"\ncontainer / local: throughput {ratio:.3f}, joules per token {energy}, extra per cycle {extra_s:.2f} s"
        )


def test_the_image_runs_as_its_own_user_and_needs_no_network(
    transformers_image: str, tmp_path: Path, small_job: Callable[..., Job]
) -> None:
    runner = DockerRunner(RunnerSpec("docker", "study", image=transformers_image))
    try:
        measurement, _ = measure(runner, tmp_path, small_job(1, engine="transformers", settings={"batch_size": 2}))
        facts = runner.image("transformers")
    finally:
        runner.close()

    assert facts.user == "llem"
    assert facts.labels["llem.engine"] == "transformers"
    assert measurement.worker.isolation == "container"
