"""Parses a search as a study writes it: `{search: {low: 1, high: 200, tolerance: 5%, max_windows: 8}}`.

`sweep` calls it where a value is a search. What it accepts is part of the study format, and must stay.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llem.errors import JsonValue
from pytest_llem.job.setting import share
from pytest_llem.study.declared import BadValueError
from pytest_llem.study.problems import suggest_or_list
from pytest_llem.study.search import EXAMPLE, MAX_WINDOWS, RATE, SEARCH, SEARCHED, Search
from pytest_llem.study.values import kind

MIN_TOLERANCE, MAX_TOLERANCE = 0.01, 1.0
"""Chosen: finer than any server is repeatable, and a factor of two."""


def parse_search(path: str, value: JsonValue) -> Search:
    """The search that a study writes for a setting. `BadValueError`, whose keys start below the setting."""
    if path not in SEARCHED:
        raise BadValueError(f"{path} cannot be searched", f"search one of {', '.join(SEARCHED)}")
    given = value[SEARCH] if isinstance(value, Mapping) else None
    if not isinstance(given, Mapping):
        raise BadValueError(f"a search is a mapping, got {kind(given)}", f"write {path}: {EXAMPLE}", (SEARCH,))
    known = ("low", "high", "tolerance", "max_windows")
    for name in given:
        if name not in known:
            raise BadValueError(f"unknown key {name!r} of a search", suggest_or_list(str(name), known), (SEARCH, name))
    for name in ("low", "high"):
        if given.get(name) is None:
            raise BadValueError(f"a search needs {name}", f"write {path}: {EXAMPLE}", (SEARCH,))
    low, high = (_load(name, given[name], whole=path != RATE) for name in ("low", "high"))
    if low >= high:
        text = f"low {low:g} is not below high {high:g}"
        raise BadValueError(text, "give two loads between which the answer lies", (SEARCH, "low"))
    windows = given.get("max_windows", Search.max_windows)
    if isinstance(windows, bool) or not isinstance(windows, int) or not 1 <= windows <= MAX_WINDOWS:
        raise BadValueError(f"{windows!r} is no number of windows", f"give 1 to {MAX_WINDOWS}", (SEARCH, "max_windows"))
    return Search(path, low, high, _tolerance(given.get("tolerance", Search.tolerance)), windows)


def _load(name: str, value: JsonValue, *, whole: bool) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1e12:
        if not whole:
            return float(value)
        if isinstance(value, int):
            return value
    wanted = "a whole number from 1 on" if whole else "a number above 0"
    raise BadValueError(f"{name} {value!r} is not {wanted}", f"give {wanted}", (SEARCH, name))


def _tolerance(value: JsonValue) -> float:
    """A share as `5%` or 0.05."""
    number = share(value)
    if isinstance(number, (int, float)) and not isinstance(number, bool) and MIN_TOLERANCE <= number <= MAX_TOLERANCE:
        return float(number)
    raise BadValueError(f"tolerance {value!r} is no share from 1% to 100%", "write 5%", (SEARCH, "tolerance"))
