"""The daemon goes away under a running cycle: on a daemon of the test's own, since others use the shared one."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from pytest_llem.containers.orphaned_containers import SESSION_LABEL, remove_orphans
from pytest_llem.containers.runner import DockerRunner
from pytest_llem.errors import JsonValue
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import RunnerSpec

MakeJob = Callable[..., tuple[Job, JobDir]]
pytestmark = pytest.mark.docker


class OwnDaemon:
    """A dockerd with its own directory, which can be stopped and started."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix://{directory}/docker.sock"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> docker.DockerClient:
        at = self._directory
        command = ["dockerd", "--data-root", str(at / "data"), "--exec-root", str(at / "exec"), "-H", self.address]
        command += ["--pidfile", str(at / "pid"), "--iptables=false", "--ip6tables=false", "--bridge=none"]
        with (at / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while True:
            try:
                client = docker.DockerClient(base_url=self.address)
                client.ping()
                return client
            except docker.errors.DockerException:
                assert self._process.poll() is None, (at / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "the daemon does not answer"
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


@pytest.fixture
def own_daemon(
    client: docker.DockerClient,
    engine_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unavailable: Callable[[str], None],
) -> Iterator[OwnDaemon]:
    if os.getuid() != 0 or not shutil.which("dockerd"):
        unavailable("a second daemon needs root and dockerd")
    # A socket's path may have at most 107 characters, and mounts must not lie under pytest's own clean-up
    directory = Path(f"/tmp/llem-dockerd-{os.getpid()}")
    directory.mkdir()
    daemon = OwnDaemon(directory)
    own = daemon.start()
    own.images.load(b"".join(client.images.get(engine_image).save(named=True)))
    monkeypatch.setenv("DOCKER_HOST", daemon.address)
    yield daemon
    daemon.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_a_restarting_daemon_ends_the_cycle_and_leaves_nothing(
    own_daemon: OwnDaemon, engine_image: str, make_job: MakeJob
) -> None:
    job, job_dir = make_job("sleep")
    runner = DockerRunner(RunnerSpec("docker", "study", image=engine_image))
    restarted = threading.Event()
    clients: list[docker.DockerClient] = []

    def restart() -> None:
        own_daemon.stop()
        clients.append(own_daemon.start())
        restarted.set()

    def at_load(event: object) -> None:
        if isinstance(event, dict) and event.get("name") == "load" and not started:
            started.append(True)
            threading.Thread(target=restart).start()

    started: list[bool] = []
    runner.run(job, job_dir, at_load)
    assert restarted.wait(60)
    runner.close()

    error: dict[str, JsonValue] = read_json(job_dir.error)
    assert error["category"] in ("daemon_down", "killed", "terminated")
    assert clients[0].containers.list(filters={"label": SESSION_LABEL}) == []
    remove_orphans(clients[0])
