"""However pytest ends, its container ends too: each way on a real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import docker
import psutil
import pytest

from pytest_llem.containers.orphaned_containers import SESSION_LABEL, remove_orphans
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Job, JobDir

pytestmark = pytest.mark.docker

CYCLE = """
    from pathlib import Path
    import pytest
    from pytest_llem.study.runner_settings import DockerSettings
    from pytest_llem.job.job import JobDir, load_job
    from pytest_llem.containers.runner import DockerRunner
    from pytest_llem.job.report import RunnerSpec

    def test_cycle():
        job_dir = JobDir(Path({job_dir!r}))
        runner = DockerRunner(RunnerSpec("docker", "study", image={image!r}), DockerSettings(lifecycle={lifecycle!r}))
        try:
            runner.run(load_job(job_dir.job), job_dir, lambda event: None)
        finally:
            runner.close()
"""

Launch = Callable[..., "Launched"]


class Launched:
    """A pytest process whose container sleeps in its engine."""

    def __init__(self, process: subprocess.Popen[bytes], job_dir: JobDir) -> None:
        self.process = process
        self.job_dir = job_dir

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


@pytest.fixture
def launch(client: docker.DockerClient, engine_image: str, tmp_path: Path, small_job: Callable[..., Job]) -> Launch:
    def start(*options: str, lifecycle: str = "ephemeral") -> Launched:
        job_dir = JobDir(tmp_path / "job")
        job_dir.write_job(small_job(1, "sleep"))
        test = tmp_path / "test_cycle.py"
        test.write_text(
            textwrap.dedent(CYCLE).format(job_dir=str(job_dir.path), image=engine_image, lifecycle=lifecycle)
        )
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(test)],
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(lambda: job_dir.events.exists() and '"load"' in job_dir.events.read_text(), process)
        return Launched(process, job_dir)

    return start


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if process is not None and process.poll() is not None:
            assert process.stdout is not None
            pytest.fail(process.stdout.read().decode())
        assert time.monotonic() < deadline, "it did not happen within 120 s"
        time.sleep(0.05)


def running(client: docker.DockerClient) -> list[str]:
    return [str(container.name) for container in client.containers.list(filters={"label": SESSION_LABEL})]


@pytest.mark.parametrize("lifecycle", ["ephemeral", "session"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_pytest_takes_its_container_along(
    client: docker.DockerClient, launch: Launch, number: int, lifecycle: str
) -> None:
    """Guards against orphans: nobody is left who could remove the container, so it ends itself."""
    launched = launch(lifecycle=lifecycle)
    assert len(running(client)) == 1

    launched.signal(number)
    launched.process.wait(120)

    wait_for(lambda: running(client) == [])
    wait_for(lambda: len(remove_orphans(client)) >= 0 and client.api.containers(all=True, filters=LABELLED) == [])


LABELLED: dict[str, str | list[str] | bool] = {"label": SESSION_LABEL}


@pytest.mark.parametrize("lifecycle", ["ephemeral", "session"])
def test_ctrl_c_removes_the_container_and_says_so(client: docker.DockerClient, launch: Launch, lifecycle: str) -> None:
    launched = launch(lifecycle=lifecycle)

    launched.signal(signal.SIGINT)
    output, _ = launched.process.communicate(timeout=120)

    assert launched.process.returncode == pytest.ExitCode.INTERRUPTED, output.decode()
    assert client.api.containers(all=True, filters=LABELLED) == []
    assert read_json(launched.job_dir.error)["category"] == "interrupted"


def test_ctrl_c_twice_leaves_nothing_either(client: docker.DockerClient, launch: Launch) -> None:
    launched = launch()

    launched.signal(signal.SIGINT)
    time.sleep(0.02)
    launched.signal(signal.SIGINT)
    launched.process.communicate(timeout=120)

    wait_for(lambda: running(client) == [])
    remove_orphans(client)
    assert client.api.containers(all=True, filters=LABELLED) == []


def test_a_crashing_xdist_worker_takes_its_container_along(client: docker.DockerClient, launch: Launch) -> None:
    launched = launch("-p", "xdist", "-n", "1", "--max-worker-restart=0")
    (worker,) = psutil.Process(launched.process.pid).children()

    worker.kill()
    output, _ = launched.process.communicate(timeout=120)

    assert launched.process.returncode == pytest.ExitCode.TESTS_FAILED, output.decode()
    wait_for(lambda: running(client) == [])
    remove_orphans(client)


def test_a_container_that_somebody_removes_is_an_error(client: docker.DockerClient, launch: Launch) -> None:
    launched = launch()

    (container,) = client.containers.list(filters=LABELLED)
    container.remove(force=True)
    output, _ = launched.process.communicate(timeout=120)

    assert launched.process.returncode == 0, output.decode()
    error = read_json(launched.job_dir.error)
    assert error["category"] in ("killed", "daemon_down")


def test_containers_of_live_and_of_foreign_sessions_are_left_alone(
    client: docker.DockerClient, engine_image: str
) -> None:
    from pytest_llem.containers.orphaned_containers import SessionIdentity

    mine = SessionIdentity().labels("run")
    foreign = {**mine, "llem.host": "another", "llem.boot": "another"}
    dead = {**mine, "llem.pid-start": "1"}
    made = [
        client.containers.create(engine_image, "true", labels=labels, name=name)
        for name, labels in (("llem-mine", mine), ("llem-foreign", foreign), ("llem-dead", dead))
    ]

    removed = remove_orphans(client)

    left = sorted(str(entry["Names"][0]) for entry in client.api.containers(all=True, filters=LABELLED))
    for container in made:
        if container.name != "llem-dead":
            container.remove(force=True)
    assert removed == ["llem-dead"]
    assert left == ["/llem-foreign", "/llem-mine"]
