"""Chooses the image of an engine, pulls it, and reads its facts.

The Docker runner, its preflight and servers call it. No engine's image may be named here: those are in its folder.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

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

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}

PULL_ATTEMPTS = 3
"""Chosen: with the waits between them they outlast a short loss of the network."""
BACKOFF_S = 2.0
"""Chosen: waits of 2 s and 4 s outlast a short loss of the network; the pull's own limit stands above both."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DefaultImage:
    """The image of an engine for which none is named: this project's `own`, or the one of its publisher."""

    name: str
    own: bool
    present: bool


def default_image(client: docker.DockerClient, engine: str) -> DefaultImage:
    """This project's image if it is present, since none is published yet, else the publisher's.

    Raises `RunnerError` for an engine that has neither, and `DockerError`.
    """
    info = engine_info(engine)
    if info.stock_image is None:
        fix = client_fix(engine) if info.serves_over_http else f"name one: --llem-runner={engine}=docker:IMAGE"
        raise RunnerError(f"there is no default image for engine {engine!r}", fix=fix)
    own = own_image(engine)
    if image_facts(client, own) is not None:
        return DefaultImage(own, own=True, present=True)
    return DefaultImage(info.stock_image, own=False, present=image_facts(client, info.stock_image) is not None)


def own_image(engine: str) -> str:
    """What images/docker-bake.hcl calls this project's image of an engine."""
    return f"{REGISTRY}/{engine}:{__version__}"


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
    """The error about a default image, with an image of one's own as another way."""
    if named or error.category not in ("image_not_found", "registry_auth"):
        return error
    fix = f"name another: --llem-runner={engine}=docker:IMAGE, or build images/{engine} as {own_image(engine)}"
    return type(error)(error.message, fix=fix, details=error.details)
