"""The parts of a loaded study: how its experiments run, their gates, and the points that are not run.

Loading fills them in, the session and `results` read them. They must pickle, and import nothing that loading needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import AskedKind
from pytest_llem.job.metric_names import HEADLINE
from pytest_llem.job.setting import Fraction, Limits, Name, NonNegativeFloat, NonNegativeInt, PositiveFloat, setting
from pytest_llem.study.limits import Budget, Comparison
from pytest_llem.study.problems import Location

Keyword = str | int | bool
FlatSettings = dict[str, JsonValue]
Order = Literal["sequential", "interleaved", "shuffled", "balanced"]
Isolation = Literal["process", "experiment", "load"]


@dataclass(frozen=True)
class Execution:
    """How often and in which order; nothing here changes what an experiment measures."""

    cycles: Annotated[int, Limits(ge=1, le=10_000)] = setting(3, "Repetitions of each experiment.")
    order: Order = setting("sequential", "Order of experiments and cycles.")
    timeout_s: PositiveFloat = setting(1800.0, "Longest time of one cycle.")
    load_timeout_s: PositiveFloat | None = setting(None, "Longest time to load the engine.")
    cooldown: Literal["auto"] | NonNegativeFloat = setting(
        "auto", "Seconds between cycles; `auto` waits until power and temperature settle."
    )
    residual_memory_bytes: NonNegativeInt = setting(
        100_000_000, "Most memory that may be in use on a leased GPU before a cycle.", [100_000_000]
    )
    retries: Annotated[int, Limits(ge=0, le=100)] = setting(1, "Further attempts at an invalid cycle.")
    isolation: Isolation = setting("process", "A fresh process per cycle, per experiment, or per loaded engine.")
    target_ci: Fraction | None = setting(
        None, "Add cycles until the headline's interval is this narrow (relative half-width)."
    )
    max_cycles: Annotated[int, Limits(ge=1, le=10_000)] = setting(10, "Most cycles with `target_ci`.")
    headline: Name = setting(HEADLINE, "Metric of the summary and of `target_ci`.")
    confirm: bool = setting(False, "Measure an experiment's cycles once more before its gate fails.")

    @property
    def last_cycle(self) -> int:
        """The number of the last cycle that may be measured, were none precise enough for `target_ci` before it."""
        return self.cycles if self.target_ci is None else max(self.cycles, self.max_cycles)


@dataclass(frozen=True)
class Overrides:
    """Values of the command line that stand above a study's; `device` stands for a `device.kind` of auto."""

    cycles: int | None = None
    device: AskedKind = "auto"
    order: str | None = None
    fail_if: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OmittedPoint:
    """A point that is not run: its id, the reason, and the position in the file that decided it."""

    id: str
    reason: str
    location: Location


@dataclass(frozen=True)
class SourceText:
    """A file of a study as it was read, with its placeholders; the text is `None` where it is too large to keep."""

    path: str
    text: str | None
    sha256: str


@dataclass(frozen=True)
class Notice:
    """A note for the reader of a study; `code` is stable."""

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


@dataclass(frozen=True)
class SweptAxis:
    """A dimension of a sweep: its `name` as written, a short `title`, and the value behind each label of its points.

    A value is the number, boolean or text as written; of a group whose alternatives set different things, a text.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    values: tuple[JsonValue, ...]

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers, so that a line may join them."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)


class SettingsSlice(NamedTuple):
    """The canonical settings of one combination: a part of every experiment that has it, shared between them.

    `key` is equal for combinations that do the same; `labels` are the parts of an id with the index of their axis.
    """

    key: str
    kept: FlatSettings
    keywords: Mapping[str, Keyword]
    labels: tuple[tuple[int, str], ...]
