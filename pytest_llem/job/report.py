"""What a runner reports of a cycle beside the measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_llem.errors import JsonValue


@dataclass(frozen=True)
class Note:
    """Something the reader of a result must know: a stable code and a sentence."""

    code: str
    message: str


RunnerName = Literal["local", "docker", "ray"]

RunnerSource = Literal["command line", "environment", "study", "user settings", "detected", "default"]


@dataclass(frozen=True)
class RunnerSpec:
    """Which runner an engine gets, with what (`image`, `address`), and who said so (`source`)."""

    name: RunnerName
    source: RunnerSource
    image: str | None = None
    address: str | None = None


@dataclass(frozen=True)
class RunReport:
    """How a cycle was run; goes into the result's `runner` section. `start_method` of `None` is the worker's to say.

    `environment` (`machine.environment.gather`) and `inputs` (`machine.inputs.input_facts`) are those of the machine
    that ran it, where that is another one.
    """

    name: RunnerName
    source: RunnerSource
    isolation: str
    image: str | None = None
    image_digest: str | None = None
    start_method: str | None = None
    notes: tuple[Note, ...] = ()
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    environment: Mapping[str, JsonValue] | None = None
    inputs: Mapping[str, JsonValue] | None = None
