"""How a container is created: devices, limits, privileges, environment.

What makes containers, here and in `servers`, uses it; only `create` may make containers for cycles, checks and servers.
A new option belongs in `ContainerRequest` and, where it can change a measurement, in `recorded_options`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import docker
from docker.models.containers import Container
from docker.types import DeviceRequest, Mount

from pytest_llem.containers.archive import JOBS, LIFELINE, ROOT, SITE, files_archive
from pytest_llem.containers.inputs import CACHE, HUB, Mounted
from pytest_llem.errors import JsonValue, RunnerError
from pytest_llem.job.config import DeviceSettings
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.redaction import HUB_TOKENS, without_user_info
from pytest_llem.machine.amd_devices import HIDDEN
from pytest_llem.study.runner_settings import DockerSettings
from pytest_llem.worker.lifeline import SECRETS
from pytest_llem.worker.pinning import cpus_text, pinned_cpus

LOOPBACK = "127.0.0.1"


def with_lifeline(*arguments: str) -> tuple[str, ...]:
    """The arguments that make `python3 ARGUMENT...` end when no client is attached to the container any more."""
    return ("-I", "-S", LIFELINE, "run", *arguments)


WORKER_COMMAND = with_lifeline("-m", "pytest_llem.worker", "--isolation", "container")
JOB_NAME = "job"
HUB_TOKEN = f"{ROOT}/hub-token"

ENVIRONMENT = {
    "HOME": f"{ROOT}/home",
    "XDG_CACHE_HOME": CACHE,
    "XDG_CONFIG_HOME": f"{ROOT}/home/.config",
    "HF_HOME": f"{CACHE}/huggingface",
    "HF_HUB_CACHE": HUB,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TORCH_HOME": f"{CACHE}/torch",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/torchinductor",
    "TRITON_HOME": f"{CACHE}/triton",
    "TRITON_CACHE_DIR": f"{CACHE}/triton/cache",
    "CUDA_CACHE_PATH": f"{CACHE}/cuda",
    "NUMBA_CACHE_DIR": f"{CACHE}/numba",
    "FLASHINFER_WORKSPACE_BASE": CACHE,
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "VLLM_CONFIG_ROOT": f"{ROOT}/home/vllm",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "MASTER_ADDR": "127.0.0.1",
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "TP_SOCKET_IFNAME": "lo",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    "PYTHONUNBUFFERED": "1",
    "PYTHONNOUSERSITE": "1",
    "LLEM_EVENT_PREFIX": "1",
    "LLEM_CONFIG_PATH": f"{JOBS}/{JOB_NAME}/job.json",
}
"""Every cache in a writable directory, the rendezvous of parallel workers on loopback, and where the job is."""

PASSED_ON = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "KMP_AFFINITY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
)


@dataclass(frozen=True)
class ImageFacts:
    """Facts about a local image. `digest` is the registry's, `None` for an image that was never in one."""

    name: str
    id: str
    digest: str | None
    user: str | None
    environment: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str | None = None

    @property
    def runs_as_root(self) -> bool:
        """Whether the image's own user is root."""
        return (self.user or "").partition(":")[0] in ("", "0", "root")


@dataclass(frozen=True)
class ContainerRequest:
    """All that decides how one container is created: `command` is what the entry point gets, by default `python3`.

    `waits` is whether a client will attach and hold its standard input; a short program needs none. A container with
    an `entrypoint` runs a program of its image instead (the image's own where that is empty), in the image's
    environment. A port to `publish` is reached at the same number on this machine's loopback. `pinned` names its CPUs.
    """

    name: str
    image: ImageFacts
    command: tuple[str, ...]
    devices: DeviceSet
    settings: DockerSettings
    network: str
    mounts: tuple[Mounted, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    waits: bool = True
    entrypoint: tuple[str, ...] | None = None
    publish: int | None = None
    pinned: DeviceSettings = field(default_factory=DeviceSettings)

    def __post_init__(self) -> None:
        if self.devices.kind == "rocm":  # collection says so earlier, except of the nodes of a cluster
            raise RunnerError(
                "AMD GPUs cannot be given to containers",
                fix="run the engine without an image (runner local), or write device.kind: cpu",
            )


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that decide how fast a worker computes: a container must not differ in them."""
    return {name: environment[name] for name in PASSED_ON if environment.get(name)}


def capabilities(request: ContainerRequest) -> list[str]:
    """The capabilities that are kept: those of the settings, and for root that to read other users' mounted files."""
    needed = ["DAC_OVERRIDE"] if request.image.runs_as_root and request.mounts else []
    return list(dict.fromkeys([*needed, *request.settings.capabilities]))


def cpusets(request: ContainerRequest) -> dict[str, str | None]:
    """The CPUs and the node whose memory it may use; `None` is any. `DeviceError` where this machine lacks them."""
    cpus, node = pinned_cpus(request.pinned), request.pinned.numa_node
    return {"cpuset_cpus": cpus_text(cpus) or None, "cpuset_mems": None if node is None else str(node)}


def container_environment(request: ContainerRequest) -> dict[str, str]:
    """The environment inside: caches, loopback, exactly the leased devices; no secrets, as `docker inspect` shows it.

    A server's image is told where the hub's token lies, and the proxies without their users and passwords.
    """
    site = request.image.environment.get("PYTHONPATH")
    worker = {**ENVIRONMENT, "PYTHONPATH": f"{SITE}:{site}" if site else SITE}
    environment = {**(worker if request.entrypoint is None else {}), **request.environment}
    if request.entrypoint is not None:
        proxies = {name: value for name, value in request.secrets.items() if name.lower().endswith("_proxy")}
        environment |= {name: without_user_info(value) for name, value in proxies.items()}
        environment |= {"HF_TOKEN_PATH": HUB_TOKEN} if HUB_TOKEN in secret_files(request) else {}
    if request.network == "none":
        environment["HF_HUB_OFFLINE"] = "1"
    if request.devices.kind != "cuda":
        environment["NVIDIA_VISIBLE_DEVICES"] = "void"
        environment |= HIDDEN
    return environment


def secret_files(request: ContainerRequest) -> dict[str, str]:
    """The files by which a container gets its secrets: a worker all of them, a server the hub's token."""
    if request.entrypoint is None:
        return {SECRETS: json.dumps(dict(request.secrets))} if request.secrets else {}
    tokens = [request.secrets[name] for name in HUB_TOKENS if name in request.secrets]
    return {HUB_TOKEN: tokens[0]} if tokens else {}


def create(client: docker.DockerClient, request: ContainerRequest) -> Container:
    """Create the container. A limit on memory is one on swap too; the image's health check is switched off, because it
    would run beside the measurement. Raises what the SDK raises."""
    settings = request.settings
    gpus = DeviceRequest(device_ids=list(request.devices.uuids), capabilities=[["gpu"]])
    worker = request.entrypoint is None
    container = client.containers.create(
        request.image.id,
        list(request.command) or None,
        name=request.name,
        entrypoint=["python3"] if request.entrypoint is None else list(request.entrypoint) or None,
        environment=container_environment(request),
        labels=dict(request.labels),
        working_dir=ROOT if worker else None,
        init=True,
        stdin_open=request.waits,
        network_mode=request.network,
        ports={f"{request.publish}/tcp": (LOOPBACK, request.publish)} if request.publish else None,
        shm_size=settings.shm_size_bytes,
        pids_limit=settings.pids_limit,
        security_opt=["no-new-privileges"],
        cap_drop=["ALL"],
        cap_add=capabilities(request),
        healthcheck={"test": ["NONE"]},
        mounts=[Mount(m.target, m.source, type="bind", read_only=True) for m in request.mounts],
        mem_limit=settings.memory_bytes,
        memswap_limit=settings.memory_bytes,
        cpuset_cpus=cpusets(request)["cpuset_cpus"],
        cpuset_mems=cpusets(request)["cpuset_mems"],
        device_requests=[gpus] if request.devices.kind == "cuda" else None,
    )
    files = secret_files(request)
    if files:
        try:
            container.put_archive("/", files_archive(files))
        except BaseException:
            container.remove(force=True)
            raise
    return container


def recorded_options(request: ContainerRequest) -> dict[str, JsonValue]:
    """The options that a result records; nothing secret."""
    return {
        "container": request.name,
        "image_id": request.image.id,
        "user": request.image.user,
        "network": request.network,
        "capabilities": tuple(capabilities(request)),
        "memory_bytes": request.settings.memory_bytes,
        **cpusets(request),
        "shm_size_bytes": request.settings.shm_size_bytes,
        "environment": {name: request.environment[name] for name in PASSED_ON if name in request.environment},
        "lifecycle": request.settings.lifecycle,
        "mounts": tuple(mounted.target for mounted in request.mounts),
        "secrets": tuple(sorted(request.secrets)),
    }
