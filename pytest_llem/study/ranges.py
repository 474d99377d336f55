"""The numbers of a range that an axis of a sweep has for values: steps, powers of two, or many at equal distance.

`sweep` takes them for values. They become part of ids and hashes, and must stay as they are to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pytest_llem.errors import JsonValue
from pytest_llem.study.declared import BadValueError

# Chosen: as many values as a sweep may have points.
MAX_NUMBERS = 100_000
_KEYS = {"range", "scale", "linspace"}


def is_range(value: JsonValue) -> bool:
    """Whether a value is a range rather than a plain mapping."""
    return isinstance(value, Mapping) and value.keys() <= _KEYS and ("range" in value or "linspace" in value)


def numbers(value: Mapping[str, JsonValue]) -> list[JsonValue]:
    """The numbers of a range, both ends included. Raises `BadValueError`."""
    if "linspace" in value:
        if "range" in value or "scale" in value:
            raise BadValueError("linspace stands alone", "write {linspace: [start, stop, count]}")
        return _linspace(value["linspace"])
    scale = value.get("scale", "linear")
    if scale == "log2":
        return _powers(value["range"])
    if scale != "linear":
        raise BadValueError(f"unknown scale {scale!r}", "use log2, or leave scale out")
    return _steps(value["range"])


def _floats(value: JsonValue, low: int, high: int, form: str) -> list[int | float]:
    if not isinstance(value, list) or not low <= len(value) <= high:
        raise BadValueError("a range needs numbers", f"write {form}")
    accepted: list[int | float] = []
    for item in value:
        if isinstance(item, bool) or not isinstance(item, (int, float)) or abs(item) > 1e15:
            raise BadValueError(f"{item!r} is not a number that a range can use", f"write {form}")
        accepted.append(item)
    return accepted


def _limit(count: float) -> int:
    if count > MAX_NUMBERS:
        raise BadValueError(f"the range has {count:,.0f} values, more than {MAX_NUMBERS:,}", "use a larger step")
    return int(count)


def _tidy(value: float) -> float:
    return float(f"{value:.12g}")


def _steps(value: JsonValue) -> list[JsonValue]:
    parts = _floats(value, 2, 3, "{range: [start, stop, step]}")
    start, stop = parts[0], parts[1]
    step = parts[2] if len(parts) == 3 else (1 if stop >= start else -1)
    if step == 0 or (stop - start) * step < 0:
        raise BadValueError(f"a step of {step} never gets from {start} to {stop}", "turn the sign of the step")
    count = _limit(math.floor((stop - start) / step + 1e-9) + 1)
    if all(isinstance(part, int) for part in (start, step)):
        return [start + index * step for index in range(count)]
    return [_tidy(start + index * step) for index in range(count)]


def _powers(value: JsonValue) -> list[JsonValue]:
    start, stop = _floats(value, 2, 2, "{range: [1, 64], scale: log2}")
    if start <= 0 or stop < start:
        raise BadValueError(f"no powers of two from {start} to {stop}", "write {range: [1, 64], scale: log2}")
    first, last = math.ceil(math.log2(start) - 1e-12), math.floor(math.log2(stop) + 1e-12)
    if last < first:
        raise BadValueError(f"no power of two lies from {start} to {stop}", "widen the range")
    whole = first >= 0 and isinstance(start, int)
    return [2**power if whole else float(2.0**power) for power in range(first, last + 1)]


def _linspace(value: JsonValue) -> list[JsonValue]:
    form = "{linspace: [start, stop, count]}"
    start, stop, count = _floats(value, 3, 3, form)
    if not isinstance(count, int) or count < 2:
        raise BadValueError(f"{count!r} is not a count of 2 or more", f"write {form}")
    size = _limit(count)
    spread: list[JsonValue] = [_tidy(start + (stop - start) * index / (size - 1)) for index in range(size)]
    if isinstance(start, int) and isinstance(stop, int) and all(float(item).is_integer() for item in spread):  # type: ignore[arg-type]
        return [int(item) for item in spread]  # type: ignore[arg-type]
    return spread
