"""The axes of a sweep that set a GPU, in words: which they are, what values are called, and which to judge against.

`device_optimum` and the report's charts read them. A value is a number in the unit that the setting's name states, or
a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pytest_llem.errors import JsonValue
from pytest_llem.job.gpu_setting import SETTING_NAMES
from pytest_llem.results.axes import numbers, written
from pytest_llem.results.schema import Result
from pytest_llem.study.model import SweptAxis

SECTION = "device."
POWER_LIMIT = "power_limit_w"
DEFAULT = "default"
"""The board's own."""
UNTOUCHED = "null"
"""Left as it stood, which nobody swears is the board's own."""


class Words(NamedTuple):
    """A setting of a GPU: the title of its axis, its unit, and what stands before a value that others stand beside."""

    title: str
    unit: str
    before: str


WORDS: Mapping[str, Words] = {
    "power_limit_w": Words("Power limit (W)", "W", "power limit"),
    "sm_clock_mhz": Words("SM clock (MHz)", "MHz", "SM clock"),
    "memory_clock_mhz": Words("Memory clock (MHz)", "MHz", "memory clock"),
    "power_profile": Words("Power profile", "", "profile"),
}


def setting_of(axis: SweptAxis) -> str | None:
    """The setting of a GPU that an axis varies; `None` for any other axis."""
    name = axis.name.removeprefix(SECTION)
    return name if axis.name.startswith(SECTION) and name in SETTING_NAMES else None


def device_axes(axes: Iterable[SweptAxis]) -> tuple[SweptAxis, ...]:
    """Those of the axes that set a GPU."""
    return tuple(axis for axis in axes if setting_of(axis) is not None)


def usual(values: Sequence[JsonValue]) -> JsonValue:
    """The value to judge the others against: the board's own, or untouched; else the highest, else the first."""
    words = [word for word in (DEFAULT, UNTOUCHED) if word in values]
    return next(iter([*words, *reversed(numbers(values)), *values]))


def in_words(axes: Sequence[SweptAxis], values: Sequence[JsonValue], *, alone: bool = True) -> str:
    """A setting as a sentence has it: `300 W`, `SM clock 1410 MHz, memory clock default`, or `default` for all."""
    if all(value == DEFAULT for value in values):
        return DEFAULT
    said = []
    for axis, value in zip(axes, values, strict=True):
        words = WORDS[setting_of(axis) or ""]
        number = next(iter(numbers([value])), None)
        text = written(value) if number is None else f"{number:g} {words.unit}"
        said.append(text if alone and len(axes) == 1 and number is not None else f"{words.before} {text}")
    return ", ".join(said)


def lies_at(results: Iterable[Result], setting: str) -> float | None:
    """Where a word lies among the numbers: the limit in force, or the clock that the load ran at, in the mean.

    `None` where nothing was read of it, and of a profile.
    """
    gpus = [gpu for result in results for gpu in result.device.gpus]
    if setting == POWER_LIMIT:
        found = [limit for gpu in gpus for limit in gpu.power_limits_w]
    else:
        clocks = {"sm_clock_mhz": [gpu.sm_clock_mhz for gpu in gpus]}
        clocks["memory_clock_mhz"] = [gpu.memory_clock_mhz for gpu in gpus]
        found = [clock for clock in clocks.get(setting, []) if clock is not None]
    return fmean(found) if found else None
