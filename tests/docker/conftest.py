"""A real daemon and the images that the tests run in.

Without a daemon the tests are skipped, or fail where LLEM_REQUIRE_DOCKER=1 says that there has to be one;
`.ci/docker-for-tests.sh` makes one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest
from filelock import FileLock

from pytest_llem.containers.daemon import connect
from pytest_llem.containers.errors import DockerError
from pytest_llem.containers.orphaned_containers import SESSION_LABEL
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Decoding, ExperimentConfig, IdleSettings, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings

BASE_IMAGE = "llem-test-base"
ENGINE_IMAGE = "llem-test-engine"
HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "images" / "transformers"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip, or fail where the environment promises what is missing."""
    if os.environ.get("LLEM_REQUIRE_DOCKER") == "1":
        pytest.fail(f"LLEM_REQUIRE_DOCKER=1, and {reason}")
    pytest.skip(f"{reason} (.ci/docker-for-tests.sh provides it)")


@pytest.fixture(scope="session")
def unavailable() -> Callable[[str], NoReturn]:
    return skip_or_fail


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    try:
        connected = connect(30.0)
    except DockerError as error:
        skip_or_fail(error.message)
    yield connected
    connected.close()


@pytest.fixture(scope="session")
def base_image(client: docker.DockerClient) -> str:
    if not client.images.list(BASE_IMAGE):
        skip_or_fail(f"the daemon has no image {BASE_IMAGE}")
    return BASE_IMAGE


@pytest.fixture(scope="session")
def engine_image(client: docker.DockerClient, base_image: str) -> str:
    """The base image with the scripted engine."""
    client.images.build(path=str(HERE / "engine"), tag=ENGINE_IMAGE, buildargs={"BASE_IMAGE": base_image}, rm=True)
    return ENGINE_IMAGE


@pytest.fixture(scope="session")
def transformers_image(client: docker.DockerClient, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped Dockerfile on the local base, from wheels that were laid out before; kept between runs."""
    wheels = os.environ.get("LLEM_TEST_WHEELS")
    if not wheels:
        skip_or_fail("LLEM_TEST_WHEELS names no folder with the wheels of images/transformers/requirements.txt")
    recipe = b"".join((SHIPPED / name).read_bytes() for name in ("Dockerfile", "requirements.txt"))
    name = f"llem-test-transformers:{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not client.images.list(name):
        context = tmp_path_factory.mktemp("context")
        for part in ("Dockerfile", "requirements.txt"):
            shutil.copy(SHIPPED / part, context / part)
        shutil.copytree(str(wheels), context / "wheels")
        client.images.build(
            path=str(context),
            tag=name,
            buildargs={"BASE_IMAGE": base_image, "PIP_ARGS": "--no-index", "VERSION": "test"},
            network_mode="none",
            rm=True,
        )
    return name


@pytest.fixture(autouse=True)
def nothing_is_left(client: docker.DockerClient) -> Iterator[None]:
    """No test may leave a container of this plugin behind, running or not.

    One test at a time, also under xdist: what one process sees would be another's otherwise.
    """
    with FileLock(Path(tempfile.gettempdir()) / "llem-docker-tests.lock"):
        yield
        deadline = time.monotonic() + 60.0  # a removal that is under way takes a moment
        while (left := client.api.containers(all=True, filters={"label": SESSION_LABEL})) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        for entry in left:
            client.api.remove_container(entry["Id"], force=True)
        assert [entry["Names"] for entry in left] == []


def write_small_job(
    cycle: int,
    script: str = "work",
    *,
    engine: str = "scripted",
    model: str = "builtin:tiny-llama",
    devices: DeviceSet | None = None,
    deadlines: Deadlines | None = None,
    settings: dict[str, JsonValue] | None = None,
) -> Job:
    """A job of a few milliseconds; `script` is what the scripted engine does in `load`."""
    config = ExperimentConfig(
        model=model,
        engine=engine,
        dtype="float32" if engine == "transformers" else None,
        weights="real",
        workload=WorkloadSettings("synthetic", prompts=2, input_tokens=8, output_tokens=4, seed=0),
        decoding=Decoding(),
        measurement=MeasurementSettings(min_duration_s=0.05, idle=IdleSettings(duration_s=0.0)),
        settings=settings if settings is not None else {"script": script},
    )
    return Job(
        run_id="run",
        study="study",
        experiment_id=f"script:{script.split(' ')[0]}",
        config_hash="0" * 16,
        config=config,
        cycle=cycle,
        attempt=1,
        devices=devices or DeviceSet("cpu"),
        meter=MeterSettings(),
        deadlines=deadlines or Deadlines(timeout_s=60.0, heartbeat_s=0.2),
        environment={"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def small_job() -> Callable[..., Job]:
    return write_small_job


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., tuple[Job, JobDir]]:
    """Write a small job with its own directory."""
    numbers = itertools.count(1)

    def make(script: str = "work", **more: Any) -> tuple[Job, JobDir]:
        number = next(numbers)
        job, job_dir = write_small_job(number, script, **more), JobDir(tmp_path / f"job-{number}")
        job_dir.write_job(job)
        return job, job_dir

    return make
