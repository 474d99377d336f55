"""What preflight finds, on a real daemon: all of it at once, and before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import docker
import pytest

from pytest_llem.containers.runner import DockerRunner
from pytest_llem.job.job import DeviceSet, Job
from pytest_llem.job.report import RunnerSpec
from pytest_llem.runners.protocol import PreflightReport
from pytest_llem.study.runner_settings import DockerSettings

pytestmark = pytest.mark.docker


Check = Callable[..., PreflightReport]


@pytest.fixture
def check(small_job: Callable[..., Job]) -> Check:
    return partial(run_checks, small_job)


def run_checks(
    small_job: Callable[..., Job],
    image: str | None,
    engine: str = "scripted_engine",
    settings: DockerSettings | None = None,
    model: str = "builtin:tiny-llama",
    devices: DeviceSet | None = None,
) -> PreflightReport:
    config = replace(small_job(1).config, engine=engine, model=model)
    runner = DockerRunner(RunnerSpec("docker", "study", image=image), settings)
    try:
        return runner.preflight(engine, [config], devices or DeviceSet("cpu"))
    finally:
        runner.close()


def categories(report: PreflightReport) -> list[str]:
    return [problem.category for problem in report.problems]


def test_a_good_image_has_no_problem(check: Check, client: docker.DockerClient, engine_image: str) -> None:
    report = check(engine_image)

    assert categories(report) == []
    assert report.facts["image"]["python"].startswith("3.")
    assert report.facts["daemon"]["version"]
    assert report.notices == ()


def test_an_image_without_the_engine(check: Check, engine_image: str) -> None:
    report = check(engine_image, engine="vllm")

    assert categories(report) == ["image_contents"]
    assert "'vllm'" in report.problems[0].message


def test_a_client_in_an_image_without_its_packages(check: Check, engine_image: str) -> None:
    """The probe once called this image good, and every cycle in it failed."""
    report = check(engine_image, engine="openai")

    assert categories(report) == ["image_contents"]
    assert "'aiohttp'" in report.problems[0].message
    assert "--llem-runner=openai=local" in (report.problems[0].fix or "")


def test_a_client_has_no_image_of_its_own(check: Check, client: docker.DockerClient) -> None:
    [problem] = check(None, engine="openai").problems

    assert "no default image" in problem.message
    assert "--llem-runner=openai=local" in (problem.fix or "")


def test_all_problems_are_told_together(check: Check, engine_image: str, tmp_path: Path) -> None:
    settings = DockerSettings(mounts=(str(tmp_path / "nowhere"),))

    report = check(engine_image, engine="vllm", settings=settings)

    assert sorted(categories(report)) == ["image_contents", "mount_missing"]


def test_an_image_that_is_nowhere(check: Check, client: docker.DockerClient) -> None:
    assert categories(check("llem-nowhere:1", settings=DockerSettings(pull="never"))) == ["image_not_found"]
    assert categories(check("registry.invalid/llem/nowhere:1")) == ["network"]


def test_a_gpu_that_the_daemon_cannot_give(check: Check, client: docker.DockerClient, engine_image: str) -> None:
    if "nvidia" in (client.info().get("Runtimes") or {}):
        pytest.skip("this daemon has a GPU runtime")

    assert categories(check(engine_image, devices=DeviceSet("cuda", ("GPU-0",)))) == ["gpu_runtime_missing"]


def test_a_model_that_the_hub_cannot_be_asked_for(
    check: Check, engine_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    report = check(engine_image, model="llem/none-such")

    assert categories(report) == ["network"]
    assert "llem/none-such" in report.problems[0].message


def test_a_daemon_that_is_not_there(check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    assert categories(check("any")) == ["daemon_down"]
