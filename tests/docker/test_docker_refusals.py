"""What the daemon here really says when it refuses, and what it is taken for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace

import docker
import pytest
from docker.types import DeviceRequest

from pytest_llem.containers import runner as docker_runner
from pytest_llem.containers.daemon import daemon_facts, docker_errors
from pytest_llem.containers.errors import DockerError, translate_docker_error
from pytest_llem.job.files import read_json
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import RunnerSpec

MakeJob = Callable[..., tuple[Job, JobDir]]
pytestmark = pytest.mark.docker


@pytest.fixture
def without_gpus(client: docker.DockerClient) -> None:
    if daemon_facts(client).gpus:
        pytest.skip("this daemon has a GPU runtime")


def test_a_runtime_that_is_not_installed(client: docker.DockerClient, base_image: str, without_gpus: None) -> None:
    with pytest.raises(DockerError) as caught, docker_errors(base_image):
        client.containers.create(base_image, "true", runtime="nvidia", network_mode="none").remove()

    assert caught.value.category == "gpu_runtime_missing"


def test_a_gpu_request_without_a_driver_for_it(
    client: docker.DockerClient, base_image: str, without_gpus: None
) -> None:
    gpu = DeviceRequest(device_ids=["GPU-0"], capabilities=[["gpu"]])
    container = client.containers.create(base_image, "true", device_requests=[gpu], network_mode="none")

    with pytest.raises(DockerError) as caught, docker_errors(base_image):
        container.start()
    container.remove()

    assert caught.value.category == "gpu_runtime_missing"
    assert "capabilities" in caught.value.message


def test_a_gpu_that_cannot_be_handed_over_leaves_no_container(
    client: docker.DockerClient,
    engine_image: str,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    without_gpus: None,
) -> None:
    """A failing start leaves a created container behind, also one that was to be removed by itself."""
    monkeypatch.setattr(docker_runner, "daemon_facts", lambda client: replace(daemon_facts(client), gpus=True))
    job, job_dir = make_job(devices=DeviceSet("cuda", ("GPU-0",)))
    runner = docker_runner.DockerRunner(RunnerSpec("docker", "study", image=engine_image))

    runner.run(job, job_dir, lambda event: None)

    assert read_json(job_dir.error)["category"] == "gpu_runtime_missing"
    assert client.api.containers(all=True, filters={"label": "llem.session"}) == []
    runner.close()


def test_a_name_that_is_taken(client: docker.DockerClient, base_image: str) -> None:
    first = client.containers.create(base_image, "true", name="llem-test-twice", network_mode="none")

    with pytest.raises(DockerError) as caught, docker_errors(base_image):
        client.containers.create(base_image, "true", name="llem-test-twice", network_mode="none")
    first.remove()

    assert caught.value.category == "name_conflict"


def test_a_program_that_is_not_there(client: docker.DockerClient, base_image: str) -> None:
    container = client.containers.create(base_image, "no-such-program", network_mode="none")

    with pytest.raises(DockerError) as caught, docker_errors(base_image):
        container.start()
    container.remove(force=True)

    assert caught.value.category == "command_missing"


def test_a_program_that_init_does_not_find(client: docker.DockerClient, base_image: str) -> None:
    """With an init the start succeeds, and the init says what is missing."""
    container = client.containers.create(base_image, "no-such-program", init=True, network_mode="none")
    container.start()
    code = container.wait()["StatusCode"]
    said = container.logs().decode()
    container.remove(force=True)

    assert translate_docker_error(code, said, base_image).category == "command_missing", said


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_an_image_for_another_processor(client: docker.DockerClient, make_job: MakeJob) -> None:
    """The init falls back to a shell and reports a missing file, so only the image's own word tells the cause."""
    foreign_elf = b"\x7fELF\x02\x02\x01" + b"\0" * 9 + b"\0\x02\0\x16" + b"\0" * 100
    layer = packed(bin__python3=foreign_elf)
    config = {
        "architecture": "s390x",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["llem-test-other-processor:latest"], "Layers": ["layer.tar"]}]
    client.images.load(
        packed(config_json=json.dumps(config).encode(), manifest_json=json.dumps(manifest).encode(), layer_tar=layer)
    )
    job, job_dir = make_job()
    runner = docker_runner.DockerRunner(RunnerSpec("docker", "study", image="llem-test-other-processor"))

    report = runner.preflight("scripted_engine", [job.config], job.devices)
    runner.run(job, job_dir, lambda event: None)
    runner.close()

    assert [problem.category for problem in report.problems] == ["arch_mismatch"]
    error = read_json(job_dir.error)
    assert error["category"] == "arch_mismatch", error
    assert "s390x" in str(error["message"])
