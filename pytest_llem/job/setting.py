"""Declares settings: fields of frozen dataclasses, with their limits in the type and their help in the metadata.

Sections in `study`, `job.config` and engines use it. `study.declared` checks and publishes by these
types, and `study.sections.section` passes them on to other packages: add to them, rename none. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pytest_llem.errors import JsonValue

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits of a value, in `Annotated[int, Limits(ge=1)]`; `message` replaces pydantic's where `pattern` fails.

    `percent` takes `99%` for 0.99 as well.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    message: str | None = None
    percent: bool = False

    def plainly_hold(self, value: object) -> bool:
        """Whether a number or a text is within the limits, without asking pydantic."""
        text = value if isinstance(value, str) else None
        size = len(text) if text is not None else value
        if not isinstance(size, (int, float)) or (
            self.pattern is not None and not re.fullmatch(self.pattern, text or "")
        ):
            return False
        low, high = (self.ge, self.le) if text is None else (self.min_length, self.max_length)
        strict = (self.gt is None or size > self.gt) and (self.lt is None or size < self.lt)
        return (low is None or size >= low) and (high is None or size <= high) and strict

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The limits for pydantic, whose schemas are mappings with the same names. pydantic calls this itself."""
        names = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        limits = {name: value for name in names if (value := getattr(self, name)) is not None}
        schema = {**handler(source), **limits}
        if self.percent:
            return {"type": "function-before", "function": {"type": "no-info", "function": share}, "schema": schema}
        if self.message is None:
            return schema
        return {
            "type": "custom-error",
            "schema": schema,
            "custom_error_type": "limits",
            "custom_error_message": self.message,
        }

    def __get_pydantic_json_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """What pydantic publishes. pydantic calls this itself."""
        published = handler(source)
        return {"anyOf": [published, {"type": "string", "pattern": f"^{_PERCENT}$"}]} if self.percent else published


_PERCENT = r"[0-9]+(\.[0-9]+)?\s?%"


def share(value: object) -> object:
    """The number that a text in percent stands for; any other value as it is."""
    if not isinstance(value, str) or not re.fullmatch(_PERCENT, value):
        return value
    return of_percent(value.removesuffix("%").rstrip())


def of_percent(number: str) -> float:
    """The share that a number of percent is, as it is written: a division by 100 makes 99.9 0.9990000000000001."""
    digits, _, exponent = number.lower().partition("e")
    return float(f"{digits}e{int(exponent or 0) - 2}")


# 2**53 is the largest range of integers that JSON readers with double-precision numbers keep exactly (RFC 8259).
PositiveInt = Annotated[int, Limits(ge=1, le=2**53)]
NonNegativeInt = Annotated[int, Limits(ge=0, le=2**53)]
Share = Annotated[float, Limits(ge=0, le=1, percent=True)]
Fraction = Annotated[float, Limits(gt=0, le=1, percent=True)]
# Chosen: above any duration, size or share that a study can mean, and far from overflow in products.
PositiveFloat = Annotated[float, Limits(gt=0, le=1e12)]
NonNegativeFloat = Annotated[float, Limits(ge=0, le=1e12)]
# 4096 bytes is the longest path on Linux (PATH_MAX).
Name = Annotated[str, Limits(min_length=1, max_length=4096)]
# Chosen: longer than any prompt of a system or expression, and far from the size of a data set.
Text = Annotated[str, Limits(min_length=1, max_length=65536)]
Dtype = Literal["float32", "float16", "bfloat16"]
Extra = Mapping[str, JsonValue]


def about(text: str, examples: Sequence[JsonValue] = ()) -> dict[str, object]:
    """Metadata of a field without a default: its help and examples of its values."""
    return {"description": text, "examples": list(examples)}


def setting(default: T, text: str, examples: Sequence[JsonValue] = ()) -> T:
    """A field with a default, its help, and examples of its values."""
    return field(default=default, metadata=about(text, examples))


def section(factory: Callable[[], T], text: str, examples: Sequence[JsonValue] = ()) -> T:
    """A field whose default `factory` makes: a nested section, or an empty mapping."""
    return field(default_factory=factory, metadata=about(text, examples))
