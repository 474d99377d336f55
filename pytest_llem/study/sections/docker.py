"""The `docker` section: how containers are made. It never changes what an experiment is, and so not its hash.

The names and defaults are those of `containers.options.DockerSettings`, which is not imported here: a test holds both
together.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from pytest_llem.study.sections.section import Name, NonNegativeFloat, NonNegativeInt, PositiveInt, Section

_SIZE = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*) ?[bkmgtBKMGT]?([iI]?[bB])?"


def _size(text: str) -> str:
    if not re.fullmatch(_SIZE, text):
        raise ValueError("a size like 512m or 16g")
    return text


Size = PositiveInt | Annotated[str, AfterValidator(_size), WithJsonSchema({"type": "string", "pattern": f"^{_SIZE}$"})]
"""Bytes, or a text like `512m` or `16g` in powers of 1024."""


class Docker(Section):
    """Containers of this study's Docker runners."""

    lifecycle: Literal["ephemeral", "session"] = Field(
        "ephemeral", description="A container per cycle, or one per image and devices that is kept for the run."
    )
    memory: Size | None = Field(None, description="Memory limit of a container; null is none.", examples=["32g"])
    shm_size: Size = Field("8g", description="Size of /dev/shm, which parallel engines use.", examples=["16g"])
    network: Literal["auto", "none", "host", "bridge"] = Field(
        "auto", description="Network of a container; `auto` is none unless something must be downloaded."
    )
    pull: Literal["missing", "never", "always"] = Field("missing", description="When an image is pulled.")
    pull_timeout_s: NonNegativeFloat = Field(3600.0, description="Longest time of a pull.")
    max_restarts: NonNegativeInt = Field(2, description="How often an unhealthy `session` container is replaced.")
    residual: Size = Field("100m", description="GPU memory that may be in use before a cycle in a `session` container.")
    pids_limit: NonNegativeInt = Field(8192, description="Most processes and threads in a container.")
    capabilities: list[Name] = Field(
        default_factory=list, description="Linux capabilities to add; all others are dropped.", examples=[["IPC_LOCK"]]
    )
    mounts: list[Name] = Field(
        default_factory=list,
        description="Directories to mount read-only, each at its own path; relative ones start at the study.",
        examples=[["/data/models"]],
    )
