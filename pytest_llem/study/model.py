"""A loaded study: its experiments, how they are to be run, and what was left out.

Imports nothing that loading needs, and all of it can be pickled: xdist's workers get it from the controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pytest_llem.errors import JsonValue
from pytest_llem.study.limits import Budget, Comparison
from pytest_llem.study.problems import Location

Keyword = str | int | bool

FlatSettings = dict[str, JsonValue]

Order = Literal["sequential", "interleaved", "shuffled"]

Isolation = Literal["process", "experiment", "load"]


@dataclass(frozen=True)
class Execution:
    """How often and in which order; what each means is said in `study.schema.Execution`, which checks them."""

    cycles: int
    order: Order
    timeout_s: float
    load_timeout_s: float | None
    cooldown: Literal["auto"] | float
    residual_memory_bytes: int
    retries: int
    isolation: Isolation
    target_ci: float | None
    max_cycles: int
    headline: str


@dataclass(frozen=True)
class Overrides:
    """What the command line says over a study."""

    cycles: int | None = None
    order: str | None = None
    fail_if: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A point that is not run: its id, why, and where that was decided."""

    id: str
    reason: str
    location: Location


@dataclass(frozen=True)
class Notice:
    """Something a reader of the study should know; `code` is stable."""

    code: str
    message: str
    location: Location

    def __str__(self) -> str:
        return f"{self.location}: {self.message}"


@dataclass(frozen=True)
class Gates:
    """The checks on an experiment's cycles, and its words for `-k`."""

    expect: tuple[Budget, ...] = ()
    compare: Comparison | None = None
    tags: tuple[str, ...] = ()


class SettingsSlice(NamedTuple):
    """What a combination of settings comes to: a part of one experiment, shared by all that have it.

    `key` is equal for combinations that do the same, `labels` are the parts of an id with the index of their axis.
    """

    key: str
    kept: FlatSettings
    keywords: Mapping[str, Keyword]
    labels: tuple[tuple[int, str], ...]
