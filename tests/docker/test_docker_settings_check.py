"""Settings are compared with the signatures of the engine that an image holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.containers.runner import DockerRunner
from pytest_llem.job.job import DeviceSet, Job
from pytest_llem.job.report import RunnerSpec

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("nothing_is_left")]


def test_an_image_without_the_engine_says_why_nothing_was_compared(
    base_image: str, small_job: Callable[..., Job], tmp_path: Path
) -> None:
    runner = DockerRunner(RunnerSpec("docker", "command line", image=base_image))
    config = small_job(1, engine="transformers", settings={"batch_size": 1}).config

    report = runner.check_settings([config], tmp_path, DeviceSet("cpu"))

    runner.close()
    assert report.problems == ()
    assert "transformers is not installed here" in str(report.unchecked)


def test_an_image_that_is_not_there_says_so(small_job: Callable[..., Job], tmp_path: Path) -> None:
    runner = DockerRunner(RunnerSpec("docker", "command line", image="llem-no-such-image:1"))

    report = runner.check_settings([small_job(1, engine="transformers").config], tmp_path, DeviceSet("cpu"))

    runner.close()
    assert "llem-no-such-image:1" in str(report.unchecked)


@pytest.mark.engine
def test_the_images_own_engine_is_asked(transformers_image: str, small_job: Callable[..., Job], tmp_path: Path) -> None:
    runner = DockerRunner(RunnerSpec("docker", "command line", image=transformers_image))
    right = small_job(1, engine="transformers", settings={"batch_size": 2, "num_beams": 2}).config
    wrong = replace(right, settings={"extra": {"typical_q": 0.9}})

    report = runner.check_settings([right, wrong], tmp_path, DeviceSet("cpu"))

    runner.close()
    assert report.unchecked is None
    assert [(problem.path, problem.fix) for problem in report.problems] == [
        ("transformers.extra.typical_q", "did you mean 'typical_p'?")
    ]
