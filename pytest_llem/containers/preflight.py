"""Checks, before the first cycle, everything that would make cycles in an image fail; reports all problems together.

`runner.DockerRunner` calls it once per engine and image. It must stay a matter of seconds: it pulls nothing and loads
no model.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException

from pytest_llem.containers.archive import JOBS, job_archive, worker_archive
from pytest_llem.containers.daemon import Call, DaemonFacts, docker_errors
from pytest_llem.containers.errors import DockerError, docker_error, translate_docker_error
from pytest_llem.containers.images import client_fix, foreign_architecture, image_facts
from pytest_llem.containers.inputs import hub_problem, inputs_of
from pytest_llem.containers.options import ContainerRequest, ImageFacts, create
from pytest_llem.containers.orphaned_containers import SessionIdentity, removed_after
from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import REPORT_MARK, SignatureReport
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.report import Note
from pytest_llem.job.wire import decode, encode
from pytest_llem.runners.protocol import PreflightReport
from pytest_llem.study.runner_settings import DockerSettings

OLDEST_API = (1, 40)
"""Docker 19.03, the first with device requests (Docker Engine API version history)."""

FREE_BYTES = 2 * 2**30
"""Chosen: what a cycle writes (caches of compiled kernels, results) fits several times."""

CLOCK_SKEW_S = 2.0
"""Chosen: well above what NTP allows and a slow answer adds; only times of day in reports depend on it."""

PROBE_MARK = "LLEM-PROBE "


@dataclass(frozen=True)
class PreflightSubject:
    """One engine in one image, with the experiments that will run there and their devices."""

    engine: str
    image: str
    configs: Sequence[ExperimentConfig]
    devices: DeviceSet
    settings: DockerSettings


class _Findings:
    def __init__(self) -> None:
        self.problems: list[DockerError] = []
        self.notices: list[Note] = []
        self.facts: dict[str, Any] = {}


Check = Callable[[_Findings], None]


def preflight(
    client: docker.DockerClient, daemon: DaemonFacts, subject: PreflightSubject, identity: SessionIdentity
) -> PreflightReport:
    """Run all checks in parallel, each within its own deadline; never raises for the problems that they find."""
    checks: list[tuple[str, float, Check]] = [
        ("daemon", 5.0, lambda found: _check_daemon(client, daemon, found)),
        ("disk", 5.0, lambda found: _check_disk(daemon, subject, found)),
        ("image", 60.0, lambda found: _check_image(client, daemon, subject, identity, found)),
        ("inputs", 30.0, lambda found: _check_inputs(daemon, subject, found)),
    ]
    begun = time.monotonic()
    found = _Findings()
    waiting = [(name, limit_s, *_started(check, name)) for name, limit_s, check in checks]
    for name, limit_s, own, pending in waiting:
        try:
            pending.result(begun + limit_s - time.monotonic())
        except TimeoutError:
            message = f"the check of the {name} took more than {limit_s:g} s"
            found.problems.append(docker_error("timeout", subject.image, message=message))
        except DockerError as error:
            found.problems.append(error)
        found.problems += own.problems
        found.notices += own.notices
        found.facts.update(own.facts)
    return PreflightReport(tuple(found.problems), tuple(found.notices), found.facts)


def _started(check: Check, name: str) -> tuple[_Findings, Call[None]]:
    own = _Findings()
    return own, Call(lambda: check(own), f"llem-preflight-{name}")


def _check_daemon(client: docker.DockerClient, daemon: DaemonFacts, found: _Findings) -> None:
    with docker_errors(daemon.address):
        client.ping()
    version = tuple(int(part) for part in daemon.api_version.split(".")[:2])
    if version < OLDEST_API:
        message = (
            f"daemon {daemon.version} speaks API {daemon.api_version}, 1.40 (Docker 19.03) is the oldest that works"
        )
        found.problems.append(docker_error("docker", daemon.address, message=message))
    found.facts["daemon"] = {"version": daemon.version, "address": daemon.address, "rootless": daemon.rootless}


def _check_disk(daemon: DaemonFacts, subject: PreflightSubject, found: _Findings) -> None:
    if not daemon.local or not Path(daemon.root_dir).is_dir():
        return
    free = shutil.disk_usage(daemon.root_dir).free
    found.facts["docker_free_bytes"] = free
    if free < FREE_BYTES:
        message = f"{free / 2**30:.1f} GiB free in {daemon.root_dir}"
        found.problems.append(docker_error("disk_full", subject.image, message=message))


def _check_image(
    client: docker.DockerClient,
    daemon: DaemonFacts,
    subject: PreflightSubject,
    identity: SessionIdentity,
    found: _Findings,
) -> None:
    if subject.devices.kind == "cuda" and not daemon.gpus:
        message = f"runtimes: {', '.join(daemon.runtimes)}; no CDI device nvidia.com/gpu"
        found.problems.append(docker_error("gpu_runtime_missing", subject.image, message=message))
        return
    image = image_facts(client, subject.image)
    if image is None:
        _check_pullable(client, subject, found)
        return
    try:
        answer = _probe(client, image, subject, identity)
    except DockerError:
        foreign = foreign_architecture(image, daemon)
        if foreign is None:
            raise
        raise docker_error("arch_mismatch", subject.image, message=foreign) from None
    found.facts["image"] = {"id": image.id, "digest": image.digest, **answer}
    found.problems += _judge(answer, image, subject)
    skew = abs(float(answer["realtime_s"]) - time.time())
    if skew > CLOCK_SKEW_S:
        found.notices.append(Note("clock_skew", f"the daemon's machine has another time of day, by {skew:.1f} s"))


def _check_pullable(client: docker.DockerClient, subject: PreflightSubject, found: _Findings) -> None:
    if subject.settings.pull == "never":
        message = "it is not present, and docker.pull is never"
        found.problems.append(docker_error("image_not_found", subject.image, message=message))
        return
    with docker_errors(subject.image):
        client.api.inspect_distribution(subject.image)  # type: ignore[no-untyped-call]
    message = f"{subject.image} is not present yet: what is inside is checked when it has been pulled"
    found.notices.append(Note("image_not_inspected", message))


def _probe(
    client: docker.DockerClient, image: ImageFacts, subject: PreflightSubject, identity: SessionIdentity
) -> dict[str, Any]:
    request = ContainerRequest(
        name=f"llem-preflight-{uuid.uuid4().hex[:8]}",
        image=image,
        command=("-m", "pytest_llem.worker.probe", subject.engine, *engine_info(subject.engine).modules),
        devices=subject.devices,
        settings=subject.settings,
        network="none",
        labels=identity.labels("preflight"),
        waits=False,
    )
    with docker_errors(image.name):
        container = create(client, request)
    with removed_after(container):
        try:
            with docker_errors(image.name):
                container.put_archive("/", worker_archive())
                container.start()
                code = int(container.wait(timeout=45)["StatusCode"])
                output = container.logs(stdout=True, stderr=True).decode("utf-8", "replace")
        except (DockerException, requests.exceptions.RequestException) as problem:
            raise translate_docker_error(125, str(problem), image.name) from None
    answers = [line for line in output.splitlines() if line.startswith(PROBE_MARK)]
    if code != 0 or not answers:
        raise translate_docker_error(code or 1, output, image.name)
    found: dict[str, Any] = json.loads(answers[-1][len(PROBE_MARK) :])
    return found


def _judge(answer: Mapping[str, Any], image: ImageFacts, subject: PreflightSubject) -> Iterable[DockerError]:
    if tuple(int(part) for part in answer["python"].split(".")[:2]) < (3, 10):
        message = f"its python3 is {answer['python']}, the worker needs 3.10"
        yield docker_error("image_contents", image.name, message=message)
    if answer["missing"]:
        message = f"no module named {answer['missing'][0]!r} for engine {subject.engine}"
        missing = docker_error("image_contents", image.name, message=message)
        if engine_info(subject.engine).serves_over_http:
            missing = type(missing)(missing.message, fix=client_fix(subject.engine), details=missing.details)
        yield missing
    if not answer["writable"]:
        yield docker_error("image_contents", image.name, message="its user cannot write to /llem/cache")
    shm = answer["shm_bytes"]
    if shm is not None and shm < min(subject.settings.shm_size_bytes, 64 * 2**20):
        yield docker_error("shm", image.name, message=f"{shm / 2**20:.0f} MiB in /dev/shm")
    if subject.devices.kind == "cuda":
        yield from _judge_gpu(answer["gpu"], answer["torch_cuda"], image, subject.devices)


def _judge_gpu(
    gpu: Mapping[str, Any], torch_cuda: str | None, image: ImageFacts, devices: DeviceSet
) -> Iterable[DockerError]:
    if "problem" in gpu:
        category = "driver_mismatch" if "mismatch" in gpu["problem"].lower() else "gpu_not_visible"
        yield docker_error(category, image.name, message=gpu["problem"])
        return
    hidden = [uuid for uuid in devices.uuids if uuid not in gpu["uuids"]]
    if hidden:
        message = f"{', '.join(hidden)} not among {', '.join(gpu['uuids']) or 'none'}"
        yield docker_error("gpu_not_visible", image.name, message=message)
    # Within one major version older drivers run newer CUDA (minor version compatibility)
    if torch_cuda and int(torch_cuda.split(".")[0]) > int(gpu["cuda"]) // 1000:
        message = f"driver {gpu['driver']} supports CUDA {int(gpu['cuda']) // 1000}, torch was built with {torch_cuda}"
        yield docker_error("driver_too_old", image.name, message=message)


def _check_inputs(daemon: DaemonFacts, subject: PreflightSubject, found: _Findings) -> None:
    downloads: dict[str, None] = {}
    for config in subject.configs:
        inputs = inputs_of(config)
        downloads.update(dict.fromkeys(inputs.downloads))
        if inputs.mounts and not daemon.local:
            paths = ", ".join(mounted.source for mounted in inputs.mounts)
            message = f"{paths}: the daemon at {daemon.address} is remote"
            found.problems.append(docker_error("mount_missing", subject.image, message=message))
    missing = [path for path in subject.settings.mounts if daemon.local and not Path(path).exists()]
    if missing:
        message = f"docker.mounts: {', '.join(missing)} does not exist"
        found.problems.append(docker_error("mount_missing", subject.image, message=message))
    problems = (hub_problem(name, subject.image) for name in downloads)
    found.problems += [problem for problem in problems if problem is not None]


NAME = "settings"

DEADLINE_S = 300
"""Chosen: importing an engine from a cold disk takes a minute or two."""


def check_settings_in_image(
    client: docker.DockerClient,
    image: ImageFacts,
    configs: Sequence[ExperimentConfig],
    devices: DeviceSet,
    settings: DockerSettings,
    identity: SessionIdentity,
) -> SignatureReport:
    """Compare settings with the signatures of the image's engine, which is imported in a container of its own.

    The report's `unchecked` says why a comparison was not possible; only a daemon's refusal raises `DockerError`.
    """
    request = ContainerRequest(
        name=f"llem-settings-{uuid.uuid4().hex[:8]}",
        image=image,
        command=("-m", "pytest_llem.engines.signatures", f"{JOBS}/{NAME}/job.json"),
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
