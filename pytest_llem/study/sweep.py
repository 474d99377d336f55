"""Reads the `sweep` and `exclude` of a study into axes, whose alternatives each make some settings.

The loader and `points` use it. Labels of alternatives, a range's numbers among them, become part of ids and must stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.engines import engine_names
from pytest_llem.errors import JsonValue
from pytest_llem.study import fields
from pytest_llem.study.declared import BadValueError
from pytest_llem.study.fields import CLEAR, Clear, Field, Report, WrittenSetting, keyword, settings_at
from pytest_llem.study.naming import text_of
from pytest_llem.study.ranges import MAX_NUMBERS, is_range, numbers
from pytest_llem.study.search import ARRIVAL, EXAMPLE, SEARCH, is_search
from pytest_llem.study.values import KeyPath, kind
from pytest_llem.study.written_search import parse_search

_LIST_HINT = "write a list of values, or {range: [start, stop, step]}"


@dataclass(frozen=True)
class Alternative:
    """One choice on an axis: the settings it makes, and its part of an id."""

    settings: tuple[WrittenSetting, ...]
    label: str
    origin: KeyPath


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep. `paths` are all settings that some alternative sets or clears.

    With `engine` the axis is a group of that name, `ENGINE.NAME`: only points of this engine have it.
    """

    name: str
    alternatives: tuple[Alternative, ...]
    origin: KeyPath
    paths: frozenset[str]
    engine: str | None = None


def parse_sweep(
    data: Mapping[str, JsonValue], report: Report, origin: KeyPath = ("sweep",), *, arrival: object = None
) -> list[Axis]:
    """The axes of a sweep in written order. Problems go to `report`; `arrival` is what all points share of it."""
    axes: list[Axis] = []
    for key, value in data.items():
        if key.rpartition(".")[0] == ARRIVAL and not is_search(value) and not _holds_search(value):
            axes += _single_axis(_of_arrival(key, value, arrival, report, (*origin, key)), key, (*origin, key))
        else:
            axes.extend(_axes(key, value, report, (*origin, key)))
        if sum(len(axis.alternatives) for axis in axes) > MAX_NUMBERS:
            report((*origin, key), f"sweep: more than {MAX_NUMBERS:,} values in all", "sweep fewer", True)
            return []
    _check_overlap(axes, report)
    return _searched_last(axes, report)


def _searched_last(axes: Sequence[Axis], report: Report) -> list[Axis]:
    """The axes with the searched one behind all others: ids end with it, and so do those of its windows."""
    searched = [axis for axis in axes if SEARCH in axis.paths]
    for second in searched[1:]:
        text = f"sweep: {second.name} is searched, and {searched[0].name} is as well"
        report(second.origin, text, "search one of them, and sweep values of the other", True)
    return [*(axis for axis in axes if SEARCH not in axis.paths), *searched]


def _axes(path: str, value: JsonValue, report: Report, key_path: KeyPath) -> list[Axis]:
    if is_search(value):
        return _search(path, value, report, key_path)
    if _holds_search(value):
        fix = f"write it as an axis of its own, SETTING: {EXAMPLE}"
        report(key_path, f"sweep: {path}: a search cannot stand among other values", fix, True)
        return []
    item = fields.find(path)
    if isinstance(value, list) and _is_group(path, item, value):
        head, dot, _ = path.partition(".")
        engine = head if dot and head in engine_names() else None
        return _single_axis(_group(path, value, report, key_path), path, key_path, engine)
    if item is None:
        hint = fields.suggest_path(path)
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) or entry is None for entry in value):
            hint = "a named group is a list of mappings of settings"
        report(key_path, f"sweep: unknown setting {path!r}", hint, True)
        return []
    if item.kind != "leaf" and isinstance(value, Mapping) and not is_range(value) and path == item.path:
        if not value:
            report(key_path, f"sweep: {path} is empty", _LIST_HINT, True)
        return [
            axis for key, inner in value.items() for axis in _axes(f"{path}.{key}", inner, report, (*key_path, key))
        ]
    return _single_axis(_plain(item, path, value, report, key_path), path, key_path)


def _search(path: str, value: JsonValue, report: Report, key_path: KeyPath) -> list[Axis]:
    try:
        searched = WrittenSetting(SEARCH, parse_search(path, value).as_setting(), key_path)
    except BadValueError as problem:
        report((*key_path, *problem.inner), f"sweep: {problem.text}", problem.fix, False)
        return []
    return _single_axis([Alternative((searched,), f"{keyword(path)}:{SEARCH}", key_path)], path, key_path)


def _holds_search(value: JsonValue) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(is_search(each) or _holds_search(each) for each in inner)


def _of_arrival(
    path: str, value: JsonValue, shared: object, report: Report, key_path: KeyPath
) -> Iterator[Alternative]:
    """The values of one part of the arrivals, each beside what all points share of them."""
    item, name = fields.table()[ARRIVAL], path.rpartition(".")[2]
    beside = (
        dict(shared)
        if isinstance(shared, Mapping)
        else {"process": "concurrency" if name == "concurrency" else "poisson"}
    )
    for where, entry in _values(item, value, report, key_path):

        def at_value(_: KeyPath, text: str, fix: str | None, is_key: bool, where: KeyPath = where) -> None:
            report(where, f"sweep: {text.replace(ARRIVAL, path, 1)}", fix, is_key)

        made = settings_at(item, ARRIVAL, {**beside, name: entry}, at_value, where)
        if made:
            yield Alternative(tuple(made), f"{keyword(path)}:{text_of(entry)}", where)


def _single_axis(
    alternatives: Iterable[Alternative], name: str, key_path: KeyPath, engine: str | None = None
) -> list[Axis]:
    alternatives = tuple(alternatives)
    if not alternatives:
        return []
    paths = frozenset(setting.path for alternative in alternatives for setting in alternative.settings)
    return [Axis(name, alternatives, key_path, paths, None if "engine" in paths else engine)]


def _is_group(path: str, item: Field | None, value: list[JsonValue]) -> bool:
    if not value or not all(isinstance(entry, Mapping) for entry in value) or any(is_range(entry) for entry in value):
        return False
    if item is None or item.kind == "leaf":
        return item is None
    keys = [key for entry in value if isinstance(entry, Mapping) for key in entry]
    return any(fields.find(f"{path}.{key}") is None and fields.find(key) is not None for key in keys)


def _plain(item: Field, path: str, value: JsonValue, report: Report, key_path: KeyPath) -> list[Alternative]:
    alternatives: list[Alternative] = []
    for where, entry in _values(item, value, report, key_path):
        settings = settings_at(item, path, entry, report, where)
        is_nothing = item.kind != "leaf" and isinstance(entry, Mapping) and not entry
        if not settings and not is_nothing:
            continue
        alternatives.append(Alternative(tuple(settings), _label(item, path, settings), where))
    return alternatives


def _label(item: Field, path: str, settings: Sequence[WrittenSetting]) -> str:
    if item.kind == "leaf" or (path != item.path and settings and settings[0].path == path):
        return f"{keyword(path)}:{text_of(_shown(settings[0]))}"
    inner = "-".join(f"{keyword(s.path)}:{text_of(_shown(s))}" for s in settings if s.value is not CLEAR)
    return inner or f"{path.rpartition('.')[2]}:none"


def _shown(setting: WrittenSetting) -> JsonValue:
    return None if isinstance(setting.value, Clear) else setting.value


def _values(item: Field, value: JsonValue, report: Report, key_path: KeyPath) -> list[tuple[KeyPath, JsonValue]]:
    """The values of an axis, each with its key path: a list's items, a range's numbers, or the value itself."""
    if isinstance(value, list):
        if not value:
            report(key_path, f"sweep: {'.'.join(map(str, key_path[1:]))} has no values", _LIST_HINT, False)
            return []
        if item.takes_list and not any(isinstance(entry, list) or entry is None for entry in value):
            return [(key_path, value)]
        kept: list[tuple[KeyPath, JsonValue]] = []
        for index, entry in enumerate(value):
            kept += _expanded(entry, report, (*key_path, index))
            if len(kept) > MAX_NUMBERS:
                path = ".".join(map(str, key_path[1:]))
                report(key_path, f"sweep: {path} has more than {MAX_NUMBERS:,} values", "sweep fewer", False)
                return []
        return kept
    return _expanded(value, report, key_path)


def _expanded(entry: JsonValue, report: Report, key_path: KeyPath) -> list[tuple[KeyPath, JsonValue]]:
    if not isinstance(entry, Mapping) or not is_range(entry):
        return [(key_path, entry)]
    try:
        return [(key_path, number) for number in numbers(entry)]
    except BadValueError as problem:
        report(key_path, f"sweep: {problem.text}", problem.fix, False)
        return []


def _group(name: str, value: list[JsonValue], report: Report, key_path: KeyPath) -> list[Alternative]:
    alternatives: list[Alternative] = []
    for index, entry in enumerate(value):
        if isinstance(entry, Mapping):
            added = _group_entry(name, entry, report, (*key_path, index), MAX_NUMBERS - len(alternatives))
            if added is None:
                text = f"sweep: group {name}: more than {MAX_NUMBERS:,} alternatives"
                report((*key_path, index), text, "sweep fewer values", False)
                return []
            alternatives += added
    return alternatives


def _group_entry(
    name: str, entry: Mapping[str, JsonValue], report: Report, key_path: KeyPath, room: int
) -> list[Alternative] | None:
    """The alternatives of one entry of a group; `None` when there are more than `room`."""
    count = 1
    choices: list[list[tuple[list[WrittenSetting], str]]] = []
    for path, value, where in _spread(entry, key_path, ""):
        item = fields.find(path)
        if item is None:
            report(where, f"sweep: group {name}: unknown setting {path!r}", fields.suggest_path(path), True)
            continue
        options: list[tuple[list[WrittenSetting], str]] = []
        values = _values(item, value, report, where)
        count *= len(values) or 1
        if count > room:
            return None
        for at, single in values:
            settings = settings_at(item, path, single, report, at)
            if settings:
                options.append((settings, _label(item, path, settings)))
        if options:
            choices.append(options)
    return [
        Alternative(
            tuple(setting for settings, _ in combination for setting in settings),
            "-".join(label for _, label in combination) or f"{text_of(name.rpartition('.')[2])}:none",
            key_path,
        )
        for combination in itertools.product(*choices)
    ]


def _spread(entry: Mapping[str, JsonValue], key_path: KeyPath, above: str) -> Iterable[tuple[str, JsonValue, KeyPath]]:
    """The settings of a group's entry; a nested mapping of a section is walked, so that lists inside it expand."""
    for key, value in entry.items():
        path = f"{above}{key}"
        item = fields.find(path)
        nested = item is not None and item.kind != "leaf" and item.path == path
        if nested and isinstance(value, Mapping) and value and not is_range(value):
            yield from _spread(value, (*key_path, key), f"{path}.")
        else:
            yield path, value, (*key_path, key)


def _check_overlap(axes: Sequence[Axis], report: Report) -> None:
    for engine in {axis.engine: None for axis in axes if axis.engine} or [None]:
        owner: dict[str, Axis] = {}
        for axis in (axis for axis in axes if axis.engine in (None, engine)):
            for path in sorted(axis.paths - {SEARCH}):
                other = _holder(path, owner)
                if other is not None and other is not axis:
                    text = f"sweep: {path} is set by two axes, {other.name!r} and {axis.name!r}"
                    report(axis.origin, text, "set it in one of them, or make a group of both", True)
                    return
            owner.update(dict.fromkeys(axis.paths, axis))


def _holder(path: str, owner: Mapping[str, Axis]) -> Axis | None:
    """The axis that sets a path, something above it or something below it."""
    above = path
    while above:
        if above in owner:
            return owner[above]
        above = above.rpartition(".")[0]
    return next((axis for other, axis in owner.items() if other.startswith(f"{path}.")), None)


@dataclass(frozen=True)
class Exclusion:
    """Points to leave out: those where every path has one of its values."""

    conditions: tuple[tuple[str, tuple[JsonValue, ...]], ...]
    origin: KeyPath


def parse_exclude(data: JsonValue, report: Report, origin: KeyPath = ("exclude",)) -> list[Exclusion]:
    """The exclusions of a study; a list for a plain setting means any of its values."""
    if not isinstance(data, list):
        report(origin, f"exclude: expected a list of mappings, got {kind(data)}", "write - {dtype: float32}", False)
        return []
    exclusions: list[Exclusion] = []
    count = 0
    for index, entry in enumerate(data):
        key_path = (*origin, index)
        if not isinstance(entry, Mapping) or not entry:
            text = f"exclude: expected a mapping of settings, got {kind(entry)}"
            report(key_path, text, "write {dtype: float32}", False)
            continue
        exclusions.append(Exclusion(tuple(_conditions(entry, report, key_path)), key_path))
        count += sum(len(values) for _, values in exclusions[-1].conditions)
        if count > MAX_NUMBERS:
            report(key_path, f"exclude: more than {MAX_NUMBERS:,} values in all", "exclude fewer", False)
            return []
    return exclusions


def _conditions(
    entry: Mapping[str, JsonValue], report: Report, key_path: KeyPath
) -> Iterable[tuple[str, tuple[JsonValue, ...]]]:
    for path, value, where in _spread(entry, key_path, ""):
        item = fields.find(path)
        if item is None:
            report(where, f"exclude: unknown setting {path!r}", fields.suggest_path(path), True)
            continue
        if item.kind == "section":
            hint = f"name a setting in it: {path}.{item.children[0]}"
            report(where, f"exclude: {path} is a section", hint, True)
            continue
        values: list[JsonValue] = []
        for at, single in _values(item, value, report, where):
            settings = settings_at(item, path, single, report, at)
            values.extend(setting.value for setting in settings if not isinstance(setting.value, Clear))
        yield path, tuple(values)
