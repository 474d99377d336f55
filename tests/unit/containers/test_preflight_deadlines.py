"""What preflight reports of an image when one of its checks takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound

from pytest_llem.containers import preflight as checks
from pytest_llem.containers.daemon import DaemonFacts, in_background
from pytest_llem.containers.orphaned_containers import SessionIdentity
from pytest_llem.job.job import DeviceSet
from pytest_llem.study.runner_settings import DockerSettings
from tests.unit.worker.scripted import make_job

DAEMON = DaemonFacts("unix:///nowhere", True, "24", "1.43", "x86_64", False, False, (), "/nowhere")


class Hasty(Future[Any]):
    """Waits a moment where preflight would wait for half a minute."""

    def __init__(self, real: Future[Any]) -> None:
        self._real = real

    def result(self, timeout: float | None = None) -> Any:
        return self._real.result(0.5)


def no_image(name: str) -> None:
    raise ImageNotFound(f"No such image: {name}")


def test_a_hub_that_does_not_answer_hides_no_other_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would mend one problem and meet the next, where all were known."""

    def hasty(call: Callable[[], Any], name: str) -> Future[Any]:
        return Hasty(in_background(call, name))

    monkeypatch.setattr(checks, "in_background", hasty)
    monkeypatch.setattr(checks, "hub_problem", lambda name, image: time.sleep(5))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    settings = DockerSettings(pull="never", mounts=(str(tmp_path / "nowhere"),))
    config = replace(make_job().config, engine="vllm", model="owner/name")
    client: Any = SimpleNamespace(ping=lambda: None, images=SimpleNamespace(get=no_image))

    subject = checks.PreflightSubject("vllm", "image", [config], DeviceSet("cpu"), settings)
    report = checks.preflight(client, DAEMON, subject, SessionIdentity())

    assert sorted(problem.category for problem in report.problems) == ["image_not_found", "mount_missing", "timeout"]
