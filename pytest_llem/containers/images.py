"""Chooses the image of an engine, pulls it, and reads its facts.

The Docker runner, its preflight and servers call it. No engine's image may be named here: those are in its folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound

from pytest_llem import __version__
from pytest_llem.containers.daemon import DaemonFacts, docker_errors, in_background
from pytest_llem.containers.errors import DockerError, docker_error, translate_docker_error
from pytest_llem.containers.options import ImageFacts
from pytest_llem.engines import engine_info
from pytest_llem.errors import RunnerError

REGISTRY = "ghcr.io/pytest-llem"

DEFAULT_CUDA_MAJOR = 12
"""The default of images/docker-bake.hcl."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}

PULL_ATTEMPTS = 3
"""Chosen: with the waits between them they outlast a short loss of the network."""
BACKOFF_S = 2.0
"""Chosen: waits of 2 s and 4 s outlast a short loss of the network; the pull's own limit stands above both."""

Tell = Callable[[str], None]


def default_image(engine: str, cuda_major: int | None, version: str = __version__) -> str:
    """This project's own image of an engine; `RunnerError` for an engine that has none."""
    info = engine_info(engine)
    if info.stock_image is None:
        fix = client_fix(engine) if info.serves_over_http else f"name one: --llem-runner={engine}=docker:IMAGE"
        raise RunnerError(f"there is no default image for engine {engine!r}", fix=fix)
    return f"{REGISTRY}/{engine}:{version}-cuda{cuda_major or DEFAULT_CUDA_MAJOR}"


def client_fix(engine: str) -> str:
    """What to do about the client of a server in an image that lacks its packages: it needs none of an image."""
    info = engine_info(engine)
    needed = ", ".join(info.modules)
    return (
        f"let the client run here: --llem-runner={engine}=local (it needs {needed}: {info.install}); "
        f"or name an image that has {needed}: --llem-runner={engine}=docker:IMAGE"
    )


def image_facts(client: docker.DockerClient, name: str) -> ImageFacts | None:
    """The local image of that name; `None` when there is none."""
    with docker_errors(name):
        try:
            attributes = client.images.get(name).attrs
        except ImageNotFound:
            return None
    config = attributes.get("Config") or {}
    digests = attributes.get("RepoDigests") or []
    environment = (entry.partition("=") for entry in config.get("Env") or [])
    return ImageFacts(
        name=name,
        id=str(attributes["Id"]),
        digest=str(digests[0]).rpartition("@")[2] if digests else None,
        user=config.get("User") or None,
        environment={key: value for key, _, value in environment},
        labels=config.get("Labels") or {},
        architecture=attributes.get("Architecture"),
    )


def foreign_architecture(image: ImageFacts, daemon: DaemonFacts) -> str | None:
    """Says that an image is for another processor than the daemon's, else `None`; an emulator may run it anyway."""
    theirs = ARCHITECTURES.get(daemon.architecture, daemon.architecture)
    if image.architecture in (None, "", theirs):
        return None
    return f"it is for {image.architecture}, and the daemon's machine is {theirs}"


def ensure_image(
    client: docker.DockerClient,
    name: str,
    *,
    pull: str = "missing",
    timeout_s: float = 3600.0,
    tell: Tell | None = None,
    backoff_s: float = BACKOFF_S,
) -> ImageFacts:
    """The image, pulled as `pull` says (`missing`, `never`, `always`) with retries in `timeout_s`; or `DockerError`."""
    present = image_facts(client, name)
    if present is not None and pull != "always":
        return present
    if pull == "never":
        raise docker_error("image_not_found", name, message="it is not present, and docker.pull is never")
    deadline = time.monotonic() + timeout_s
    for attempt in range(1, PULL_ATTEMPTS + 1):
        try:
            # On a thread of its own, because a stalled download answers to no timeout of the client's
            done = in_background(lambda: _follow_pull(client, name, deadline, tell), "llem-pull")
            done.result(deadline - time.monotonic())
            break
        except FutureTimeoutError:
            raise docker_error("timeout", name, message="the pull took longer than docker.pull_timeout_s") from None
        except DockerError as error:
            wait = backoff_s * 2 ** (attempt - 1)
            if not error.transient or attempt == PULL_ATTEMPTS or time.monotonic() + wait >= deadline:
                raise
            if tell:
                tell(f"pulling {name} failed ({error.category}), trying again in {wait:g} s")
            time.sleep(wait)
    pulled = image_facts(client, name)
    if pulled is None:
        raise docker_error("image_not_found", name, message="it was pulled, and yet is not there")
    return pulled


def _follow_pull(client: docker.DockerClient, name: str, deadline: float, tell: Tell | None) -> None:
    layers: dict[str, tuple[int, int]] = {}
    told = 0.0
    repository, tag = split_name(name)
    try:
        for line in client.api.pull(repository, tag=tag, stream=True, decode=True):
            if line.get("error"):
                raise translate_docker_error(125, str(line["error"]), name)
            progress = line.get("progressDetail") or {}
            if progress.get("total"):
                layers[str(line.get("id"))] = (int(progress.get("current", 0)), int(progress["total"]))
            now = time.monotonic()
            if now > deadline:
                return
            if tell and layers and now - told > 5.0:
                told = now
                done, total = (sum(column) / 1e9 for column in zip(*layers.values(), strict=True))
                tell(f"pulling {name}: {done:.1f} of {total:.1f} GB")
    except (DockerException, APIError) as problem:
        raise translate_docker_error(125, str(getattr(problem, "explanation", None) or problem), name) from None
    except requests.exceptions.RequestException as problem:
        raise translate_docker_error(125, f"dial tcp: {problem}", name) from None


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag (or digest) of an image's name; without either, `latest`."""
    if "@" in name:
        repository, _, digest = name.partition("@")
        return repository, digest
    match = re.fullmatch(r"(.+):([\w][\w.-]{0,127})", name)
    return (match[1], match[2]) if match else (name, "latest")


def with_alternatives(error: DockerError, engine: str, *, named: bool) -> DockerError:
    """The error about a default image, with the stock image of the engine as another way."""
    stock = engine_info(engine).stock_image
    if named or stock is None or error.category not in ("image_not_found", "registry_auth"):
        return error
    fix = f"use the upstream image: --llem-runner={engine}=docker:{stock} (works unchanged), or build images/{engine}"
    return type(error)(error.message, fix=fix, details=error.details)


@cache
def cuda_major() -> int | None:
    """What the driver supports, else what `nvcc` is; `None` on a machine without either."""
    return _from_nvml() or _from_nvcc()


def _from_nvml() -> int | None:
    import pynvml

    from pytest_llem.energy.nvml_devices import nvml

    try:
        with nvml():
            return int(pynvml.nvmlSystemGetCudaDriverVersion_v2()) // 1000 or None
    except pynvml.NVMLError:
        return None


def _from_nvcc() -> int | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"release (\d+)\.", text)
    return int(match[1]) if match else None
