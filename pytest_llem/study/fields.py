"""The settings of an experiment by dotted path: what each accepts, its default, and its keyword.

`canonical` and the loading modules work on its flat settings, mappings from dotted path to plain value. The table is
read off the declarations, also of other packages' engines: add settings there. Keywords are part of ids and must stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Literal, NamedTuple

from pytest_llem.engines import engine_info, engine_names
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.study.declared import BadValueError, Key, check, is_section, keys_of
from pytest_llem.study.model import FlatSettings as FlatSettings
from pytest_llem.study.problems import nearest
from pytest_llem.study.schema import ExperimentSettings
from pytest_llem.study.values import KeyPath, OldBoolean, PlaceholderText, kind, old_boolean

SETTINGS_GROUP = "pytest_llem.engine_settings"
"""Entry points of other packages: an engine's name, and the dataclass or pydantic model of its section."""


@dataclass(frozen=True)
class Field:
    """One setting: a `section` has children, a `map` takes any key below it, a `leaf` holds a value."""

    path: str
    kind: Literal["section", "map", "leaf"]
    key: Key | None
    default: JsonValue = None
    children: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def takes_list(self) -> bool:
        """Whether a value of this setting is itself a list."""
        return self.key is not None and self.key.takes_list


@cache
def settings_model(engine: str) -> type | None:
    """What another package declares its engine's section with; without it, the section may hold anything.

    Raises `SettingsError` for what cannot be imported, or is neither a pydantic model nor a dataclass.
    """
    named = [point.value for point in entry_points(group=SETTINGS_GROUP, name=engine)]
    for target in (*named, engine_info(engine).settings):
        if target is None:
            continue
        try:
            model = resolve_name(target)
        except (ImportError, AttributeError, ValueError) as problem:
            raise SettingsError(
                f"the settings of engine {engine!r} cannot be imported from {target}: {problem}",
                fix="correct the package that registers them, or uninstall it",
            ) from problem
        if not (isinstance(model, type) and is_section(model)):
            raise SettingsError(
                f"the settings of engine {engine!r}, {target}, are no pydantic model",
                fix="register a subclass of pytest_llem.study.sections.section.Section",
            )
        return model
    return None


@cache
def table() -> dict[str, Field]:
    """Every setting by its path, sections and maps included; engines of other packages come last."""
    settings = {item.path: item for item in _walk(ExperimentSettings)}
    for engine in engine_names():
        if engine not in settings:
            declaration = settings_model(engine)
            if declaration is None:
                settings[engine] = Field(engine, "map", None)
            else:
                settings[engine] = Field(engine, "section", None, None, tuple(keys_of(declaration)))
                settings.update({item.path: item for item in _walk(declaration, f"{engine}.")})
    return settings


def _walk(declaration: type, prefix: str = "") -> Iterator[Field]:
    for name, key in keys_of(declaration).items():
        path = f"{prefix}{name}"
        if key.section is not None:
            yield Field(path, "section", key, None, tuple(keys_of(key.section)))
            yield from _walk(key.section, f"{path}.")
        elif name == "extra":
            yield Field(path, "map", key)
        else:
            yield Field(path, "leaf", key, key.default)


@cache
def defaults() -> FlatSettings:
    """The default of every setting that holds a value, by path."""
    return {path: item.default for path, item in table().items() if item.kind == "leaf"}


def find(path: str) -> Field | None:
    """The setting at `path`; anything below a map is that map's. `None` when there is no such setting."""
    settings = table()
    above = path
    while above and above not in settings:
        above = above.rpartition(".")[0]
    item = settings.get(above)
    if item is None or above == path:
        return item
    return item if item.kind == "map" and all(path.split(".")) else None


ELSEWHERE_LIKENESS = 0.8
"""Least likeness of a name in another section than an existing one that was written. Chosen: one slip in five letters;
`iterations` of the warm-up was taken for the idle window's `duration_s`."""


@cache
def _paths_by_name() -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for path, item in table().items():
        paths.setdefault(item.name, []).append(path)
    return paths


def suggest_path(path: str, beside: Iterable[str] = ()) -> str | None:
    """A remedy for an unknown path: a near name in the same section (or in `beside`), or a near one elsewhere."""
    above, _, last = path.rpartition(".")
    section = table().get(above)
    children = section.children if section else tuple(name for name in table() if "." not in name)
    local = nearest(last, (*children, *beside)) if section or not above else None
    elsewhere = nearest(last, _paths_by_name())
    if section and elsewhere is not None and elsewhere[0] < ELSEWHERE_LIKENESS:
        elsewhere = None
    if local is not None and (elsewhere is None or local[0] >= elsewhere[0] - 0.1):
        return f"did you mean '{above}.{local[1]}'?" if above else f"did you mean '{local[1]}'?"
    if elsewhere is not None:
        return f"did you mean {' or '.join(repr(near) for near in _paths_by_name()[elsewhere[1]][:3])}?"
    if children:
        names = ", ".join((*children, *beside))
        return f"known here: {names}" if len(names) < 400 else f"known here: {names[:400].rpartition(', ')[0]}, ..."
    return None


def _checked(item: Field, value: JsonValue) -> JsonValue:
    if item.key is None:
        return value
    if isinstance(value, PlaceholderText):
        try:
            return _checked(item, value.plain)
        except BadValueError:
            value = str(value)
    return check(item.key.owner, item.name, value)


@cache
def _published() -> tuple[dict[str, str], Counter[str]]:
    """The paths of the schema's own settings, joined by `_`, and how often each name occurs among them.

    A package that brings an engine must not change the keywords of the others.
    """
    own = keys_of(ExperimentSettings)
    leaves = [item for item in table().values() if item.kind == "leaf" and item.path.partition(".")[0] in own]
    return {item.path: item.path.replace(".", "_") for item in leaves}, Counter(item.name for item in leaves)


@cache
def keyword(path: str) -> str:
    """The marker keyword and id key of a setting: the shortest tail of its path that is unique in the schema.

    A top-level setting keeps its name; below `extra` the word `extra` stands before a name that the schema has too.
    """
    joined, counts = _published()
    parts = path.split(".")
    if len(parts) == 1 or counts[parts[-1]] == (path in joined):
        return parts[-1]
    for length in range(2, len(parts) + 1):
        tail = "_".join(parts[-length:])
        if counts[tail] == 0 and not any(name.endswith(f"_{tail}") for other, name in joined.items() if other != path):
            return tail
    return "_".join(parts)


Report = Callable[[KeyPath, str, "str | None", bool], None]
"""Takes a problem: its key path, its text, a remedy, and whether it concerns the key rather than the value."""


class Clear:
    """The value of a section that is set to null: back to its defaults."""


CLEAR = Clear()


class WrittenSetting(NamedTuple):
    """A value for the setting at `path`, and where it was written."""

    path: str
    value: JsonValue | Clear
    origin: KeyPath


def flatten(
    data: Mapping[str, JsonValue], report: Report, origin: KeyPath = (), above: str = ""
) -> list[WrittenSetting]:
    """The settings that a mapping makes; keys may be dotted. Problems go to `report`."""
    settings: list[WrittenSetting] = []
    for key, value in data.items():
        path = f"{above}.{key}" if above else key
        key_path = (*origin, key)
        item = find(path)
        if item is None:
            report(key_path, f"unknown setting {path!r}", suggest_path(path), True)
        else:
            settings.extend(settings_at(item, path, value, report, key_path))
    return settings


def settings_at(item: Field, path: str, value: JsonValue, report: Report, key_path: KeyPath) -> list[WrittenSetting]:
    """The settings made by one value at a known path."""
    if item.kind == "leaf":
        try:
            return [WrittenSetting(path, _checked(item, value), key_path)]
        except BadValueError as problem:
            report((*key_path, *problem.inner), f"{path}: {problem.text}", problem.fix, False)
            return []
    if value is None:
        return [WrittenSetting(path, CLEAR, key_path)]
    if item.kind == "map":
        return _map_settings(item, path, value, report, key_path)
    shorthand = _SHORTHANDS.get(path)
    if shorthand is not None and isinstance(value, bool):
        return settings_at(table()[shorthand[0]], shorthand[0], shorthand[1][value], report, key_path)
    if not isinstance(value, Mapping):
        first = next(iter(item.children), "key")
        hint = f"for example {path}: {{{first}: ...}}"
        report(key_path, f"{path}: expected a mapping, got {kind(value)}", hint, False)
        return []
    return flatten(value, report, key_path, path)


_SHORTHANDS: dict[str, tuple[str, dict[bool, JsonValue]]] = {
    "transformers.compile": ("transformers.compile.mode", {True: "default", False: None}),
}


def _map_settings(item: Field, path: str, value: JsonValue, report: Report, key_path: KeyPath) -> list[WrittenSetting]:
    if path == item.path and not isinstance(value, Mapping):
        report(key_path, f"{path}: expected a mapping, got {kind(value)}", f"write {path}: {{name: value}}", False)
        return []
    if not isinstance(value, Mapping) or (not value and path != item.path):
        problem = old_boolean(value)
        if problem is not None:
            report(key_path, f"{path}: {problem}", OldBoolean.REMEDY, False)
        return [WrittenSetting(path, str(value) if isinstance(value, str) else value, key_path)]
    settings: list[WrittenSetting] = []
    for key, inner in value.items():
        if not key or any(not part for part in key.split(".")):
            report((*key_path, key), f"{path}: an empty name", "name the argument", True)
            continue
        settings.extend(_map_settings(item, f"{path}.{key}", inner, report, (*key_path, key)))
    return settings


def apply(flat: FlatSettings, settings: Iterable[WrittenSetting]) -> None:
    """Lay `settings` over `flat`, which changes. A value inside a map replaces what was above or below it."""
    for path, value, _ in settings:
        if isinstance(value, Clear):
            for other in [other for other in flat if other.startswith(f"{path}.")]:
                del flat[other]
            continue
        if path not in flat and path not in table():
            for other in [other for other in flat if path.startswith(f"{other}.") or other.startswith(f"{path}.")]:
                del flat[other]
        flat[path] = value


def innermost(data: dict[str, JsonValue], path: str) -> tuple[dict[str, JsonValue], str]:
    """The mapping in `data` that holds the setting at a dotted path, made where it is missing, and its key there."""
    *above, last = path.split(".")
    for part in above:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = data[part] = {}
        data = inner
    return data, last


def unflatten(flat: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Nested mappings from dotted paths."""
    result: dict[str, JsonValue] = {}
    for path, value in flat.items():
        level, last = innermost(result, path)
        level[last] = value
    return result
