"""The swept axes of a race's settings as a declared structure sees them.

`additive` and `monotone` read them. A study of which a structure cannot use the axes is refused when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pytest_llem.errors import JsonValue
from pytest_llem.results.axes import numbers
from pytest_llem.results.racing.fitting import Row

Levels = Mapping[str, JsonValue]
_DORMANT = ""


@dataclass(frozen=True)
class RacedAxis:
    """A swept setting and its levels in order: numbers rise, and one that is dormant is a level of its own.

    It is `numeric` where every level but that is a number.
    """

    name: str
    places: Mapping[str, int]
    numeric: bool

    def place(self, levels: Levels) -> int:
        """Which of the axis' levels a setting has."""
        return self.places[_key(self.name, levels)]


def axes_of(settings: Sequence[Levels]) -> tuple[RacedAxis, ...]:
    """The axes in which the settings differ."""
    made = []
    for name in dict.fromkeys(name for levels in settings for name in levels):
        found = {_key(name, levels): levels.get(name) for levels in settings}
        if len(found) < 2:
            continue
        ordered = sorted(found, key=lambda key: numbers([found[key]]) or [float("-inf")])
        numeric = len(numbers(found.values())) == len(found.keys() - {_DORMANT})
        made.append(RacedAxis(name, {key: place for place, key in enumerate(ordered)}, numeric))
    return tuple(made)


def _key(name: str, levels: Levels) -> str:
    return json.dumps(levels[name], sort_keys=True, default=str) if name in levels else _DORMANT


def rows_of(settings: Sequence[Levels]) -> list[Row]:
    """Each setting as the columns of its effects: a constant, and each level of an axis but the first."""
    axes = axes_of(settings)
    begin = list(accumulate((len(axis.places) - 1 for axis in axes), initial=0))
    placed = ([(at, axis.place(levels)) for at, axis in zip(begin, axes, strict=False)] for levels in settings)
    return [(0, *(at + place for at, place in each if place)) for each in placed]
