"""What the engine in an image says to the settings of a study, before anything is measured in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence

import docker
import requests
from docker.errors import DockerException

from pytest_llem.containers.archive import JOBS, job_archive, worker_archive
from pytest_llem.containers.daemon import docker_errors
from pytest_llem.containers.identity import SessionIdentity
from pytest_llem.containers.options import ContainerRequest, ImageFacts, create
from pytest_llem.containers.orphans import removed_after
from pytest_llem.containers.settings import DockerSettings
from pytest_llem.decode import decode, encode
from pytest_llem.engines.signatures import REPORT_MARK, SignatureReport
from pytest_llem.job import DeviceSet, ExperimentConfig

NAME = "settings"
DEADLINE_S = 300


def check_settings_in_image(
    client: docker.DockerClient,
    image: ImageFacts,
    configs: Sequence[ExperimentConfig],
    devices: DeviceSet,
    settings: DockerSettings,
    identity: SessionIdentity,
) -> SignatureReport:
    """Compare settings with the signatures of the image's engine, which is imported in a container of its own.

    What keeps it from being compared is the report's `unchecked`; only a daemon's refusal raises `DockerError`.
    """
    request = ContainerRequest(
        name=f"llem-settings-{uuid.uuid4().hex[:8]}",
        image=image,
        program="-m",
        command=("pytest_llem.engines.signatures", f"{JOBS}/{NAME}/job.json"),
        devices=devices,
        settings=settings,
        network="none",
        labels=identity.labels(NAME),
        waits=False,
    )
    with docker_errors(image.name):
        container = create(client, request)
    with removed_after(container):
        try:
            container.put_archive("/", worker_archive())
            container.put_archive("/", job_archive(json.dumps(encode(configs)).encode(), NAME))
            container.start()
            code = int(container.wait(timeout=DEADLINE_S)["StatusCode"])
            output = container.logs(stdout=True, stderr=True).decode("utf-8", "replace")
        except (DockerException, requests.exceptions.RequestException) as problem:
            return SignatureReport(unchecked=f"{image.name}: {problem}")
    for line in reversed(output.splitlines()):
        if line.startswith(REPORT_MARK):
            report: Mapping[str, object] = json.loads(line.removeprefix(REPORT_MARK))
            return decode(SignatureReport, report)
    last = output.strip().rpartition("\n")[2][:200]
    return SignatureReport(unchecked=f"{image.name}: the comparison of settings ended with exit code {code}: {last}")
