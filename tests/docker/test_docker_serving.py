"""Servers that are started in containers: the same life as a command's, and nothing left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest

from pytest_llem.containers.daemon import daemon_facts
from pytest_llem.containers.orphaned_containers import SESSION_LABEL
from pytest_llem.engines.builtin import builtin_path
from pytest_llem.errors import JsonValue, RunnerError
from pytest_llem.job.files import read_json
from pytest_llem.job.job import DeviceSet, Job, load_job
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE
from pytest_llem.machine.leases import take_lease
from pytest_llem.servers.container import require_local
from tests.plugin.serving.bench import GONE_S, SERVER, Bench, error_of, job_of

pytestmark = pytest.mark.docker

SERVER_IMAGE = "llem-test-server"
DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY scripted_server.py /scripted_server.py
ENTRYPOINT ["python3", "/scripted_server.py"]
"""


@pytest.fixture(scope="session")
def server_image(client: docker.DockerClient, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock server image: its entry point is the server."""
    context = tmp_path_factory.mktemp("server")
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / SERVER.name).write_bytes(SERVER.read_bytes())
    client.images.build(path=str(context), tag=SERVER_IMAGE, buildargs={"BASE_IMAGE": base_image}, rm=True)
    return SERVER_IMAGE


@pytest.fixture
def bench(tmp_path: Path, server_image: str) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.runner.close()


def job(cycle: int, *faults: str, image: str = SERVER_IMAGE, **settings: JsonValue) -> Job:
    arguments: list[JsonValue] = ["--model", "{model}", "--port", "{port}", "--host", "{host}", *faults]
    told: dict[str, Any] = {"command": None, "image": image, "server_args": arguments, **settings}
    return job_of(cycle, **told)


def containers(client: docker.DockerClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.api.containers(all=True, filters={"label": SESSION_LABEL})
    return found


def test_cycles_share_a_server_in_its_stock_image(bench: Bench, client: docker.DockerClient) -> None:
    first_dir, first = bench.run(job(1))
    _, second = bench.run(replace(job(2), experiment_id="other"))

    assert first_dir.measurement.exists()
    assert (first["started_as"], first["network"], first["image"]) == ("container", "host", SERVER_IMAGE)
    assert first["image_digest"].startswith("sha256:")
    assert second["reused"]
    assert second["container"] == first["container"]
    [running] = containers(client)
    [mount] = running["Mounts"]
    model = str(builtin_path("builtin:tiny-llama"))
    assert (mount["Source"], mount["Destination"], mount["RW"]) == (model, model, False)
    assert f"serving {model}" in bench.log(1)
    server = load_job(first_dir.job).server
    assert server is not None
    assert server.pid is not None
    programs = [process.cmdline() for process in psutil.Process(server.pid).children(recursive=True)]
    assert any("/scripted_server.py" in program for program in programs), "its CPU time is counted"

    bench.runner.unload()
    assert containers(client) == []


def test_a_command_stands_in_place_of_the_images_entry_point(bench: Bench, base_image: str) -> None:
    command: list[JsonValue] = ["python3", str(SERVER)]
    bench.runner._docker = {"mounts": [str(SERVER.parent)]}
    job_dir, server = bench.run(job(1, image=base_image, command=command, environment={"GREETING": "hello"}))

    assert job_dir.measurement.exists()
    assert server["command"][:2] == command


def test_a_container_that_ends_early_or_in_a_cycle_is_told_with_its_last_words(bench: Bench) -> None:
    early_dir, _ = bench.run(job(1, "--fault", "early"))
    bench.client.requests = 20
    died_dir, _ = bench.run(job(2, "--fault", "mid"))

    early, died = error_of(early_dir), error_of(died_dir)
    assert (early["category"], died["category"]) == ("server_start", "server_died")
    assert (early["details"]["exit_code"], died["details"]["exit_code"]) == (3, 7)
    assert early["log_tail"][-1] == "ValueError: this model cannot be served"
    assert died["log_tail"][-1] == "RuntimeError: the model fell over"
    assert not bench.runner.loaded


def test_an_image_that_is_not_there_is_said_before_anything_is_started(bench: Bench) -> None:
    absent = job(1, image="llem-test-no-such-image")
    bench.runner._docker = {"pull": "never"}
    [problem] = bench.runner.preflight("openai", [absent.config], DeviceSet("cpu")).problems
    job_dir, _ = bench.run(absent)

    assert problem.category == "image_not_found"
    assert error_of(job_dir)["category"] == "image_not_found"


def test_a_daemon_elsewhere_is_refused(client: docker.DockerClient) -> None:
    with pytest.raises(RunnerError, match="is not on this machine") as caught:
        require_local(replace(daemon_facts(client), local=False), SERVER_IMAGE)
    assert "base_url" in str(caught.value.fix)


HOLDER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.docker.test_docker_serving import job
from pytest_llem.job.job import DeviceSet, JobDir, load_job
from pytest_llem.machine.leases import take_lease
from tests.plugin.serving.bench import Bench
lease = take_lease(DeviceSet("cpu"), timeout_s=60)
bench, job_dir = Bench(Path(sys.argv[2])), JobDir(Path(sys.argv[2]) / "job-1")
job_dir.write_job(job(1, "--fault", "stubborn"))
server = bench.runner.run(load_job(job_dir.job), job_dir, lambda event: None, lease).facts["server"]
print(json.dumps(server), flush=True)
time.sleep(600)
"""


def test_no_container_outlives_a_killed_pytest(
    client: docker.DockerClient, server_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGKILL, and before another session could sweep; its devices are nobody else's until it is gone."""
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "leases"))
    root = str(Path(__file__).parents[2])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, root, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert holder.stdout is not None
    assert json.loads(holder.stdout.readline())["started_as"] == "container"
    assert len(containers(client)) == 1

    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    # Left to itself the container is removed; whoever takes the lease meanwhile waits for that
    with take_lease(DeviceSet("cpu"), timeout_s=GONE_S):
        assert containers(client) == []
    assert read_json(tmp_path / "job-1" / "job.json")["server"]
