"""A container per cycle on a real daemon: what comes out, what is said when it fails, and that nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import docker
import pytest

from pytest_llem.containers import host_meter
from pytest_llem.containers.errors import translate_docker_error
from pytest_llem.containers.runner import DockerRunner
from pytest_llem.energy.protocol import Meter
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import DeviceSettings
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, load_job
from pytest_llem.job.measurement import EnergyReport, Window, read_measurement
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.study.runner_settings import DockerSettings
from tests.timed import on_a_clock

MakeJob = Callable[..., tuple[Job, JobDir]]
pytestmark = pytest.mark.docker

Event = dict[str, JsonValue]


class CountingMeter(Meter):
    """Stands in for RAPL, which this machine may not have: says when it was read, and for what."""

    name: ClassVar[str] = "rapl"
    sees_standstill: ClassVar[bool] = True

    def __init__(self) -> None:
        self.marks: list[int] = []
        self.windows: tuple[Window, ...] = ()

    def start(self) -> None:
        self.mark()

    def mark(self) -> int:
        self.marks.append(time.monotonic_ns())
        return self.marks[-1]

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        self.windows = tuple(windows)
        return EnergyReport("rapl", True, "cpu_package", "host", (), ())


def run(
    image: str, make_job: MakeJob, script: str = "work", settings: DockerSettings | None = None, **more: object
) -> tuple[RunReport, JobDir, list[Event]]:
    job, job_dir = make_job(script, **more)
    events: list[Event] = []
    runner = DockerRunner(RunnerSpec("docker", "study", image=image), settings)
    try:
        report = runner.run(job, job_dir, lambda event: events.append(dict(event)))
    finally:
        runner.close()
    return report, job_dir, events


def error_of(job_dir: JobDir) -> dict[str, JsonValue]:
    assert not job_dir.measurement.exists()
    return read_json(job_dir.error)


def test_a_cycle_leaves_its_files_and_no_container(engine_image: str, make_job: MakeJob) -> None:
    report, job_dir, events = run(engine_image, make_job)

    measurement = read_measurement(job_dir.measurement)
    assert [request.output_tokens for request in measurement.requests[:2]] == [4, 4]
    assert not job_dir.error.exists()
    written = [json.loads(line) for line in job_dir.events.read_text().splitlines()]
    assert events == written
    assert events[0]["event"] == "clock"
    assert events[-1]["name"] == "done"
    assert (report.name, report.source, report.image) == ("docker", "study", engine_image)
    assert str(report.image_digest).startswith("sha256:")
    assert job_dir.measurement.stat().st_uid == os.getuid()


def test_the_container_is_closed_in(engine_image: str, make_job: MakeJob) -> None:
    report, job_dir, _ = run(engine_image, make_job)

    effective = read_measurement(job_dir.measurement).engine.effective
    assert effective["network"] == ["lo"]
    assert effective["home"] == "/llem/home"
    assert effective["nccl"] == "lo"
    assert report.facts["network"] == "none"
    assert report.facts["capabilities"] == ()


def test_what_the_container_is_created_with(
    client: docker.DockerClient, engine_image: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecretvalue")
    job, job_dir = make_job()
    seen: list[dict[str, JsonValue]] = []

    def look(event: object) -> None:
        if not seen:
            (container,) = client.containers.list(filters={"label": "llem.session"})
            seen.append(container.attrs)

    runner = DockerRunner(RunnerSpec("docker", "study", image=engine_image), DockerSettings(memory=2**30))
    runner.run(job, job_dir, look)
    runner.close()

    host = seen[0]["HostConfig"]
    assert isinstance(host, dict)
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Init"] is True
    assert host["Memory"] == host["MemorySwap"] == 2**30
    assert host["NetworkMode"] == "none"
    assert host["ShmSize"] == 8 * 2**30
    assert "hf_thisisasecretvalue" not in json.dumps(seen), "without a network nobody needs the token"


def test_a_container_has_the_cpus_and_the_memory_of_its_experiment(engine_image: str, make_job: MakeJob) -> None:
    """Which CPUs a job names was nothing to its container."""
    first = min(os.sched_getaffinity(0))
    job, job_dir = make_job()
    device = DeviceSettings(kind="cpu", cpus=str(first), numa_node=0)
    job = replace(job, config=replace(job.config, device=device))
    runner = DockerRunner(RunnerSpec("docker", "study", image=engine_image), DockerSettings())

    report = runner.run(job, job_dir, lambda event: None)
    runner.close()

    assert read_measurement(job_dir.measurement).environment["cpus_allowed"] == 1
    assert (report.facts["cpuset_cpus"], report.facts["cpuset_mems"]) == (str(first), "0")


def test_the_workers_own_error_is_kept(engine_image: str, make_job: MakeJob) -> None:
    _, job_dir, events = run(engine_image, make_job, "raise")

    error = error_of(job_dir)
    assert error["message"] == "ValueError: bloom-560m: tokenizer not found in the room"
    assert error["origin"] == "worker"
    assert events[-1]["name"] == "failed"


@pytest.mark.parametrize(
    ("script", "category"),
    [
        ("exit 0", "app_error"),
        ("exit 3", "app_error"),
        ("crash", "segfault"),
        ("exit 135", "shm"),
        ("exit 143", "terminated"),
    ],
)
def test_a_worker_that_says_nothing_is_spoken_for(
    engine_image: str, make_job: MakeJob, script: str, category: str
) -> None:
    _, job_dir, _ = run(engine_image, make_job, script)

    error = error_of(job_dir)
    assert error["category"] == category
    assert error["origin"] == "runner"
    assert str(job_dir.path) in str(error["message"])
    assert error["phase"] == "load"


def test_running_out_of_host_memory_is_told_from_other_kills(engine_image: str, make_job: MakeJob) -> None:
    _, job_dir, _ = run(engine_image, make_job, "grow", DockerSettings(memory=256 * 2**20))

    error = error_of(job_dir)
    assert error["category"] == "host_oom"
    assert "memory" in str(error["fix"])


@on_a_clock
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Deadlines(timeout_s=8.0, heartbeat_s=0.2), "timeout_s"),
        (Deadlines(timeout_s=60.0, load_timeout_s=1.0, heartbeat_s=0.2), "load_timeout_s"),
        (Deadlines(timeout_s=60.0, heartbeat_s=30.0, silence_s=2.0), "sign of life"),
    ],
)
def test_a_deadline_kills_and_removes_the_container(
    client: docker.DockerClient, engine_image: str, make_job: MakeJob, limits: Deadlines, said: str
) -> None:
    """Guards against killing the command-line client while the container runs on."""
    _, job_dir, _ = run(engine_image, make_job, "sleep", deadlines=limits)

    error = error_of(job_dir)
    assert error["category"] == "timeout"
    assert said in str(error["message"])
    assert client.containers.list(all=True, filters={"label": "llem.session"}) == []
    assert '"load"' in job_dir.events.read_text(), "the events of a killed worker are evidence"


def test_a_flood_of_output_neither_hangs_nor_hides_the_result(engine_image: str, make_job: MakeJob) -> None:
    """Guards against results that share a pipe with the output."""
    _, job_dir, _ = run(engine_image, make_job, "print NOTHING")

    assert job_dir.measurement.exists()
    assert "y" * 300_000 in job_dir.log.read_text()


def test_secrets_reach_the_worker_and_no_file(
    engine_image: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecretvalue")

    report, job_dir, _ = run(engine_image, make_job, "print HF_TOKEN", DockerSettings(network="host"))

    assert "***" in job_dir.log.read_text().splitlines()[0]
    assert report.facts["secrets"] == ("HF_TOKEN",)
    for path in job_dir.path.iterdir():
        assert "hf_thisisasecretvalue" not in path.read_text()
    assert "hf_thisisasecretvalue" not in repr(report)


def test_a_local_model_is_mounted_where_it_is(engine_image: str, make_job: MakeJob, tmp_path: Path) -> None:
    """A path with a colon, which `volumes=` strings would cut in two."""
    model = tmp_path / "my:model"
    model.mkdir()
    (model / "config.json").write_text("weights of " + "gold")

    report, job_dir, _ = run(engine_image, make_job, f"read {model}/config.json", model=str(model))

    assert "weights of gold" in job_dir.log.read_text()
    assert report.facts["mounts"] == (str(model),)


def test_a_missing_mount_is_named(engine_image: str, make_job: MakeJob, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")

    _, job_dir, _ = run(engine_image, make_job, settings=DockerSettings(mounts=(missing,)))

    error = error_of(job_dir)
    assert error["category"] == "mount_missing"
    assert missing in str(error["message"])


def test_an_absent_image_that_may_not_be_pulled(client: docker.DockerClient, make_job: MakeJob) -> None:
    _, job_dir, _ = run("llem-no-such-image:v9", make_job, settings=DockerSettings(pull="never"))

    assert error_of(job_dir)["category"] == "image_not_found"


def test_a_pull_that_cannot_reach_the_registry(client: docker.DockerClient, make_job: MakeJob) -> None:
    """A name under .invalid never resolves, so this is a real network error wherever the test runs."""
    _, job_dir, _ = run("registry.invalid/llem/engine:v9", make_job, settings=DockerSettings(pull_timeout_s=10.0))

    assert error_of(job_dir)["category"] == "network"


def test_a_gpu_without_a_runtime_is_refused_at_once(
    client: docker.DockerClient, engine_image: str, make_job: MakeJob
) -> None:
    if "nvidia" in (client.info().get("Runtimes") or {}):
        pytest.skip("this daemon has a GPU runtime")

    _, job_dir, _ = run(engine_image, make_job, devices=DeviceSet("cuda", ("GPU-0",)))

    assert error_of(job_dir)["category"] == "gpu_runtime_missing"


def test_an_image_without_python_is_told(client: docker.DockerClient, make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /Dockerfile\n")
    client.images.build(path=str(tmp_path / "context"), tag="llem-test-empty", rm=True)

    _, job_dir, _ = run("llem-test-empty", make_job)

    assert error_of(job_dir)["category"] == "command_missing"


def test_a_daemon_that_is_not_there(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    _, job_dir, _ = run("any", make_job)

    assert error_of(job_dir)["category"] == "daemon_down"


@pytest.mark.skipif(not (shutil.which("setpriv") and shutil.which("docker")), reason="needs setpriv and docker")
def test_a_user_without_the_right_to_use_the_daemon() -> None:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if os.getuid() != 0 or not host.startswith("unix://"):
        pytest.skip("only root can become another user, and only a socket file has permissions")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    ended = subprocess.run([*nobody, "docker", "-H", host, "version"], capture_output=True, text=True, check=False)

    assert translate_docker_error(ended.returncode, ended.stderr, "any").category == "daemon_permission"


def test_a_sensor_of_the_host_is_read_on_the_host(
    engine_image: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker brings windows, this side the energy; both read one clock, which the handshake proves."""
    meter = CountingMeter()
    monkeypatch.setattr(host_meter, "host_meter_name", lambda job, daemon: "rapl")
    monkeypatch.setattr(host_meter, "open_meter", lambda settings, devices, out_dir, server: meter)

    _, job_dir, _ = run(engine_image, make_job)

    measurement = read_measurement(job_dir.measurement)
    assert measurement.energy is not None
    assert measurement.energy.placement == "host"
    assert measurement.invalid == ()
    assert load_job(job_dir.job).meter.placement == "host"
    (measured,) = [window for window in meter.windows if window.name == "measure"]
    assert any(measured.start_ns <= mark for mark in meter.marks)
