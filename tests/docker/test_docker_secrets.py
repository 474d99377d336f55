"""What `docker inspect` and the daemon's log show of a container that needs secrets: none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import docker
import pytest

from pytest_llem.containers.images import image_facts
from pytest_llem.containers.options import ContainerRequest, create
from pytest_llem.containers.orphaned_containers import SESSION_LABEL
from pytest_llem.containers.runner import DockerRunner
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import RunnerSpec
from pytest_llem.study.runner_settings import DockerSettings
from tests.hostile.gossip import spellings

pytestmark = pytest.mark.docker

MakeJob = Callable[..., tuple[Job, JobDir]]
TOKEN = "hf_thisisasecretvalue"
PASSWORD = "pass-of-the-proxy"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("https_proxy", f"http://agent:{PASSWORD}@127.0.0.1:9")


def shown(inspected: Any) -> list[str]:
    text = json.dumps(inspected)
    return [written for secret in (TOKEN, PASSWORD) for written in spellings(secret).values() if written in text]


@pytest.mark.parametrize("lifecycle", ["ephemeral", "session"])
def test_a_worker_has_them_and_inspect_does_not(
    client: docker.DockerClient, engine_image: str, make_job: MakeJob, lifecycle: Literal["ephemeral", "session"]
) -> None:
    inspected: list[Any] = []
    logs = []
    settings = DockerSettings(network="host", lifecycle=lifecycle)
    runner = DockerRunner(RunnerSpec("docker", "study", image=engine_image), settings)

    def look(event: Mapping[str, JsonValue]) -> None:
        if event["event"] == "clock":
            running = client.api.containers(filters={"label": SESSION_LABEL})
            inspected.append([client.api.inspect_container(container["Id"]) for container in running])

    try:
        for name in ("HF_TOKEN", "https_proxy"):
            job, job_dir = make_job(f"print {name}")
            job_dir = directory_of(job_dir, name)
            runner.run(job, job_dir, look)
            logs.append(job_dir.log.read_text())
    finally:
        runner.close()

    assert len(inspected) == 2
    assert all(inspected)
    assert shown(inspected) == []
    assert all("***" in log for log in logs)


def directory_of(job_dir: JobDir, name: str) -> JobDir:
    """A directory of its own for each job."""
    path = job_dir.path / name
    path.mkdir()
    return JobDir(path)


def test_a_servers_image_finds_the_hubs_token_in_a_file(client: docker.DockerClient, base_image: str) -> None:
    image = image_facts(client, base_image)
    assert image is not None
    request = ContainerRequest(
        name="llem-test-secrets",
        image=image,
        command=("-c", 'cat "$HF_TOKEN_PATH"; echo; echo "$https_proxy"'),
        devices=DeviceSet("cpu"),
        settings=DockerSettings(),
        network="none",
        secrets={"HF_TOKEN": TOKEN, "https_proxy": f"http://agent:{PASSWORD}@127.0.0.1:9", "OPENAI_API_KEY": TOKEN},
        waits=False,
        entrypoint=("sh",),
    )
    container = create(client, replace(request, labels={"llem.test": "secrets"}))
    try:
        container.start()
        container.wait(timeout=120)
        container.reload()
        assert shown(container.attrs) == []
        assert container.logs().decode().split() == [TOKEN, "http://127.0.0.1:9"]
    finally:
        container.remove(force=True)
