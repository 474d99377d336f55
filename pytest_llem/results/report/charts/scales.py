"""Units and scales of the charts: the multiple of a unit that suits the values, and linear or logarithmic axes.

Every chart takes its axes of quantities from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import ACCURACY, metric_name
from pytest_llem.results.report.charts.chart import WIDE_LETTER, Size, Spec, quoted, wrapped
from pytest_llem.results.terminal import PREFIXED
from pytest_llem.study.model import SweptAxis

LATENCIES = ("ttft", "tpot", "itl", "e2el")
PREFIXES = (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3), ("", 0.1, 1.0), ("m", 1e-4, 1e-3), ("µ", 0.0, 1e-6))
"""Each with the least value that is written with it, and its size."""
LOG_FROM = 20.0
"""Ratio of largest to smallest from which on a scale is logarithmic. Chosen: below, a linear one shows all."""
EVEN = 3.0
"""Ratio of largest to smallest from which on a sweep's axis and ratios are logarithmic. Chosen: powers of two are."""
MARGIN = 0.07
"""Of the span, between the outermost point and the frame."""
TICKS = ((1, 2, 5), (1, 1.5, 2, 3, 5, 7))
"""Of a decade of a logarithmic scale: the first where enough of them are in view, else the second."""
ROUND = ".3~r"
"""Format of round numbers. Its precision is stated: Vega derives one from the ticks otherwise, which may be too low."""
FEW_TICKS = 4
"""Chosen: fewer do not say that a scale is logarithmic."""


@dataclass(frozen=True)
class Unit:
    """A metric in the multiple of its unit that suits its values: `name` in words, `title` with the unit `symbol`."""

    name: str
    title: str
    factor: float
    symbol: str

    def of(self, value: float | None) -> float | None:
        """A value in this unit."""
        return None if value is None else value * self.factor


def metric_words(name: str) -> str:
    """A metric in words, as within a sentence."""
    words = metric_name(name).description
    return words if name.startswith(LATENCIES) else words[0].lower() + words[1:]


def unit_of(name: str, values: Iterable[float | None]) -> Unit:
    """The unit in which to show these values of a metric: that with the prefix that suits the largest."""
    entry = metric_name(name)
    largest = max((abs(value) for value in values if value is not None), default=1.0)
    words = metric_words(name)
    words = words if name.startswith(LATENCIES) else words[0].upper() + words[1:]
    symbol, factor = entry.unit, 1.0
    if symbol in PREFIXED:
        prefix, step = next((prefix, step) for prefix, least, step in PREFIXES if largest >= least)
        symbol, factor = prefix + symbol, 1 / step
    if name == ACCURACY:
        symbol, factor = "%", 100.0
    unit = {"1": "", "1/s": " (per second)", "1/J": " (per joule)"}.get(symbol, f" ({symbol})")
    return Unit(words, f"{words}{unit}", factor, symbol)


def swept(field: str, axis: SweptAxis, values: Iterable[JsonValue]) -> Spec:
    """A position along the numbers of a sweep's axis, with a tick at each of those shown."""
    numbers = sorted({float(value) for value in values if isinstance(value, (int, float))})
    log = numbers[0] > 0 and numbers[-1] / numbers[0] > EVEN
    low, high = widened(numbers[0], numbers[-1], log=log)
    scale: Spec = {"type": "log" if log else "linear", "domain": [low, high], "nice": False}
    # As written: a format without a precision rounds 16 to 20 where the ticks are few.
    texts = ", ".join(f"{quoted(repr(number).removesuffix('.0'))}" for number in numbers)
    places = ", ".join(repr(number) for number in numbers)
    exact = f"[{texts}][indexof([{places}], datum.value)]"
    ticks: Spec = {"values": [*numbers], "labelExpr": exact, "labelOverlap": "greedy", "grid": False}
    return quantity(field, axis.title, scale, ticks)


def widened(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """Both ends moved out, so that no point lies on the frame, and a text at the last one has room."""
    if log:
        margin = (high / low) ** MARGIN
        return low / margin, high * margin**2
    margin = MARGIN * (high - low) or 1.0
    return low - margin, high + 2 * margin


def is_log(values: Iterable[float]) -> bool:
    """Whether positive values differ so much that only a logarithmic scale shows all of them."""
    known = list(values)
    return bool(known) and min(known) > 0 and max(known) / min(known) > LOG_FROM


def upright(title: str, height: float, size: Size) -> list[JsonValue]:
    """The title of a vertical axis, over several lines where it is longer than the axis."""
    return [*wrapped(title, int(height / (WIDE_LETTER * size.font)))]


def beside_names(position: Spec) -> Spec:
    """The position with its title ending where its axis does, which is short beside long names."""
    axis = position["axis"]
    return {**position, "axis": {**(axis if isinstance(axis, dict) else {}), "titleAnchor": "end"}}


def quantity(field: str, title: JsonValue, scale: Spec | None = None, axis: Spec | None = None) -> Spec:
    """A position on a continuous scale; linear without zero unless `scale` says otherwise."""
    shown: Spec = {"title": title, **(axis or {})}
    return {"field": field, "type": "quantitative", "axis": shown, "scale": scale or {"zero": False, "nice": True}}


def continuous(field: str, title: JsonValue, values: Iterable[float]) -> Spec:
    """A position on the scale that suits the values."""
    known = list(values)
    return logarithmic(field, title, known) if is_log(known) else quantity(field, title)


def logarithmic(field: str, title: JsonValue, values: Iterable[float]) -> Spec:
    """A position on a logarithmic scale over the values."""
    known = [value for value in values if value > 0]
    ends = (min(known), max(known)) if known else (1.0, 10.0)
    margin = (ends[1] / ends[0]) ** 0.04 if ends[1] > ends[0] else 1.5
    low, high = ends[0] / margin, ends[1] * margin
    return quantity(field, title, log_scale(low, high), log_axis(low, high))


def log_scale(low: float, high: float) -> Spec:
    """A logarithmic scale at whose ends a bar stops that goes on: to Vega, a bar down to 0 is one up to the top."""
    return {"type": "log", "domain": [low, high], "nice": False, "clamp": True}


def log_axis(low: float, high: float) -> Spec:
    """Ticks at round numbers, all of them labelled; those in between without a label would say nothing."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    choices = [[float(f"{step}e{decade}") for decade in decades for step in steps] for steps in TICKS]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    ticks = inside[0] if len(inside[0]) >= FEW_TICKS else inside[1]
    return {"values": [*ticks], "format": ROUND, "labelOverlap": "greedy", "labelSeparation": 3}
