"""Checks, before the first cycle, everything that would make cycles in an image fail; reports all problems together.

`runner.DockerRunner` calls it once per engine and image; servers ask `require_pullable`. It must stay a matter of
seconds: it pulls nothing and loads no model.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests

from pytest_llem.containers.archive import JOBS, job_archive, worker_archive
from pytest_llem.containers.daemon import DaemonFacts, docker_errors, in_background
from pytest_llem.containers.errors import DockerError, docker_error, translate_docker_error
from pytest_llem.containers.images import client_fix, foreign_architecture, image_facts
from pytest_llem.containers.inputs import hub_problem, inputs_of
from pytest_llem.containers.options import ContainerRequest, ImageFacts, create
from pytest_llem.containers.orphaned_containers import SessionIdentity, removed_after
from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import REPORT_MARK, SignatureReport
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import parse_object
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

PROBE_TIMEOUT_S = 45
"""Chosen: the probe imports nothing heavy; a slow disk may take seconds to start its container."""

SETTINGS_TIMEOUT_S = 300
"""Chosen: importing an engine from a cold disk takes a minute or two."""

PROBE_MARK = "LLEM-PROBE "


@dataclass(frozen=True)
class PreflightSubject:
    """One engine in one image, with the experiments that will run there and their devices."""

    engine: str
    image: str
    configs: Sequence[ExperimentConfig]
    devices: DeviceSet
    settings: DockerSettings


def preflight(
    client: docker.DockerClient, daemon: DaemonFacts, subject: PreflightSubject, identity: SessionIdentity
) -> PreflightReport:
    """Run all checks in parallel, each within its own deadline; never raises for the problems that they find."""
    checks: list[tuple[str, float, Callable[[], PreflightReport]]] = [
        ("daemon", 5.0, lambda: _check_daemon(client, daemon)),
        ("disk", 5.0, lambda: _check_disk(daemon, subject)),
        ("image", 60.0, lambda: _check_image(client, daemon, subject, identity)),
        ("mounts", 30.0, lambda: _check_mounts(daemon, subject)),
        ("inputs", 30.0, lambda: _check_downloads(subject)),
    ]
    begun = time.monotonic()
    outcomes = [(name, limit_s, in_background(check, f"llem-preflight-{name}")) for name, limit_s, check in checks]
    reports = []
    for name, limit_s, outcome in outcomes:
        try:
            reports.append(outcome.result(begun + limit_s - time.monotonic()))
        except FutureTimeoutError:
            message = f"the check of the {name} took more than {limit_s:g} s"
            reports.append(PreflightReport((docker_error("timeout", subject.image, message=message),)))
        except DockerError as error:
            reports.append(PreflightReport((error,)))
    return PreflightReport(
        tuple(problem for report in reports for problem in report.problems),
        tuple(note for report in reports for note in report.notices),
        {name: fact for report in reports for name, fact in report.facts.items()},
    )


def _check_daemon(client: docker.DockerClient, daemon: DaemonFacts) -> PreflightReport:
    with docker_errors(daemon.address):
        client.ping()
    version = tuple(int(part) for part in daemon.api_version.split(".")[:2])
    problems: list[DockerError] = []
    if version < OLDEST_API:
        message = (
            f"daemon {daemon.version} speaks API {daemon.api_version}, 1.40 (Docker 19.03) is the oldest that works"
        )
        problems.append(docker_error("docker", daemon.address, message=message))
    facts = {"version": daemon.version, "address": daemon.address, "rootless": daemon.rootless}
    return PreflightReport(tuple(problems), facts={"daemon": facts})


def _check_disk(daemon: DaemonFacts, subject: PreflightSubject) -> PreflightReport:
    if not daemon.local or not Path(daemon.root_dir).is_dir():
        return PreflightReport()
    free = shutil.disk_usage(daemon.root_dir).free
    problems: list[DockerError] = []
    if free < FREE_BYTES:
        message = f"{free / 2**30:.1f} GiB free in {daemon.root_dir}"
        problems.append(docker_error("disk_full", subject.image, message=message))
    return PreflightReport(tuple(problems), facts={"docker_free_bytes": free})


def _check_image(
    client: docker.DockerClient, daemon: DaemonFacts, subject: PreflightSubject, identity: SessionIdentity
) -> PreflightReport:
    if subject.devices.kind == "cuda" and not daemon.gpus:
        message = f"runtimes: {', '.join(daemon.runtimes)}; no CDI device nvidia.com/gpu"
        raise docker_error("gpu_runtime_missing", subject.image, message=message)
    image = image_facts(client, subject.image)
    if image is None:
        require_pullable(client, subject.image, subject.settings.pull)
        message = f"{subject.image} is not present yet: what is inside is checked when it has been pulled"
        return PreflightReport(notices=(Note("image_not_inspected", message),))
    command = ("-m", "pytest_llem.worker.probe", subject.engine, *engine_info(subject.engine).modules)
    request = _request("preflight", image, command, subject.devices, subject.settings, identity)
    try:
        code, output = _run(client, request, (worker_archive(),), PROBE_TIMEOUT_S)
        answers = [line for line in output.splitlines() if line.startswith(PROBE_MARK)]
        if code != 0 or not answers:
            raise translate_docker_error(code or 1, output, image.name)
    except DockerError:
        foreign = foreign_architecture(image, daemon)
        if foreign is None:
            raise
        raise docker_error("arch_mismatch", subject.image, message=foreign) from None
    try:
        answer: dict[str, Any] = parse_object(answers[-1].removeprefix(PROBE_MARK), "its answer")
        skew = abs(float(answer["realtime_s"]) - time.time())
    except (ValueError, KeyError, TypeError) as problem:
        raise translate_docker_error(1, f"{output}\n{problem}", image.name) from None
    notices = [Note("clock_skew", f"the daemon's machine has another time of day, by {skew:.1f} s")]
    return PreflightReport(
        tuple(_judge(answer, image, subject)),
        tuple(notices) if skew > CLOCK_SKEW_S else (),
        {"image": {"id": image.id, "digest": image.digest, **answer}},
    )


def require_pullable(client: docker.DockerClient, image: str, pull: str) -> None:
    """Raise `DockerError` if an image that is not present cannot be pulled, or must not be."""
    if pull == "never":
        raise docker_error("image_not_found", image, message="it is not present, and docker.pull is never")
    with docker_errors(image):
        client.api.inspect_distribution(image)  # type: ignore[no-untyped-call]


def _request(
    purpose: str,
    image: ImageFacts,
    command: tuple[str, ...],
    devices: DeviceSet,
    settings: DockerSettings,
    identity: SessionIdentity,
) -> ContainerRequest:
    return ContainerRequest(
        name=f"llem-{purpose}-{uuid.uuid4().hex[:8]}",
        image=image,
        command=command,
        devices=devices,
        settings=settings,
        network="none",
        labels=identity.labels(purpose),
        waits=False,
    )


def _run(
    client: docker.DockerClient, request: ContainerRequest, archives: Sequence[bytes], timeout_s: int
) -> tuple[int, str]:
    """Run a short program in a container of its own; its exit code and its output."""
    with docker_errors(request.image.name):
        container = create(client, request)
        with removed_after(container):
            for archive in archives:
                container.put_archive("/", archive)
            container.start()
            try:
                code = int(container.wait(timeout=timeout_s)["StatusCode"])
            except requests.exceptions.ReadTimeout:
                message = f"it did not end within {timeout_s} s"
                raise docker_error("timeout", request.image.name, message=message) from None
            return code, container.logs(stdout=True, stderr=True).decode("utf-8", "replace")


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
    build, kind = answer.get("torch_build"), subject.devices.kind
    if not engine_info(subject.engine).runs_on(kind, build):
        message = f"its torch was built for {build}, and engine {subject.engine} would run on {kind} (device.kind)"
        yield docker_error("image_contents", image.name, message=message)
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


def _check_mounts(daemon: DaemonFacts, subject: PreflightSubject) -> PreflightReport:
    messages = [
        f"{', '.join(mounted.source for mounted in mounts)}: the daemon at {daemon.address} is remote"
        for config in subject.configs
        if not daemon.local and (mounts := inputs_of(config).mounts)
    ]
    missing = [path for path in subject.settings.mounts if daemon.local and not Path(path).exists()]
    if missing:
        messages.append(f"docker.mounts: {', '.join(missing)} does not exist")
    return PreflightReport(tuple(docker_error("mount_missing", subject.image, message=message) for message in messages))


def _check_downloads(subject: PreflightSubject) -> PreflightReport:
    downloads = dict.fromkeys(name for config in subject.configs for name in inputs_of(config).downloads)
    refused = [hub_problem(name, subject.image) for name in downloads]
    return PreflightReport(tuple(problem for problem in refused if problem is not None))


def check_settings_in_image(
    client: docker.DockerClient,
    image: ImageFacts,
    configs: Sequence[ExperimentConfig],
    devices: DeviceSet,
    settings: DockerSettings,
    identity: SessionIdentity,
) -> SignatureReport:
    """Compare settings with the engine in an image; `unchecked` says why not. `DockerError` if the daemon refuses."""
    command = ("-m", "pytest_llem.engines.signatures", f"{JOBS}/settings/job.json")
    request = _request("settings", image, command, devices, settings, identity)
    archives = (worker_archive(), job_archive(json.dumps(encode(configs)).encode(), "settings"))
    code, output = _run(client, request, archives, SETTINGS_TIMEOUT_S)
    for line in reversed(output.splitlines()):
        if line.startswith(REPORT_MARK):
            try:
                return decode(SignatureReport, parse_object(line.removeprefix(REPORT_MARK), "its report"))
            except ValueError as problem:
                return SignatureReport(unchecked=f"{image.name}: {problem}")
    last = output.strip().rpartition("\n")[2][:200]
    return SignatureReport(unchecked=f"{image.name}: the comparison of settings ended with exit code {code}: {last}")
