"""What can go wrong with a container: the tree under `DockerError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pytest_llem.errors import JsonValue, LlemError, from_dict


class DockerError(LlemError):
    """A container could not be had, or did not do its work.

    `headline` and `advice` may name the image as `{image}`. `transient` says whether trying again may help.
    """

    category = "docker"
    headline: ClassVar[str] = "Docker could not run the image {image!r}"
    advice: ClassVar[str | None] = "read the daemon's message; `docker info` shows whether the daemon is healthy"
    transient: ClassVar[bool] = False

    @property
    def stderr_snippet(self) -> str | None:
        """The last lines of standard error, redacted; `None` when there were none."""
        snippet = self.details.get("stderr_snippet")
        return snippet if isinstance(snippet, str) else None


class ImageError(DockerError):
    """The image cannot be used."""

    category = "image"


class ImageNotFoundError(ImageError):
    """No registry and no local store has the image."""

    category = "image_not_found"
    headline = "image {image!r} does not exist, here or in its registry"
    advice = (
        "check the name and tag; build it (see docs/docker.md) or try `docker pull {image}`; log in if it is private"
    )


class ImageArchitectureError(ImageError):
    """The image was built for another processor."""

    category = "arch_mismatch"
    headline = "image {image!r} is not built for this machine's processor"
    advice = "use an image for this platform, or build it here with `docker build --platform`"


class ImageContentsError(ImageError):
    """The image lacks a package or library that the cycle needs."""

    category = "image_contents"
    headline = "image {image!r} lacks something that the cycle needs"
    advice = "use an image that has the inference engine and Python 3.10 or newer; docs/docker.md lists known ones"


class CommandMissingError(ImageError):
    """The image has no such program, or it cannot be executed."""

    category = "command_missing"
    headline = "image {image!r} has no program to start the worker with"
    advice = "the image needs `python3` (3.10 or newer) on its PATH"


class RegistryError(DockerError):
    """The image's registry refused."""

    category = "registry"


class RegistryAuthError(RegistryError):
    """The registry wants a login."""

    category = "registry_auth"
    headline = "the registry of {image!r} wants a login"
    advice = "`docker login` to that registry with an account that may read the image"


class RegistryRateLimitError(RegistryError):
    """The registry's pull limit is used up."""

    category = "rate_limit"
    headline = "the registry of {image!r} has reached its pull limit"
    advice = "`docker login` for a higher limit, wait, or pull from a mirror"
    transient = True


class NetworkError(DockerError):
    """A host could not be reached."""

    category = "network"
    headline = "the network failed while working with {image!r}"
    advice = "check DNS, proxy and firewall of the daemon's machine; an image that is present locally needs no network"
    transient = True


class DiskFullError(DockerError):
    """No space is left where the daemon or the container writes."""

    category = "disk_full"
    headline = "no disk space left while working with {image!r}"
    advice = "`docker system df` shows what is used; `docker system prune` frees it"


class HostOutOfMemoryError(DockerError):
    """The kernel killed a process of the container for want of host memory."""

    category = "host_oom"
    headline = "the container of {image!r} ran out of host memory"
    advice = "raise `docker: {{memory: ...}}`, free memory on the host, or use a smaller model or batch"


class GpuOutOfMemoryError(DockerError):
    """The GPU's memory did not suffice."""

    category = "gpu_oom"
    headline = "the GPU ran out of memory in {image!r}"
    advice = (
        "use a smaller batch, context or dtype, a lower gpu_memory_utilization, or more GPUs; check for other processes"
    )


class SharedMemoryError(DockerError):
    """`/dev/shm` is too small."""

    category = "shm"
    headline = "shared memory (/dev/shm) ran out in {image!r}"
    advice = "raise `docker: {{shm_size: ...}}`"


class GpuError(DockerError):
    """The container cannot use the GPU."""

    category = "gpu"


class GpuRuntimeMissingError(GpuError):
    """The daemon knows no way to hand a GPU to a container."""

    category = "gpu_runtime_missing"
    headline = "the Docker daemon cannot give a GPU to a container"
    advice = "install the NVIDIA Container Toolkit, `nvidia-ctk runtime configure --runtime=docker`, restart the daemon"


class GpuDriverMissingError(GpuError):
    """The host has no usable NVIDIA driver."""

    category = "gpu_driver_missing"
    headline = "the Docker host has no usable NVIDIA driver"
    advice = "install the NVIDIA driver on the host; `nvidia-smi` must work there"


class DriverMismatchError(GpuError):
    """The loaded kernel module and the driver's libraries are of different versions."""

    category = "driver_mismatch"
    headline = "the host's NVIDIA kernel module and libraries are of different versions"
    advice = "reboot the host: the driver was updated while its old module is still loaded"


class DriverTooOldError(GpuError):
    """The image's CUDA is newer than the driver allows."""

    category = "driver_too_old"
    headline = "the host's NVIDIA driver is too old for the CUDA of {image!r}"
    advice = "update the driver, or use an image with an older CUDA"


class GpuNotVisibleError(GpuError):
    """No GPU is visible inside the container."""

    category = "gpu_not_visible"
    headline = "no GPU is visible inside {image!r}"
    advice = "check that the leased GPU exists (`nvidia-smi -L`) and that the image's engine is a CUDA build"


class GpuArchitectureError(GpuError):
    """The image's kernels were not compiled for this GPU."""

    category = "gpu_arch"
    headline = "{image!r} has no kernels for this GPU's architecture"
    advice = "use an image built for this GPU's compute capability"


class DaemonError(DockerError):
    """The daemon does not serve."""

    category = "daemon"


class DaemonDownError(DaemonError):
    """Nothing answers at the daemon's address."""

    category = "daemon_down"
    headline = "the Docker daemon does not answer"
    advice = "start it (`systemctl start docker`), or correct DOCKER_HOST or the Docker context"


class DaemonPermissionError(DaemonError):
    """The user may not talk to the daemon."""

    category = "daemon_permission"
    headline = "this user may not use the Docker daemon"
    advice = "add the user to the group `docker` and log in again, or use a rootless daemon"


class PortInUseError(DockerError):
    """A port is taken."""

    category = "port_in_use"
    headline = "a port that {image!r} needs is taken"
    advice = "stop what listens there, or choose another port"


class NameConflictError(DockerError):
    """A container of that name exists."""

    category = "name_conflict"
    headline = "a container of the same name exists already"
    advice = (
        "`docker ps -a --filter label=llem.session` lists containers of this plugin; remove the one that is in the way"
    )


class MountError(DockerError):
    """A directory cannot be mounted."""

    category = "mount_missing"
    headline = "a directory that {image!r} should see cannot be mounted"
    advice = "the path must exist on the daemon's machine; with a remote daemon that is not this one"


class ModelAccessError(DockerError):
    """The hub does not hand out the model."""

    category = "model_access"


class GatedModelError(ModelAccessError):
    """The model is gated."""

    category = "hf_gated"
    headline = "the hub refused the model inside {image!r}: it is gated or the token is not valid"
    advice = "accept the model's terms on the hub and set HF_TOKEN to a token that may read it"


class HubModelNotFoundError(ModelAccessError):
    """The hub has no such model or revision."""

    category = "hf_not_found"
    headline = "the model was not found from inside {image!r}"
    advice = "check the model id and revision; a local path is mounted only when the study names it as a path"


class ContainerTimeoutError(DockerError):
    """The container outlived its deadline; it was killed and removed."""

    category = "timeout"
    headline = "the container of {image!r} outlived its deadline and was removed"
    advice = "raise `execution: {{timeout_s: ...}}`, or look in worker.log for where it hangs"


class ContainerExitError(DockerError):
    """The program inside ended without a result."""

    category = "app_error"
    headline = "the program in {image!r} failed"
    advice: ClassVar[str | None] = "read worker.log in the job directory"


class ContainerInterruptedError(ContainerExitError):
    """SIGINT ended the container."""

    category = "interrupted"
    headline = "the container of {image!r} was interrupted (SIGINT)"
    advice = None


class ContainerTerminatedError(ContainerExitError):
    """SIGTERM ended the container."""

    category = "terminated"
    headline = "the container of {image!r} was terminated (SIGTERM)"
    advice = "somebody stopped the container or the daemon shut down; run the cycle again"
    transient = True


class ContainerKilledError(ContainerExitError):
    """SIGKILL ended the container, and not for want of memory as far as the daemon knows."""

    category = "killed"
    headline = "the container of {image!r} was killed (SIGKILL)"
    advice = "somebody removed it, or the host ran out of memory outside the container's own limit (see `dmesg`)"


class ContainerSegfaultError(ContainerExitError):
    """A native crash ended the container."""

    category = "segfault"
    headline = "the program in {image!r} crashed (SIGSEGV)"
    advice = "a native library crashed: check that driver, CUDA and the image fit together"


def error_classes(cls: type[DockerError] = DockerError) -> dict[str, type[DockerError]]:
    """Every class of the tree by its category."""
    found = {cls.category: cls}
    for sub in cls.__subclasses__():
        found.update(error_classes(sub))
    return found


def error_from_dict(data: Mapping[str, JsonValue]) -> LlemError:
    """Rebuild any error from `LlemError.to_dict`, those of this tree included."""
    return from_dict(data)
