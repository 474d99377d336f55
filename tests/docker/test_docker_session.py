"""Long-lived containers on a real daemon: many cycles in one container, each in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import docker
import pytest

from pytest_llem.containers.runner import DockerRunner
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Deadlines, Job, JobDir
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.study.runner_settings import DockerSettings

MakeJob = Callable[..., tuple[Job, JobDir]]
pytestmark = pytest.mark.docker


@pytest.fixture
def runner(engine_image: str) -> Iterator[DockerRunner]:
    settings = DockerSettings(lifecycle="session", memory=256 * 2**20, max_restarts=1)
    made = DockerRunner(RunnerSpec("docker", "study", image=engine_image), settings)
    yield made
    made.close()


def run(runner: DockerRunner, make_job: MakeJob, script: str = "work", **more: object) -> tuple[RunReport, str]:
    """The report and how the cycle ended: `measured`, or the category of its error."""
    job, job_dir = make_job(script, **more)
    report = runner.run(job, job_dir, lambda event: None)
    if job_dir.measurement.exists():
        assert not job_dir.error.exists()
        return report, "measured"
    return report, str(read_json(job_dir.error)["category"])


def test_cycles_share_a_container_and_no_process(
    client: docker.DockerClient, runner: DockerRunner, make_job: MakeJob
) -> None:
    pids = set()
    containers = set()
    for _ in range(3):
        job, job_dir = make_job()
        report = runner.run(job, job_dir, lambda event: None)
        pids.add(read_measurement(job_dir.measurement).worker.pid)
        containers.add(report.facts["container"])

    assert len(pids) == 3
    assert len(containers) == 1
    assert report.isolation == "process"
    assert report.facts["restarts"] == 0
    runner.close()
    assert client.api.containers(all=True, filters={"label": "llem.session"}) == []


def test_a_failing_worker_does_not_cost_the_container(runner: DockerRunner, make_job: MakeJob) -> None:
    first, outcome = run(runner, make_job, "raise")
    assert outcome == "error"
    second, outcome = run(runner, make_job)

    assert outcome == "measured"
    assert first.facts["container"] == second.facts["container"]


@pytest.mark.parametrize(("script", "category"), [("exit 3", "app_error"), ("crash", "segfault"), ("grow", "host_oom")])
def test_after_a_crash_the_container_is_replaced(
    runner: DockerRunner, make_job: MakeJob, script: str, category: str
) -> None:
    first, outcome = run(runner, make_job, script)
    assert outcome == category
    second, outcome = run(runner, make_job)

    assert outcome == "measured"
    assert first.facts["container"] != second.facts["container"]
    assert second.facts["restarts"] == 1


def test_a_deadline_removes_the_container_and_the_next_cycle_gets_another(
    client: docker.DockerClient, runner: DockerRunner, make_job: MakeJob
) -> None:
    _, outcome = run(runner, make_job, "sleep", deadlines=Deadlines(timeout_s=2.0, heartbeat_s=0.2))
    assert outcome == "timeout"
    assert client.api.containers(all=True, filters={"label": "llem.session"}) == []

    assert run(runner, make_job)[1] == "measured"


def test_restarts_in_a_row_are_bounded(runner: DockerRunner, make_job: MakeJob) -> None:
    outcomes = [run(runner, make_job, "exit 3")[1] for _ in range(3)]

    assert outcomes == ["app_error", "app_error", "docker"]


def test_a_container_that_was_stopped_meanwhile_is_noticed(
    client: docker.DockerClient, runner: DockerRunner, make_job: MakeJob
) -> None:
    report, _ = run(runner, make_job)
    client.containers.get(str(report.facts["container"])).kill()

    report, outcome = run(runner, make_job)

    assert outcome == "measured"
    assert report.facts["restarts"] == 1
