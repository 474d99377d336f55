"""A daemon that is reached over TCP or ssh: the same real daemon, through another door."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from pytest_llem.containers.images import image_facts
from pytest_llem.containers.orphaned_containers import SessionIdentity
from pytest_llem.containers.runner import LEASE_PREFIX, DockerRunner, remote_lease
from pytest_llem.errors import DeviceError
from pytest_llem.job.files import read_json
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.report import RunnerSpec, RunReport

MakeJob = Callable[..., tuple[Job, JobDir]]
pytestmark = pytest.mark.docker


@pytest.fixture
def daemon_socket(client: docker.DockerClient) -> str:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        pytest.skip("the daemon is remote already")
    return address.removeprefix("unix://")


@pytest.fixture
def over_tcp(daemon_socket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DOCKER_HOST names a TCP port of this machine that leads to the daemon."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(daemon_socket)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    yield
    listener.close()


def run(image: str, make_job: MakeJob, **more: object) -> tuple[RunReport, JobDir]:
    job, job_dir = make_job(**more)
    runner = DockerRunner(RunnerSpec("docker", "study", image=image))
    try:
        return runner.run(job, job_dir, lambda event: None), job_dir
    finally:
        runner.close()


def test_a_cycle_on_a_remote_daemon(over_tcp: None, engine_image: str, make_job: MakeJob) -> None:
    report, job_dir = run(engine_image, make_job)

    measurement = read_measurement(job_dir.measurement)
    assert report.facts["daemon_local"] is False
    assert measurement.energy is not None
    assert measurement.energy.placement == "worker"
    assert '"done"' in job_dir.events.read_text()


def test_local_files_cannot_be_mounted_far_away(
    over_tcp: None, engine_image: str, make_job: MakeJob, tmp_path: Path
) -> None:
    _, job_dir = run(engine_image, make_job, model=str(tmp_path))

    error = read_json(job_dir.error)
    assert error["category"] == "mount_missing"
    assert "remote" in str(error["message"])


def test_a_cycle_over_ssh(
    daemon_socket: str, engine_image: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The far end of ssh is replaced by this machine: the command that ssh would run there is run here."""
    if not shutil.which("docker"):
        pytest.skip("ssh to a daemon needs the docker command on the far side")
    shim = tmp_path / "bin" / "ssh"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nfor last; do :; done\nDOCKER_HOST=unix://{daemon_socket} exec sh -c "$last"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", "ssh://somebody@far.invalid")

    report, job_dir = run(engine_image, make_job)

    assert job_dir.measurement.exists(), job_dir.error.read_text()
    assert report.facts["daemon_local"] is False


def test_a_lease_excludes_others_until_it_is_released(client: docker.DockerClient, engine_image: str) -> None:
    image = image_facts(client, engine_image)
    assert image is not None
    one, other = SessionIdentity(), SessionIdentity()
    devices = DeviceSet("cuda", ("GPU-b", "GPU-a"))
    waited: list[str] = []

    with remote_lease(client, image, devices, one, "run", timeout_s=5) as names:
        assert names == (f"{LEASE_PREFIX}GPU-a", f"{LEASE_PREFIX}GPU-b")
        with (
            pytest.raises(DeviceError, match="GPU-b"),
            remote_lease(
                client, image, DeviceSet("cuda", ("GPU-b",)), other, "run", timeout_s=0.5, on_wait=waited.append
            ),
        ):
            pytest.fail("two sessions held one device")
    with remote_lease(client, image, devices, other, "run", timeout_s=5):
        pass

    assert len(waited) == 1


HOLDER = """
import sys, time
from pytest_llem.containers.daemon import connect
from pytest_llem.containers.orphaned_containers import SessionIdentity
from pytest_llem.containers.images import image_facts
from pytest_llem.containers.runner import remote_lease
from pytest_llem.job.job import DeviceSet
client = connect()
with remote_lease(client, image_facts(client, sys.argv[1]), DeviceSet("cpu"), SessionIdentity(), "run", timeout_s=5):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lease_ends_with_its_client(client: docker.DockerClient, engine_image: str) -> None:
    """Guards against a device that stays locked because its holder was killed."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, engine_image], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    image = image_facts(client, engine_image)
    assert image is not None

    holder.kill()
    holder.wait()
    begun = time.monotonic()
    with remote_lease(client, image, DeviceSet("cpu"), SessionIdentity(), "run", timeout_s=20):
        waited_s = time.monotonic() - begun

    assert waited_s < 20
