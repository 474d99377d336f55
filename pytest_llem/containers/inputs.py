"""What a workload needs from outside its container: files to mount, downloads from the hub, and a network or none.

`runner` and `preflight` ask it; `options`, servers and the Ray runner use parts. A network is given only if needed.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pytest_llem.containers.archive import ROOT
from pytest_llem.containers.errors import DockerError, docker_error
from pytest_llem.engines import engine_info
from pytest_llem.engines.builtin import builtin_place, cache_root, is_builtin, is_packaged
from pytest_llem.job.config import PARQUET, SYNTHETIC, ExperimentConfig
from pytest_llem.job.files import found, is_path
from pytest_llem.workload.build import resolve_alias
from pytest_llem.workload.hub import cached_repository
from pytest_llem.workload.registered import data_sets

HUB = f"{ROOT}/hub"
CACHE = f"{ROOT}/cache"


@dataclass(frozen=True)
class Mounted:
    """A file or directory of this machine, read-only in the container."""

    source: str
    target: str


@dataclass(frozen=True)
class Inputs:
    """What to mount, what has to be downloaded from the hub, and the URL of a server that must be reachable."""

    mounts: tuple[Mounted, ...]
    downloads: tuple[str, ...]
    server: str | None

    def network(self, setting: str) -> str:
        """The network: the setting, or for `auto` none unless needed (the host's, for a server on loopback)."""
        if setting != "auto":
            return setting
        if self.server is not None and urlsplit(self.server).hostname in ("localhost", "127.0.0.1", "::1"):
            return "host"
        return "bridge" if self.downloads or self.server else "none"


def inputs_of(config: ExperimentConfig) -> Inputs:
    """Look at this machine's files and hub cache for what the experiment names."""
    mounts: list[Mounted] = []
    downloads: list[str] = []
    served = engine_info(config.engine).serves_over_http
    named = [] if served else [("models", config.model)]
    if config.lora:
        named.append(("models", config.lora))
    workload = resolve_alias(config.workload)
    handed_over = workload.dataset in data_sets() or workload.dataset.lower().endswith(PARQUET)
    if workload.dataset != SYNTHETIC and not handed_over:
        named.append(("datasets", workload.dataset))
    for kind, name in named:
        if is_builtin(name):
            if is_packaged(name):  # made from a package of this machine; a container's worker finds it in its cache
                place = builtin_place(name)
                mounts.append(Mounted(str(place), f"{CACHE}/{place.relative_to(cache_root().parents[1])}"))
            continue
        mounted = found_here(kind, name)
        if mounted is not None:
            mounts.append(mounted)
        elif not is_path(name):  # else it is a path within the image
            downloads.append(name)
    files = (config.settings.get("ca_file") if served else None, config.workload.times_file)
    for path in (found(str(file)) for file in files if file):
        if path is not None:
            mounts.append(Mounted(str(path.absolute()), str(path.absolute())))
    base_url = config.settings.get("base_url") if served else None
    server = str(base_url) if base_url else None
    return Inputs(tuple(dict.fromkeys(mounts)), tuple(downloads), server)


def found_here(kind: str, name: str) -> Mounted | None:
    """What to mount for one of the hub's `models` or `datasets`: a path (the same inside) or its cache; or `None`."""
    path = found(name)
    cached = cached_repository(kind, name)
    if path is not None:
        return Mounted(str(path.absolute()), str(path.absolute()))
    if any((cached / "snapshots").glob("*")):
        return Mounted(str(cached), f"{HUB}/{cached.name}")
    return None


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with absolute paths of local files: a container has another working directory."""
    named = config.workload.dataset
    dataset = named if named in data_sets() else _absolute(named)
    served = engine_info(config.engine).serves_over_http
    settings = dict(config.settings)
    if served and settings.get("ca_file"):
        settings["ca_file"] = _absolute(str(settings["ca_file"]))
    return replace(
        config,
        settings=settings,
        model=config.model if served else _absolute(config.model),
        lora=_absolute(config.lora) if config.lora else config.lora,
        workload=replace(config.workload, dataset=dataset),
    )


def _absolute(name: str) -> str:
    path = found(name)
    return name if path is None else str(path.absolute())


ENDPOINT = "https://huggingface.co"


def hub_problem(name: str, image: str, *, timeout_s: float = 10.0) -> DockerError | None:
    """Why the hub would refuse `name`, or `None`: by a model's configuration (gated pages are public), or the page."""
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{name}/resolve/main/config.json", method="HEAD")
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as answer:
        if answer.code in (401, 403):
            code = answer.headers.get("X-Error-Code")
            absent = code == "RepoNotFound" or (code is None and not token)
            return docker_error("hf_not_found" if absent else "hf_gated", image, message=f"{name}: HTTP {answer.code}")
        if answer.code == 404:
            return docker_error("hf_not_found", image, message=f"{name}: HTTP 404")
        return docker_error("network", image, message=f"{endpoint} answered HTTP {answer.code} for {name}")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as problem:
        return docker_error("network", image, message=f"{endpoint} cannot be reached for {name}: {problem}")
