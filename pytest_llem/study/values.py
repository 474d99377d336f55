"""Plain values as a study's files hold them: their places, the texts that are more than texts, and words for them.

All of `study` uses it, `nodes` makes them. A value is shown as YAML has it, because problems quote it to who wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llem.errors import JsonValue

Key = str | int
KeyPath = tuple[Key, ...]


class PlaceholderText(str):
    """A quoted value that is one placeholder: it takes the type its setting wants (`plain`), or stays text."""

    __slots__ = ("plain",)
    plain: JsonValue


class OldBoolean(str):
    """An unquoted `yes`, `no`, `on` or `off`: a boolean in YAML 1.1, and a text here, which engines take for true."""

    __slots__ = ()
    REMEDY = "write true or false, or quote it"


def old_boolean(value: JsonValue) -> str | None:
    """What is wrong with the first such word in a value that may be anything."""
    if isinstance(value, OldBoolean):
        return f"{value} is no boolean here, but a text that engines take for true"
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((problem for item in inside if (problem := old_boolean(item)) is not None), None)


def kind(value: object) -> str:
    """What a YAML reader would call a value: `a mapping`, `a list`, `the number 4`, ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge integer"
        return f"the number {text}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:37] + '...'!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list"


def shown(value: JsonValue) -> str:
    """A value as YAML has it, without quotes."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def deep_merge(lower: Mapping[str, JsonValue], upper: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`upper` laid over `lower`: mappings merge key by key, anything else is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
