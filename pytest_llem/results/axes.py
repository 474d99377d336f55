"""The axes of a study's sweep as its results know them: tables have a column per axis, charts and comparisons use one.

The manifest keeps them. The summary, the report, exports and the commands read them; results that came without their
run have the settings in which they differ instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pytest_llem.errors import JsonValue
from pytest_llem.study.model import SweptAxis
from pytest_llem.study.naming import text_of


@dataclass(frozen=True)
class StudyAxes:
    """The axes of a study, and by the id of an experiment its value on each, `None` where the axis has no effect.

    `settings` are the names of others in which experiments differ: those that a group sets, or an explicit experiment.
    """

    axes: tuple[SweptAxis, ...] = ()
    points: Mapping[str, tuple[JsonValue, ...]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()

    def point(self, experiment_id: str) -> dict[str, JsonValue]:
        """The values of an experiment by the name of the axis; empty for one that no sweep made."""
        values = self.points.get(experiment_id, ())
        if all(value is None for value in values):
            return {}
        return {axis.name: value for axis, value in zip(self.axes, values, strict=True)}

    def place(self, point: Mapping[str, JsonValue]) -> list[int]:
        """Where a point stands in the order of the sweep, whatever order it was run in.

        One on which an axis has no effect stands where its values begin, an experiment without a point at the end.
        """
        return [of.get(repr(point.get(name)), -1 if point else len(of)) for name, of in self._places]

    @cached_property
    def _places(self) -> list[tuple[str, dict[str, int]]]:
        return [(axis.name, {repr(value): place for place, value in enumerate(axis.values)}) for axis in self.axes]

    def tells_apart(self, experiment_ids: Iterable[str]) -> bool:
        """Whether the values on the axes alone name these experiments: if not, a table needs their ids as well."""
        points = [tuple(self.point(experiment_id).items()) for experiment_id in experiment_ids]
        return all(points) and len({str(point) for point in points}) == len(points)


def differing(settings: Mapping[str, Mapping[str, JsonValue]]) -> StudyAxes:
    """The settings in which experiments differ, as axes. `settings` holds flat ones by the id of an experiment."""
    names = dict.fromkeys(name for each in settings.values() for name in each)
    varied = [name for name in names if len({repr(each.get(name)) for each in settings.values()}) > 1]
    tails = Counter(name.rpartition(".")[2] for name in varied)
    axes = []
    for name in varied:
        tail = name.rpartition(".")[2]
        values = {repr(value): value for each in settings.values() if (value := each.get(name)) is not None}
        title = tail if tails[tail] == 1 else name
        axes.append(SweptAxis(name, title, tuple(map(text_of, values.values())), tuple(values.values())))
    return StudyAxes(tuple(axes), {id: tuple(each.get(name) for name in varied) for id, each in settings.items()})


def joined(axes_of_runs: Iterable[Sequence[SweptAxis]]) -> tuple[SweptAxis, ...]:
    """The axes of runs of one study, whose sweep may have grown between them."""
    found: dict[str, SweptAxis] = {}
    for axis in (axis for axes in axes_of_runs for axis in axes):
        known = found.setdefault(axis.name, axis)
        values = dict(zip([*known.labels, *axis.labels], [*known.values, *axis.values], strict=True))
        found[axis.name] = replace(known, labels=tuple(values), values=tuple(values.values()))
    return tuple(found.values())


def written(value: JsonValue) -> str:
    """A value as a cell of a table: `-` where an axis has no effect."""
    return "-" if value is None else value if isinstance(value, str) else text_of(value)


def numbers(values: Iterable[JsonValue]) -> list[float]:
    """The numbers among an axis' values, in order; `default` and other words are none."""
    return sorted(value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool))
