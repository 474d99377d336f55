"""The sections `docker` and `ray` of a study: how containers are made, and what cycles ask of a cluster.

`parts` checks them, `schema` and `published` publish them, and the runners for Docker, servers and Ray read them.
Nothing here may change what an experiment is, because its hash leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.setting import (
    Limits,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    section,
    setting,
)
from pytest_llem.job.wire import decode, encode

Lifecycle = Literal["ephemeral", "session"]
Network = Literal["auto", "none", "host", "bridge"]
Pull = Literal["missing", "never", "always"]
_SIZE = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*) ?[bkmgtBKMGT]?([iI]?[bB])?"
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

Size = PositiveInt | Annotated[str, Limits(pattern=f"^{_SIZE}$", message="a size like 512m or 16g")]
"""Bytes, or a text like `512m` or `16g` in powers of 1024."""


@dataclass(frozen=True)
class DockerSettings:
    """Containers of this study's Docker runners."""

    lifecycle: Lifecycle = setting(
        "ephemeral", "A container per cycle, or one per image and devices that is kept for the run."
    )
    memory: Size | None = setting(None, "Memory limit of a container; null is none.", ["32g"])
    shm_size: Size = setting("8g", "Size of /dev/shm, which parallel engines use.", ["16g"])
    network: Network = setting("auto", "Network of a container; `auto` is none unless something must be downloaded.")
    pull: Pull = setting("missing", "When an image is pulled.")
    pull_timeout_s: NonNegativeFloat = setting(3600.0, "Longest time of a pull.")
    max_restarts: NonNegativeInt = setting(2, "How often an unhealthy `session` container is replaced.")
    residual: Size = setting("100m", "GPU memory that may be in use before a cycle in a `session` container.")
    pids_limit: NonNegativeInt = setting(8192, "Most processes and threads in a container.")
    capabilities: tuple[Name, ...] = setting((), "Linux capabilities to add; all others are dropped.", [["IPC_LOCK"]])
    mounts: tuple[Name, ...] = setting(
        (),
        "Directories to mount read-only, each at its own path; relative ones start at the study.",
        [["/data/models"]],
    )

    def __post_init__(self) -> None:
        # A size is refused where it is read, not where a container is made.
        _ = self.memory_bytes, self.shm_size_bytes, self.residual_bytes

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit; `None` is none."""
        return None if self.memory is None else parse_size(self.memory, "docker.memory")

    @property
    def shm_size_bytes(self) -> int:
        """The size of /dev/shm."""
        return parse_size(self.shm_size, "docker.shm_size")

    @property
    def residual_bytes(self) -> int:
        """How much GPU memory may be in use before a cycle in a `session` container."""
        return parse_size(self.residual, "docker.residual")

    @classmethod
    def from_mapping(cls, data: Mapping[str, JsonValue]) -> DockerSettings:
        """The section with defaults for what it leaves out. `SettingsError` for a bad key, type or size."""
        try:
            return decode(cls, data, "docker")
        except ValueError as problem:
            raise SettingsError(str(problem), fix="correct the section docker of the study") from None


ACCEPTED_RUNNERS = "local, docker, docker:IMAGE, ray, ray:ADDRESS"


def runner_problem(value: str) -> str | None:
    """What is wrong with a runner as a study, an option or a variable names it."""
    name, colon, rest = value.strip().partition(":")
    if name not in ("local", "docker", "ray"):
        return f"unknown runner {value!r}"
    if colon and name == "local":
        return f"runner {value!r}: local takes nothing after it"
    if colon and not rest.strip():
        return f"runner {value!r}: nothing after the colon"
    if any(letter.isspace() or not letter.isprintable() for letter in rest.strip()):
        return f"runner {value!r}: blanks or control characters in what follows the colon"
    return None


def parse_size(value: int | str, where: str) -> int:
    """Bytes from `16g`, `512m`, `1.5g` or a plain number; units are powers of 1024. Raises `SettingsError`."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", str(value).strip().lower())
    if isinstance(value, str) and match and float(match[1]) > 0:
        return int(float(match[1]) * _UNITS[match[2]])
    raise SettingsError(f"{where}: {value!r} is not a size", fix="write it like 512m or 16g")


@dataclass(frozen=True)
class RuntimeEnvironment:
    """What Ray installs or sets on a node for this study's cycles, in Ray's own words."""

    pip: tuple[Name, ...] | Mapping[str, JsonValue] | Name | None = setting(
        None, "Packages to install, or the path of a requirements file.", [["pytest-llem"]]
    )
    uv: tuple[Name, ...] | Mapping[str, JsonValue] | Name | None = setting(None, "The same, with uv.")
    conda: Mapping[str, JsonValue] | Name | None = setting(None, "A conda environment.")
    py_modules: tuple[Name, ...] | None = setting(None, "Python modules to upload: paths or URIs.")
    working_dir: Name | None = setting(None, "A directory to upload: a path or a URI.")
    env_vars: Mapping[str, str] | None = setting(None, "Environment variables; never for secrets.")
    image_uri: Name | None = setting(None, "An image for the whole Ray worker (Ray needs podman there).")
    config: Mapping[str, JsonValue] | None = setting(None, "Options of Ray's set-up, e.g. its time limit.")

    @property
    def given(self) -> dict[str, JsonValue]:
        """What is set, as Ray takes it."""
        return {key: encode(value) for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class RaySettings:
    """Cycles of this study on a Ray cluster."""

    accelerator_type: Name | None = setting(None, "Only nodes with this accelerator.", ["H100"])
    resources: Mapping[str, PositiveFloat] = section(
        dict, "Named resources that a cycle takes, by amount.", [{"lab_a": 1}]
    )
    cpus: PositiveFloat | None = setting(
        None, "CPUs that a cycle takes; default is 1 beside GPUs, and a whole node for the CPU itself."
    )
    image: Name | None = setting(None, "Run each cycle in a container of this image on its node.")
    runtime_env: RuntimeEnvironment = section(
        RuntimeEnvironment, "What Ray installs or sets on the nodes.", [{"pip": ["pytest-llem"]}]
    )
    max_in_flight: Annotated[PositiveInt, Limits(le=10_000)] | None = setting(
        None, "Most cycles submitted at a time; default is twice what the cluster runs, at most 512."
    )
    node_losses: NonNegativeInt = setting(2, "How often a cycle whose node is lost is tried again.")
    wait_for_nodes_s: NonNegativeFloat = setting(
        0.0, "How long to wait for a node that can run a cycle, where the cluster grows by itself."
    )
