"""Converts JSON mappings to frozen dataclasses and back, with the standard library alone.

Both sides call it for what crosses the process border or is stored; standard library only, because workers may
lack pydantic. The rules must stay strict: a missing key without default, an unknown key or a wrong type is a
`ValueError` with its path.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import read_json

T = TypeVar("T")


def read_versioned(cls: type[T], path: Path, newest: int, what: str) -> T:
    """Read a JSON file into a dataclass; `StoreError` if it is absent, broken, or newer than `newest`."""
    data = read_json(path)
    version = data.get("schema_version")
    if isinstance(version, int) and version > newest:
        raise StoreError(
            f"{path}: {what} format {version} is newer than {newest}, the newest this version reads",
            fix="use the version of pytest-llem that wrote it, or a newer one",
        )
    try:
        return decode(cls, data)
    except ValueError as problem:
        raise StoreError(f"{path}: {problem}") from None


def decode(cls: type[T], data: object, path: str = "") -> T:
    """Build the dataclass `cls` from a JSON mapping; `path` locates it in messages.

    Raises `ValueError` naming the path when a key is missing or unknown, or when a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{path or cls.__name__}: expected a mapping, got {type(data).__name__}")
    hints = type_hints(typing.cast("typing.Hashable", cls))
    fields = _fields(typing.cast("typing.Hashable", cls))
    if not data.keys() <= fields.keys():
        unknown = sorted(set(data) - set(fields))
        raise ValueError(f"{path or cls.__name__}: unknown key {unknown[0]!r}")
    values: dict[str, object] = {}
    for name, field in fields.items():
        where = f"{path}.{name}" if path else name
        if name in data:
            values[name] = decode_value(hints[name], data[name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: missing")
    return cls(**values)


def encode(value: object) -> JsonValue:
    """A dataclass (nested, with tuples and mappings) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [encode(item) for item in value]
    raise TypeError(f"cannot be written as JSON: {type(value).__name__}")


@cache
def type_hints(cls: type, *, include_extras: bool = False) -> dict[str, Any]:
    """The resolved type hints of a dataclass, with the metadata of `Annotated` only if asked for."""
    # Aliases that hold JsonValue are evaluated in the namespace of the class, whose module need not import it.
    return typing.get_type_hints(cls, None, {"JsonValue": JsonValue, "Mapping": Mapping}, include_extras=include_extras)


@cache
def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def decode_value(hint: Any, value: object, where: str) -> object:
    """A JSON value as the type `hint`; `where` locates it in the `ValueError` for a wrong one."""
    if type(value) is hint:
        # Most values are scalars of exactly their type, and inspecting a hint takes longer than all the rest.
        return value
    origin = get_origin(hint)
    if hint is Any or hint is object or is_json(hint):
        return value
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), value, where)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where}: expected one of {get_args(hint)}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[object]", hint), value, where)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
        item = get_args(hint)[0]
        return tuple(decode_value(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {type(value).__name__}")
        item = get_args(hint)[1]
        if is_json(item):
            return {str(key): entry for key, entry in value.items()}
        return {str(key): decode_value(item, entry, f"{where}.{key}") for key, entry in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is type(None):
        if value is not None:
            raise ValueError(f"{where}: expected null, got {type(value).__name__}")
        return None
    if isinstance(value, bool) and hint is not bool:
        raise ValueError(f"{where}: expected {hint.__name__}, got bool")
    if not isinstance(value, hint):
        raise ValueError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    return value


def is_json(hint: Any) -> bool:
    """Whether a resolved type hint is `JsonValue`, which accepts any plain value."""
    # get_type_hints resolves the recursive alias one level deeper each time it meets it, so that `==` does not find it.
    scalars = {bool, int, float, str, type(None)}
    return hint == JsonValue or (get_origin(hint) is Union and scalars <= set(get_args(hint)))


def _union(options: tuple[Any, ...], value: object, where: str) -> object:
    problems: list[str] = []
    for option in options:
        try:
            return decode_value(option, value, where)
        except ValueError as problem:
            problems.append(str(problem))
    raise ValueError(problems[0] if len(problems) == 1 else " or ".join(dict.fromkeys(problems)))
