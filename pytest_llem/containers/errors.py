"""The errors of containers, and which of them a failed run is, from the texts of Docker, NVIDIA's tools and engines.

`containers` and `servers` raise them, and `results.store` reads them back; `translate_docker_error` is public. A
`category` is part of the result format and must not change; docs/errors.md is written from headlines and advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pytest_llem.containers import error_patterns as patterns
from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.redaction import redact

__all__ = ["DockerError", "docker_error", "translate_docker_error"]


class DockerError(LlemError, category="docker"):
    """A container could not be created or started, or its program failed.

    `headline` and `advice` may name the image as `{image}`. `transient` says whether trying again may help.
    """

    headline: ClassVar[str] = "Docker could not run the image {image!r}"
    advice: ClassVar[str | None] = "read the daemon's message; `docker info` shows whether the daemon is healthy"
    transient: ClassVar[bool] = False

    @property
    def stderr_snippet(self) -> str | None:
        """The last lines of standard error, redacted; `None` when there were none."""
        snippet = self.details.get("stderr_snippet")
        return snippet if isinstance(snippet, str) else None


class ImageNotFoundError(DockerError, category="image_not_found"):
    """No registry and no local store has the image."""

    headline = "image {image!r} does not exist, here or in its registry"
    advice = (
        "check the name and tag; build it (see docs/docker.md) or try `docker pull {image}`; log in if it is private"
    )


class ImageArchitectureError(DockerError, category="arch_mismatch"):
    """The image was built for another processor."""

    headline = "image {image!r} is not built for this machine's processor"
    advice = "use an image for this platform, or build it here with `docker build --platform`"


class ImageContentsError(DockerError, category="image_contents"):
    """The image lacks a package or library that the cycle needs."""

    headline = "image {image!r} lacks something that the cycle needs"
    advice = "use an image that has the inference engine and Python 3.10 or newer; docs/docker.md lists known ones"


class CommandMissingError(DockerError, category="command_missing"):
    """The image has no such program, or it cannot be executed."""

    headline = "image {image!r} has no program to start the worker with"
    advice = "the image needs `python3` (3.10 or newer) on its PATH"


class RegistryAuthError(DockerError, category="registry_auth"):
    """The registry wants a login."""

    headline = "the registry of {image!r} wants a login"
    advice = "`docker login` to that registry with an account that may read the image"


class RegistryRateLimitError(DockerError, category="rate_limit"):
    """The registry's pull limit is used up."""

    headline = "the registry of {image!r} has reached its pull limit"
    advice = "`docker login` for a higher limit, wait, or pull from a mirror"
    transient = True


class NetworkError(DockerError, category="network"):
    """A host could not be reached."""

    headline = "the network failed while working with {image!r}"
    advice = "check DNS, proxy and firewall of the daemon's machine; an image that is present locally needs no network"
    transient = True


class DiskFullError(DockerError, category="disk_full"):
    """No space is left where the daemon or the container writes."""

    headline = "no disk space left while working with {image!r}"
    advice = "`docker system df` shows what is used; `docker system prune` frees it"


class HostOutOfMemoryError(DockerError, category="host_oom"):
    """The kernel killed a process of the container because host memory ran out."""

    headline = "the container of {image!r} ran out of host memory"
    advice = "raise `docker: {{memory: ...}}`, free memory on the host, or use a smaller model or batch"


class GpuOutOfMemoryError(DockerError, category="gpu_oom"):
    """The GPU's memory was too small."""

    headline = "the GPU ran out of memory in {image!r}"
    advice = (
        "use a smaller batch, context or dtype, a lower gpu_memory_utilization, or more GPUs; check for other processes"
    )


class SharedMemoryError(DockerError, category="shm"):
    """`/dev/shm` is too small."""

    headline = "shared memory (/dev/shm) ran out in {image!r}"
    advice = "raise `docker: {{shm_size: ...}}`"


class GpuRuntimeMissingError(DockerError, category="gpu_runtime_missing"):
    """The daemon has no runtime that can give a container a GPU."""

    headline = "the Docker daemon cannot give a GPU to a container"
    advice = "install the NVIDIA Container Toolkit, `nvidia-ctk runtime configure --runtime=docker`, restart the daemon"


class GpuDriverMissingError(DockerError, category="gpu_driver_missing"):
    """The host has no usable NVIDIA driver."""

    headline = "the Docker host has no usable NVIDIA driver"
    advice = "install the NVIDIA driver on the host; `nvidia-smi` must work there"


class DriverMismatchError(DockerError, category="driver_mismatch"):
    """The loaded kernel module and the driver's libraries are of different versions."""

    headline = "the host's NVIDIA kernel module and libraries are of different versions"
    advice = "reboot the host: the driver was updated while its old module is still loaded"


class DriverTooOldError(DockerError, category="driver_too_old"):
    """The image's CUDA is newer than the driver allows."""

    headline = "the host's NVIDIA driver is too old for the CUDA of {image!r}"
    advice = "update the driver, or use an image with an older CUDA"


class GpuNotVisibleError(DockerError, category="gpu_not_visible"):
    """No GPU is visible inside the container."""

    headline = "no GPU is visible inside {image!r}"
    advice = "check that the leased GPU exists (`nvidia-smi -L`) and that the image's engine is a CUDA build"


class GpuArchitectureError(DockerError, category="gpu_arch"):
    """The image's kernels were not compiled for this GPU."""

    headline = "{image!r} has no kernels for this GPU's architecture"
    advice = "use an image built for this GPU's compute capability"


class DaemonDownError(DockerError, category="daemon_down"):
    """Nothing answers at the daemon's address."""

    headline = "the Docker daemon does not answer"
    advice = "start it (`systemctl start docker`), or correct DOCKER_HOST or the Docker context"


class DaemonPermissionError(DockerError, category="daemon_permission"):
    """The user is not permitted to use the daemon."""

    headline = "this user may not use the Docker daemon"
    advice = "add the user to the group `docker` and log in again, or use a rootless daemon"


class PortInUseError(DockerError, category="port_in_use"):
    """A port is in use."""

    headline = "a port that {image!r} needs is taken"
    advice = "stop what listens there, or choose another port"


class NameConflictError(DockerError, category="name_conflict"):
    """A container of the same name exists."""

    headline = "a container of the same name exists already"
    advice = (
        "`docker ps -a --filter label=llem.session` lists containers of this plugin; remove the one that is in the way"
    )


class MountError(DockerError, category="mount_missing"):
    """A directory cannot be mounted."""

    headline = "a directory that {image!r} should see cannot be mounted"
    advice = "the path must exist on the daemon's machine; with a remote daemon that is not this one"


class GatedModelError(DockerError, category="hf_gated"):
    """The model is gated."""

    headline = "the hub refused the model inside {image!r}: it is gated or the token is not valid"
    advice = "accept the model's terms on the hub and set HF_TOKEN to a token that may read it"


class HubModelNotFoundError(DockerError, category="hf_not_found"):
    """The hub has no such model or revision."""

    headline = "the model was not found from inside {image!r}"
    advice = "check the model id and revision; a local path is mounted only when the study names it as a path"


class ContainerTimeoutError(DockerError, category="timeout"):
    """The container exceeded its deadline; it was killed and removed."""

    headline = "the container of {image!r} outlived its deadline and was removed"
    advice = "raise `execution: {{timeout_s: ...}}`, or look in worker.log for where it hangs"


class ContainerExitError(DockerError, category="app_error"):
    """The program inside ended without a result."""

    headline = "the program in {image!r} failed"
    advice: ClassVar[str | None] = "read worker.log in the job directory"


class ContainerInterruptedError(ContainerExitError, category="interrupted"):
    """SIGINT ended the container."""

    headline = "the container of {image!r} was interrupted (SIGINT)"
    advice = None


class ContainerTerminatedError(ContainerExitError, category="terminated"):
    """SIGTERM ended the container."""

    headline = "the container of {image!r} was terminated (SIGTERM)"
    advice = "somebody stopped the container or the daemon shut down; run the cycle again"
    transient = True


class ContainerKilledError(ContainerExitError, category="killed"):
    """SIGKILL ended the container, and the daemon reports no lack of memory."""

    headline = "the container of {image!r} was killed (SIGKILL)"
    advice = "somebody removed it, or the host ran out of memory outside the container's own limit (see `dmesg`)"


class ContainerSegfaultError(ContainerExitError, category="segfault"):
    """A native crash ended the container."""

    headline = "the program in {image!r} crashed (SIGSEGV)"
    advice = "a native library crashed: check that driver, CUDA and the image fit together"


def error_classes(cls: type[DockerError] = DockerError) -> dict[str, type[DockerError]]:
    """Every class of the tree by its category: the catalogue of container errors."""
    classes = {cls.category: cls}
    for sub in cls.__subclasses__():
        classes.update(error_classes(sub))
    return classes


SNIPPET_LINES = 15
"""Lines of standard error in an error's details. Chosen: the end of a Python traceback and its message."""

_SNIPPET_CHARACTERS = 4000
"""Chosen: a page, so that one endless line does not fill the terminal."""

_MESSAGE_CHARACTERS = 500
"""Chosen: a few lines of a terminal."""

_DAEMON_EXITS = {125: "docker", 126: "command_missing", 127: "command_missing"}
"""Exit codes of `docker run` for the daemon's own errors (Docker documentation, `docker run`, exit status)."""

_SIGNAL_EXITS = {130: "interrupted", 135: "shm", 137: "killed", 139: "segfault", 143: "terminated"}
"""128 plus the number of the signal; SIGBUS (135) is what a full /dev/shm ends in."""

_VAGUE_WORKER_CATEGORIES = ("error", "engine", "worker", "worker_crashed", "worker_silent", "out_of_memory")

_CLIENT_LINE = re.compile(
    r"docker: |Error response from daemon: |(?:Got )?permission denied while trying to connect to the [Dd]ocker"
    r"|Cannot connect to the Docker daemon|failed to connect to the docker API|error during connect: "
)


def docker_error(
    category: str,
    image: str,
    *,
    message: str | None = None,
    stderr: str = "",
    facts: Mapping[str, JsonValue] | None = None,
) -> DockerError:
    """The error of a category; `message` is the line that tells the cause, and `facts` go into the details."""
    cls = error_classes()[category]
    headline = cls.headline.format(image=image)
    cause = redact((message or "").strip())[:_MESSAGE_CHARACTERS]
    details: dict[str, JsonValue] = {"image": image, **(facts or {})}
    snippet = redact("\n".join(stderr.strip().splitlines()[-SNIPPET_LINES:]))[-_SNIPPET_CHARACTERS:]
    if snippet:
        details["stderr_snippet"] = snippet
    fix = cls.advice.format(image=image) if cls.advice else None
    return cls(f"{headline}: {cause}" if cause else headline, fix=fix, details=details)


def translate_docker_error(
    returncode: int | None,
    stderr: str | bytes | None,
    image: str,
    *,
    oom_killed: bool = False,
    worker_error: Mapping[str, JsonValue] | LlemError | str | None = None,
) -> DockerError:
    """Classify why a container run failed.

    `returncode` is the exit code, with 125 for a refusal by the daemon (`None` counts as such), `stderr` what the
    client or the program wrote, `oom_killed` the daemon's `State.OOMKilled`, `worker_error` the content of the
    worker's `error.json`. Read in this order: the worker's own error; for exits 125 to 127 the daemon's message; the
    inspected state; then the end of the program's output. A timeout is never inferred: the runner knows it.
    """
    text = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr or ""
    if worker_error:
        category, message = _from_worker(worker_error, oom_killed)
    elif returncode is None or returncode in _DAEMON_EXITS:
        category, message = _from_daemon(returncode, text)
    else:
        category, message = _from_program(returncode, text, oom_killed)
    facts: dict[str, JsonValue] = {"returncode": returncode, "oom_killed": oom_killed}
    return docker_error(category, image, message=message, stderr=text, facts=facts)


def _from_daemon(returncode: int | None, text: str) -> tuple[str, str | None]:
    lines = [line for line in text.splitlines() if line.strip()]
    match = patterns.first_match(patterns.CLIENT, lines) or patterns.last_match(patterns.DAEMON, lines)
    return match or (_DAEMON_EXITS[returncode or 125], lines[-1] if lines else None)


def _from_program(returncode: int, text: str, oom_killed: bool) -> tuple[str, str | None]:
    if oom_killed:
        return "host_oom", None
    if returncode == 1:
        # `docker pull` and `docker exec` exit 1 for the daemon's refusals, in the client's own words
        lines = [line for line in text.splitlines() if _CLIENT_LINE.match(line)]
        match = patterns.first_match(patterns.CLIENT, lines) or patterns.last_match(patterns.DAEMON, lines)
        if match:
            return match
    telling = patterns.telling_lines(text)
    match = patterns.first_match(patterns.CONTAINER, telling)
    if match:
        return match
    last = telling[-1] if telling else None
    if returncode in _SIGNAL_EXITS:
        return _SIGNAL_EXITS[returncode], last
    return "app_error", last or f"exit code {returncode} and nothing on standard error"


def _from_worker(worker_error: Mapping[str, JsonValue] | LlemError | str, oom_killed: bool) -> tuple[str, str | None]:
    if isinstance(worker_error, LlemError):
        worker_error = worker_error.to_dict()
    elif isinstance(worker_error, str):
        worker_error = {"message": worker_error}
    category = str(worker_error.get("category", "error"))
    message = str(worker_error.get("message") or worker_error.get("error") or "") or None
    known = "image_contents" if category == "engine_not_installed" else category
    if known in error_classes():
        return known, message
    kind = worker_error.get("type")
    words = [f"{kind}: {line}" if kind else line for line in (message or "").splitlines()]
    trace = worker_error.get("traceback")
    if trace:
        words += [line for line in str(trace).splitlines() if patterns.EXCEPTION_LINE.search(line)]
    match = patterns.first_match(patterns.CONTAINER, words)
    if match:
        return match[0], message
    if category == "model_not_found":
        return "hf_not_found", message
    if oom_killed and category in _VAGUE_WORKER_CATEGORIES:
        return "host_oom", message
    return ("gpu_oom" if category == "out_of_memory" else "app_error"), message
