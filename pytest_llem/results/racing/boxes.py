"""Boxes of settings in a grid of numbers, whose corners bound all that is in them where figures only rise or fall.

`monotone` races their corners. Everything but the numbers is equal in a box.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from pytest_llem.results.axes import numbers
from pytest_llem.results.racing.answer import Setting
from pytest_llem.results.racing.axes import axes_of

Point = tuple[float, ...]


@dataclass(frozen=True)
class Box:
    """Settings by their numbers; every combination of the levels is one, so that all corners exist."""

    named: Mapping[Point, str]

    @cached_property
    def levels(self) -> tuple[tuple[float, ...], ...]:
        """The levels of each axis, rising."""
        return tuple(tuple(sorted(set(each))) for each in zip(*self.named, strict=True))

    @cached_property
    def corners(self) -> tuple[str, ...]:
        """The settings that have the first or the last level of every axis."""
        return tuple(self.named[point] for point in product(*(dict.fromkeys((x[0], x[-1])) for x in self.levels)))

    @property
    def inner(self) -> tuple[str, ...]:
        """All settings but the corners."""
        return tuple(name for name in self.named.values() if name not in self.corners)

    def halves(self) -> list[Box]:
        """Smaller boxes, which share the settings at which the two axes of most levels are cut."""
        longest = sorted(range(len(self.levels)), key=lambda axis: -len(self.levels[axis]))[:2]
        parts = [self]
        for axis in longest:
            levels = self.levels[axis]
            if len(levels) > 2:
                middle = levels[len(levels) // 2]
                parts = [half for part in parts for half in part.cut(axis, middle, middle)]
        return parts

    def cut(self, axis: int, last: float, first: float) -> list[Box]:
        """The settings up to a level of an axis, and those from a level on."""
        low = {point: name for point, name in self.named.items() if point[axis] <= last}
        high = {point: name for point, name in self.named.items() if point[axis] >= first}
        return [Box(low), Box(high)]

    def lines(self) -> Iterator[list[str]]:
        """The settings along each axis of three levels or more, in order, all else equal."""
        for axis, levels in enumerate(self.levels):
            for point in self.named if len(levels) > 2 else ():
                if point[axis] == levels[0]:
                    line = [(*point[:axis], level, *point[axis + 1 :]) for level in levels]
                    yield [self.named[each] for each in line]


def boxes_of(settings: Sequence[Setting]) -> list[Box]:
    """The settings in the largest boxes that hold all of them; what has no number is a box by itself."""
    axes = axes_of([setting.levels for setting in settings])
    numeric = [axis.name for axis in axes if axis.numeric]
    groups: dict[tuple[object, ...], dict[Point, str]] = defaultdict(dict)
    for setting in settings:
        of = setting.levels
        alike = tuple(axis.name in of if axis.numeric else axis.place(of) for axis in axes)
        point = tuple(numbers([of[name]])[0] for name in numeric if name in of)
        groups[alike][point] = setting.id
    return [box for group in groups.values() for box in _whole(Box(group))]


def _whole(box: Box) -> list[Box]:
    """A box in which combinations are missing as boxes in which none is."""
    if len(box.named) == prod(map(len, box.levels)):
        return [box]
    axis = max(range(len(box.levels)), key=lambda axis: len(box.levels[axis]))
    levels = box.levels[axis]
    middle = len(levels) // 2
    return [part for half in box.cut(axis, levels[middle - 1], levels[middle]) for part in _whole(half)]
