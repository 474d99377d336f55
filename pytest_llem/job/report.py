"""Notes to the reader of a result, and what a runner reports of a cycle beside the measurement.

Meters, engines, the worker, runners and `results` make notes, whose codes are part of the result format and stay.
`runners.resolution` makes specs; runners fill in `RunReport`, the result's section `runner`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_llem.errors import JsonValue, visible


@dataclass(frozen=True)
class Note:
    """Something that the reader of a result should know: a stable code and a sentence."""

    code: str
    message: str

    def __post_init__(self) -> None:
        """Both may come from an engine, a server or another package."""
        object.__setattr__(self, "code", visible(self.code))
        object.__setattr__(self, "message", visible(self.message))


RunnerName = Literal["local", "docker", "ray"]
RunnerSource = Literal["command line", "environment", "study", "user settings", "detected", "default"]


@dataclass(frozen=True)
class RunnerSpec:
    """The runner chosen for an engine, with its `image` or `address`, and which setting chose it (`source`)."""

    name: RunnerName
    source: RunnerSource
    image: str | None = None
    address: str | None = None


@dataclass(frozen=True)
class RunReport:
    """How a cycle was run, for the result's `runner` section. `start_method` of `None` is taken from the worker.

    `environment` and `inputs` (`machine.environment.gather` and `input_facts`) describe the machine that ran it, if it
    was another one.
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
