"""Mappings of a study file to checked leaves, with every problem placed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pytest_llem.errors import JsonValue
from pytest_llem.study import fields
from pytest_llem.study.declared import BadValueError
from pytest_llem.study.document import KeyPath, kind
from pytest_llem.study.fields import Field, FlatSettings

Report = Callable[[KeyPath, str, "str | None", bool], None]


class Clear:
    """The value of a section that is set to null: back to its defaults."""


CLEAR = Clear()


class Setting(NamedTuple):
    """A value for the leaf at `path`, and where it was written."""

    path: str
    value: JsonValue | Clear
    origin: KeyPath


def flatten(data: Mapping[str, JsonValue], report: Report, origin: KeyPath = (), above: str = "") -> list[Setting]:
    """The settings that a mapping makes; keys may be dotted. Problems go to `report(place, text, fix, at_key)`."""
    found: list[Setting] = []
    for key, value in data.items():
        path = f"{above}.{key}" if above else key
        place = (*origin, key)
        item = fields.find(path)
        if item is None:
            report(place, f"unknown setting {path!r}", fields.suggest_path(path), True)
        else:
            found.extend(settings_at(item, path, value, report, place))
    return found


def settings_at(item: Field, path: str, value: JsonValue, report: Report, place: KeyPath) -> list[Setting]:
    """The settings made by one value at a known path."""
    if item.kind == "leaf":
        try:
            return [Setting(path, fields.check_leaf(item, value), place)]
        except BadValueError as problem:
            report((*place, *problem.inner), f"{path}: {problem.text}", problem.fix, False)
            return []
    if value is None:
        return [Setting(path, CLEAR, place)]
    if item.kind == "map":
        return _map_settings(item, path, value, report, place)
    shorthand = _SHORTHANDS.get(path)
    if shorthand is not None and isinstance(value, bool):
        return settings_at(fields.table()[shorthand[0]], shorthand[0], shorthand[1][value], report, place)
    if not isinstance(value, Mapping):
        first = next(iter(item.children), "key")
        report(place, f"{path}: expected a mapping, got {kind(value)}", f"for example {path}: {{{first}: ...}}", False)
        return []
    return flatten(value, report, place, path)


_SHORTHANDS: dict[str, tuple[str, dict[bool, JsonValue]]] = {
    "transformers.compile": ("transformers.compile.mode", {True: "default", False: None}),
}


def _map_settings(item: Field, path: str, value: JsonValue, report: Report, place: KeyPath) -> list[Setting]:
    if path == item.path and not isinstance(value, Mapping):
        report(place, f"{path}: expected a mapping, got {kind(value)}", f"write {path}: {{name: value}}", False)
        return []
    if not isinstance(value, Mapping) or (not value and path != item.path):
        return [Setting(path, str(value) if isinstance(value, str) else value, place)]
    found: list[Setting] = []
    for key, inner in value.items():
        if not key or any(not part for part in key.split(".")):
            report((*place, key), f"{path}: an empty name", "name the argument", True)
            continue
        found.extend(_map_settings(item, f"{path}.{key}", inner, report, (*place, key)))
    return found


def overlay(leaves: FlatSettings, settings: list[Setting] | tuple[Setting, ...]) -> FlatSettings:
    """A copy of `leaves` with `settings` laid over it, in order."""
    result = dict(leaves)
    apply(result, settings)
    return result


def apply(leaves: FlatSettings, settings: list[Setting] | tuple[Setting, ...]) -> None:
    """Lay `settings` over `leaves` in place. A value inside a map replaces what was above or below it."""
    for setting in settings:
        path, value = setting.path, setting.value
        if isinstance(value, Clear):
            for known in [known for known in leaves if known.startswith(f"{path}.")]:
                del leaves[known]
            continue
        if path not in leaves and path not in fields.table():
            for known in [known for known in leaves if path.startswith(f"{known}.") or known.startswith(f"{path}.")]:
                del leaves[known]
        leaves[path] = value


def unflatten(leaves: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Nested mappings from dotted paths."""
    result: dict[str, JsonValue] = {}
    for path, value in leaves.items():
        *above, last = path.split(".")
        level = result
        for part in above:
            inner = level.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = level[part] = {}
            level = inner
        level[last] = value
    return result
