"""From the `sweep` of a study to axes: alternatives that each make some settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.study import fields
from pytest_llem.study.document import KeyPath, kind
from pytest_llem.study.fields import Field, keyword
from pytest_llem.study.flatten import CLEAR, Clear, Report, Setting, settings_at
from pytest_llem.study.naming import text_of
from pytest_llem.study.ranges import MAX_NUMBERS, BadRangeError, is_range, numbers

_LIST_HINT = "write a list of values, or {range: [start, stop, step]}"


@dataclass(frozen=True)
class Alternative:
    """One choice on an axis: the settings it makes, and its part of an id."""

    settings: tuple[Setting, ...]
    label: str
    origin: KeyPath


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep. `paths` are all leaves that some alternative sets or clears."""

    name: str
    alternatives: tuple[Alternative, ...]
    origin: KeyPath
    paths: frozenset[str]


def parse_sweep(data: Mapping[str, JsonValue], report: Report, origin: KeyPath = ("sweep",)) -> list[Axis]:
    """The axes of a sweep in written order. Problems go to `report`."""
    axes: list[Axis] = []
    for key, value in data.items():
        axes.extend(_axes(key, value, report, (*origin, key)))
    _check_overlap(axes, report)
    return axes


def _axes(path: str, value: JsonValue, report: Report, place: KeyPath) -> list[Axis]:
    item = fields.find(path)
    if isinstance(value, list) and _is_group(path, item, value):
        return _one(_group(path, value, report, place), path, place)
    if item is None:
        hint = fields.suggest_path(path)
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) or entry is None for entry in value):
            hint = "a named group is a list of mappings of settings"
        report(place, f"sweep: unknown setting {path!r}", hint, True)
        return []
    if item.kind != "leaf" and isinstance(value, Mapping) and not is_range(value) and path == item.path:
        if not value:
            report(place, f"sweep: {path} is empty", _LIST_HINT, True)
        return [axis for key, inner in value.items() for axis in _axes(f"{path}.{key}", inner, report, (*place, key))]
    return _one(_plain(item, path, value, report, place), path, place)


def _one(alternatives: Sequence[Alternative], name: str, place: KeyPath) -> list[Axis]:
    if not alternatives:
        return []
    paths = frozenset(setting.path for alternative in alternatives for setting in alternative.settings)
    return [Axis(name, tuple(alternatives), place, paths)]


def _is_group(path: str, item: Field | None, value: list[JsonValue]) -> bool:
    if not value or not all(isinstance(entry, Mapping) for entry in value) or any(is_range(entry) for entry in value):
        return False
    if item is None or item.kind == "leaf":
        return item is None
    keys = [key for entry in value if isinstance(entry, Mapping) for key in entry]
    return any(fields.find(f"{path}.{key}") is None and fields.find(key) is not None for key in keys)


def _plain(item: Field, path: str, value: JsonValue, report: Report, place: KeyPath) -> list[Alternative]:
    found: list[Alternative] = []
    for where, entry in _values(item, value, report, place):
        settings = settings_at(item, path, entry, report, where)
        is_nothing = item.kind != "leaf" and isinstance(entry, Mapping) and not entry
        if not settings and not is_nothing:
            continue
        found.append(Alternative(tuple(settings), _label(item, path, settings), where))
    return found


def _label(item: Field, path: str, settings: Sequence[Setting]) -> str:
    if item.kind == "leaf" or (path != item.path and settings and settings[0].path == path):
        return f"{keyword(path)}:{text_of(_shown(settings[0]))}"
    inner = "-".join(f"{keyword(s.path)}:{text_of(_shown(s))}" for s in settings if s.value is not CLEAR)
    return inner or f"{path.rpartition('.')[2]}:none"


def _shown(setting: Setting) -> JsonValue:
    return None if isinstance(setting.value, Clear) else setting.value


def _values(item: Field, value: JsonValue, report: Report, place: KeyPath) -> list[tuple[KeyPath, JsonValue]]:
    """The values of an axis, each with its place: a list's items, a range's numbers, or the value itself."""
    if isinstance(value, list):
        if not value:
            report(place, f"sweep: {'.'.join(map(str, place[1:]))} has no values", _LIST_HINT, False)
            return []
        if item.takes_list and not any(isinstance(entry, list) or entry is None for entry in value):
            return [(place, value)]
        found: list[tuple[KeyPath, JsonValue]] = []
        for index, entry in enumerate(value):
            found.extend(_expanded(entry, report, (*place, index)))
        return found
    return _expanded(value, report, place)


def _expanded(entry: JsonValue, report: Report, place: KeyPath) -> list[tuple[KeyPath, JsonValue]]:
    if not isinstance(entry, Mapping) or not is_range(entry):
        return [(place, entry)]
    try:
        return [(place, number) for number in numbers(entry)]
    except BadRangeError as problem:
        report(place, f"sweep: {problem.text}", problem.fix, False)
        return []


def _group(name: str, value: list[JsonValue], report: Report, place: KeyPath) -> list[Alternative]:
    found: list[Alternative] = []
    for index, entry in enumerate(value):
        where = (*place, index)
        if not isinstance(entry, Mapping):
            report(where, f"sweep: group {name}: expected a mapping of settings, got {kind(entry)}", None, False)
            continue
        found.extend(_group_entry(name, entry, report, where))
    return found


def _group_entry(name: str, entry: Mapping[str, JsonValue], report: Report, place: KeyPath) -> list[Alternative]:
    choices: list[list[tuple[list[Setting], str]]] = []
    for path, value, where in _spread(entry, place, ""):
        item = fields.find(path)
        if item is None:
            report(where, f"sweep: group {name}: unknown setting {path!r}", fields.suggest_path(path), True)
            continue
        options: list[tuple[list[Setting], str]] = []
        for at, single in _values(item, value, report, where):
            settings = settings_at(item, path, single, report, at)
            if settings:
                options.append((settings, _label(item, path, settings)))
        if options:
            choices.append(options)
    count = math.prod(len(options) for options in choices)
    if count > MAX_NUMBERS:
        report(place, f"sweep: group {name}: {count:,} alternatives", f"keep them under {MAX_NUMBERS:,}", False)
        return []
    return [
        Alternative(
            tuple(setting for settings, _ in combination for setting in settings),
            "-".join(label for _, label in combination) or f"{keyword_of_group(name)}:none",
            place,
        )
        for combination in itertools.product(*choices)
    ]


def keyword_of_group(name: str) -> str:
    """A group's name as part of an id."""
    return text_of(name.rpartition(".")[2])


def _spread(entry: Mapping[str, JsonValue], place: KeyPath, above: str) -> Iterable[tuple[str, JsonValue, KeyPath]]:
    """The leaves of a group's entry; a nested mapping of a section is walked, so that lists inside it expand."""
    for key, value in entry.items():
        path = f"{above}{key}"
        item = fields.find(path)
        nested = item is not None and item.kind != "leaf" and item.path == path
        if nested and isinstance(value, Mapping) and value and not is_range(value):
            yield from _spread(value, (*place, key), f"{path}.")
        else:
            yield path, value, (*place, key)


def _check_overlap(axes: Sequence[Axis], report: Report) -> None:
    owner: dict[str, Axis] = {}
    for axis in axes:
        for path in sorted(axis.paths):
            other = _holder(path, owner)
            if other is not None and other is not axis:
                text = f"sweep: {path} is set by two axes, {other.name!r} and {axis.name!r}"
                report(axis.origin, text, "set it in one of them, or make a group of both", True)
                return
        owner.update(dict.fromkeys(axis.paths, axis))


def _holder(path: str, owner: Mapping[str, Axis]) -> Axis | None:
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        found = owner.get(".".join(parts[:length]))
        if found is not None:
            return found
    return next((axis for known, axis in owner.items() if known.startswith(f"{path}.")), None)


@dataclass(frozen=True)
class Exclusion:
    """Points to leave out: those where every path has one of its values."""

    conditions: tuple[tuple[str, tuple[JsonValue, ...]], ...]
    origin: KeyPath

    @property
    def paths(self) -> frozenset[str]:
        """The settings it looks at."""
        return frozenset(path for path, _ in self.conditions)


def parse_exclude(data: JsonValue, report: Report, origin: KeyPath = ("exclude",)) -> list[Exclusion]:
    """The exclusions of a study; a list for a plain setting means any of its values."""
    if not isinstance(data, list):
        report(origin, f"exclude: expected a list of mappings, got {kind(data)}", "write - {dtype: float32}", False)
        return []
    found: list[Exclusion] = []
    for index, entry in enumerate(data):
        place = (*origin, index)
        if not isinstance(entry, Mapping) or not entry:
            report(
                place, f"exclude: expected a mapping of settings, got {kind(entry)}", "write {dtype: float32}", False
            )
            continue
        found.append(Exclusion(tuple(_conditions(entry, report, place)), place))
    return found


def _conditions(
    entry: Mapping[str, JsonValue], report: Report, place: KeyPath
) -> Iterable[tuple[str, tuple[JsonValue, ...]]]:
    for path, value, where in _spread(entry, place, ""):
        item = fields.find(path)
        if item is None:
            report(where, f"exclude: unknown setting {path!r}", fields.suggest_path(path), True)
            continue
        if item.kind == "section":
            report(
                where,
                f"exclude: {path} is a section",
                f"name a setting in it: {path}.{next(iter(item.children))}",
                True,
            )
            continue
        values: list[JsonValue] = []
        for at, single in _values(item, value, report, where):
            values.extend(
                s.value for s in settings_at(item, path, single, report, at) if not isinstance(s.value, Clear)
            )
        yield path, tuple(values)
