"""The shipped Dockerfiles, built on a local base, and daemons that a context names."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from pytest_llem import doctor
from pytest_llem.containers.images import DefaultImage, default_image, ensure_image, image_facts, own_image
from pytest_llem.containers.runner import DockerRunner
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import RunnerSpec
from pytest_llem.study.runner_settings import DockerSettings

MakeJob = Callable[..., tuple[Job, JobDir]]
pytestmark = pytest.mark.docker

SHIPPED = Path(__file__).parents[2] / "images"


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt_llm"])
def test_an_image_is_small_labelled_and_not_root(client: docker.DockerClient, base_image: str, engine: str) -> None:
    """The base stands in for the upstream image, which holds the engine."""
    name = f"llem-test-shipped-{engine}"
    client.images.build(
        path=str(SHIPPED / engine), tag=name, buildargs={"BASE_IMAGE": base_image}, network_mode="none", rm=True
    )

    facts = image_facts(client, name)

    assert facts is not None
    assert facts.user == "1000"
    assert facts.labels["llem.engine"] == engine
    sizes = [client.images.get(image).attrs["Size"] for image in (name, base_image)]
    assert sizes[0] - sizes[1] < 2**20


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "tensorrt_llm"])
def test_every_engine_has_a_bake_target(engine: str) -> None:
    bake = (SHIPPED / "docker-bake.hcl").read_text()

    assert f'target "{engine}" {{' in bake
    assert f'context  = "images/{engine}"' in bake
    assert (SHIPPED / engine / "Dockerfile").exists()


def test_a_pull_that_may_pass_is_tried_again(client: docker.DockerClient) -> None:
    told: list[str] = []

    with pytest.raises(Exception, match="network"):
        ensure_image(client, "registry.invalid/llem/x:1", timeout_s=30.0, tell=told.append, backoff_s=0.01)

    assert len(told) == 2
    assert "trying again" in told[0]


def test_an_unknown_engine_without_an_image_is_an_error_of_its_own(
    client: docker.DockerClient, make_job: MakeJob
) -> None:
    job, job_dir = make_job(engine="homemade")
    runner = DockerRunner(RunnerSpec("docker", "study"))

    runner.run(job, job_dir, lambda event: None)
    runner.close()

    assert "no default image" in str(read_json(job_dir.error)["message"])


def test_the_default_image_is_the_publishers_unless_the_own_one_is_present(
    client: docker.DockerClient, base_image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody had published the own ones, so `--llem-runner=docker` ended with an image that could not be pulled."""
    before = default_image(client, "sglang")
    client.images.get(base_image).tag(own_image("sglang"))
    try:
        after = default_image(client, "sglang")
        doctor.run(argparse.Namespace(calibrate=False, json=True, restore=False))
    finally:
        client.images.remove(own_image("sglang"))

    assert before == DefaultImage("lmsysorg/sglang:v0.5.20", own=False, present=False)
    assert after == DefaultImage(own_image("sglang"), own=True, present=True)
    found = {each["subject"]: each["message"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["image of sglang"] == f"{own_image('sglang')}: this project's own, which is present"
    assert found["image of vllm"].startswith("vllm/vllm-openai:v0.26.0-cu129: its publisher's, since ")


def test_a_default_image_that_cannot_be_pulled_names_ways_out(client: docker.DockerClient, make_job: MakeJob) -> None:
    job, job_dir = make_job(engine="vllm")
    runner = DockerRunner(RunnerSpec("docker", "study"), DockerSettings(pull="never"))

    runner.run(job, job_dir, lambda event: None)
    runner.close()

    error = read_json(job_dir.error)
    assert error["category"] == "image_not_found"
    assert "vllm/vllm-openai:v0.26.0-cu129" in str(error["message"])
    assert f"build images/vllm as {own_image('vllm')}" in str(error["fix"])


@pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker command, to make a context")
def test_the_current_context_names_the_daemon(
    client: docker.DockerClient,
    engine_image: str,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
    for command in (["create", "far", "--docker", f"host={address}"], ["use", "far"]):
        subprocess.run(["docker", "context", *command], check=True, capture_output=True)
    job, job_dir = make_job()
    runner = DockerRunner(RunnerSpec("docker", "study", image=engine_image))

    runner.run(job, job_dir, lambda event: None)
    runner.close()

    assert job_dir.measurement.exists(), job_dir.error.read_text()
