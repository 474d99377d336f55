"""What a race takes and what it answers: settings, what was seen of them, and their fates.

The session fills `Setting` and `Seen`, and writes `Race` to `optimize.json`; the report draws it. A field may be added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_llem.errors import JsonValue

OPEN = 700.0
"""Logarithm from which on a bound says nothing. Chosen: the exponential overflows a little above."""
State = Literal["in", "dropped", "infeasible", "failed", "not needed"]
RaceStatus = Literal["running", "found", "undecided", "infeasible"]


@dataclass(frozen=True)
class Setting:
    """A setting of the sweep: its id, and the value of each swept setting; one that is dormant in it is absent."""

    id: str
    levels: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One cycle of one setting, as far as the race is concerned.

    `value` is of the metric, and `limited` of those in `subject_to`; `None` where the cycle is not valid, or has none.
    A setting of which one is not positive, or infinite, has failed: its other cycles would tell of the better ones.
    `own_error_rel` is the standard uncertainty (k=1, relative) of `value` that no number of cycles averages out, and
    that this setting does not share with the others: of its meter, or of another run. `limit_errors_rel` are
    those of `limited`, with what all settings share, such as a board's gain: a limit is no ratio, and cancels nothing.
    `questions` are right and asked ones where `accuracy` is limited, `requests` good ones and their effective number
    where `slo_met_share` is: without them nothing is proven of a share. `failed` says why there is no value.
    """

    value: float | None
    limited: Mapping[str, float | None] = field(default_factory=dict)
    own_error_rel: float = 0.0
    questions: tuple[int, int] | None = None
    requests: tuple[float, float] | None = None
    failed: str | None = None
    limit_errors_rel: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bounds:
    """A figure after a round, with a bound on either side; each holds by itself with the race's confidence.

    They hold in all rounds together. An open side is `None`.
    """

    round: int
    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return " to ".join("?" if end is None else f"{end:.4g}" for end in (self.low, self.high))


def end_of(logarithm: float) -> float | None:
    """The figure at a bound's logarithm, `None` where that side is open: a meter's error may be unknown."""
    return math.exp(logarithm) if abs(logarithm) < OPEN else None


@dataclass(frozen=True)
class Fate:
    """What became of a setting.

    `after_round` is when it left, and `reason` why, as a sentence; `None` while it is in. `ratios` are of its figure to
    that of the best rivals, `beside`, round by round. `limited` are the last ones of its limited metrics, in their
    units. `feasible` is whether it is proven to keep all limits (`True`) or to break one, `None` where neither is.
    """

    state: State
    after_round: int | None = None
    reason: str | None = None
    cycles: int = 0
    ratios: tuple[Bounds, ...] = ()
    beside: str | None = None
    limited: Mapping[str, Bounds] = field(default_factory=dict)
    feasible: bool | None = None


@dataclass(frozen=True)
class Race:
    """Where a race stands: with the stated confidence the best setting is one whose fate is `in`.

    `needed` are the settings that the next round measures; none once the race is over. `regret_high` is how much worse
    than the best the recommended setting is at most, as a share, with the same confidence. `rests_on` names the
    structure that was assumed.
    """

    fates: Mapping[str, Fate]
    needed: frozenset[str]
    recommended: str | None
    regret_high: float | None
    status: RaceStatus
    sentence: str
    rounds: int
    rests_on: str | None = None

    @property
    def best(self) -> tuple[str, ...]:
        """The settings of which the best is one."""
        return tuple(name for name, fate in self.fates.items() if fate.state == "in")
