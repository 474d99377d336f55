"""The `ray:` section of a study, and how a study's cycles are to be run on a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_llem.errors import JsonValue
from pytest_llem.machine.cooldown import Setting as Cooldown


@dataclass(frozen=True)
class NodeTerms:
    """The study's terms that a node keeps to by itself: see `execution` and `docker`."""

    residual_memory_bytes: int
    cooldown: Cooldown
    docker: Mapping[str, JsonValue] = field(default_factory=dict)
