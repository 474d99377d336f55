"""What every chart is made of: its record, colours and shapes, and the parts of Vega-Lite that the charts share.

Each chart's own file builds on it. A chart's data set must be called `table`, and each of its rows has the `key` of its
experiment: `assets/report.js` filters by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.results.summary import MetricSummary

Spec = dict[str, JsonValue]
Rows = list[Mapping[str, JsonValue]]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
"""Okabe and Ito's colours, which people with colour-vision deficiency can tell apart; brown and grey in place of their
yellow and black, which a white or a dark page swallows."""
RAMP = ("#8f0da4", "#b12a90", "#cc4778", "#e16462", "#f2844b", "#fca636")
"""Of ordered values, from dark to light, so that grey print keeps the order: matplotlib's plasma without its ends,
which a dark or a white page swallows."""
GREY = "#7F7F7F"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")


@dataclass(frozen=True)
class Size:
    """The pixels that a chart is made for: its width, and the size of its text. Figures take a point for a pixel."""

    width: float
    font: float

    def letters(self, share: float) -> int:
        """How many letters of its text fit into a share of its width."""
        return int(self.width * share / (LETTER * self.font))


LETTER, WIDE_LETTER = 0.55, 0.6
"""Width of a letter over the size of the text: the mean over Helvetica's, with a margin, and over DejaVu's."""
LINE = 1.1
"""Height of a line over the size of its text."""
MAX_LINES = 12
"""Of a name. Chosen: far more than a study's axes need."""
SYMBOL = 2.2
"""Sizes of the text that a legend's symbol takes with the space around it."""
PAGE = Size(480, 11)
"""A column of the page, which stretches it."""


@dataclass(frozen=True)
class Chart:
    """A chart with its title, what it shows in words, its specification (without data) and its rows.

    `metrics` are those that it shows, `studies` those that its rows are of. `wide`: it needs two columns in print.
    """

    id: str
    title: str
    description: str
    spec: Spec
    rows: Rows
    metrics: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    wide: bool = False

    @property
    def step(self) -> float | None:
        """The height of an experiment's row; `None` where experiments have no rows of their own."""
        height = self.spec.get("height")
        step = height.get("step") if isinstance(height, dict) else None
        return float(step) if isinstance(step, (int, float)) else None


def interval(estimate: MetricSummary | None) -> tuple[float | None, float | None]:
    """Both ends of the interval, for a quantity that is never below zero; `None` where it is not known."""
    if estimate is None or estimate.low is None:
        return None, None
    return max(0.0, estimate.low), estimate.high


def names_axis(size: Size, longest: int, texts: str = "datum.label") -> Spec:
    """An axis of names in full, over several lines where they are long; `texts` is the expression for them.

    It has room for lines of `longest` letters in any usual font: a drawing's text is set in the font of its reader.
    """
    height = LINE * size.font
    room = WIDE_LETTER * size.font * longest + 4
    # Vega puts the first of several lines where the only one would be.
    tests: list[JsonValue] = [
        {"test": f"length(split({texts}, '\\n')) == {count}", "value": -height * (count - 1) / 2}
        for count in range(2, MAX_LINES)
    ]
    middle: Spec = {"labelOffset": {"condition": tests, "value": 0}}
    lines: Spec = {"labelExpr": f"split({texts}, '\\n')", "labelLineHeight": height, **middle}
    return {"labelLimit": 0, "ticks": False, "domain": False, "labelPadding": 4, "minExtent": room, **lines}


def name_of_experiment(size: Size, longest: int) -> Spec:
    """The rows of a chart that has one per experiment."""
    return {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": names_axis(size, longest)}


def colours(count: int, *, ordered: bool) -> list[JsonValue]:
    """As many colours as there are values; more than the palette has are taken from the ramp."""
    if not ordered and count <= len(PALETTE):
        return list(PALETTE[:count])
    return [_between(RAMP, place / max(1, count - 1)) for place in range(count)]


def tooltip(**titles: str) -> list[JsonValue]:
    """The fields that are shown where a pointer rests, each with its title."""
    return [
        {"field": field, "title": title, **({"format": ".4~g"} if field in NUMBERS else {})}
        for field, title in titles.items()
    ]


NUMBERS = ("x", "y", "low", "high", "slow", "fast", "ratio", "value")


def wrapped(text: str, letters: int) -> list[str]:
    """A text as lines of about so many letters; a longer word is broken behind punctuation, else anywhere."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        fits = len(word.rstrip()) <= letters
        for part in [word] if fits else re.findall(rf"[^,+/=:_-]{{1,{letters}}}[,+/=:_-]*\s*|.", word):
            if lines[-1] and len(lines[-1] + part.rstrip()) > letters:
                lines.append("")
            lines[-1] += part
    return [line.strip() for line in lines if line.strip()]


def legend(title: str, labels: Sequence[str], size: Size) -> Spec:
    """A legend with its labels in full, in as many columns as fit beside its title."""
    letter = LETTER * size.font
    room = 0.92 * size.width - len(title) * letter
    column = max(map(len, labels), default=1) * letter + SYMBOL * size.font
    beside = len(labels) * column <= room
    key: Spec = {"labelLimit": 0, "titleLimit": 0, "symbolOpacity": 1, "titleOrient": "left" if beside else "top"}
    if not beside:
        room = 0.92 * size.width - SYMBOL * size.font
        lines = {label: "\n".join(wrapped(label, max(12, int(room / letter)))) for label in labels}
        if any("\n" in line for line in lines.values()):
            table = ", ".join(f"{quoted(label)}: {quoted(line)}" for label, line in lines.items())
            key["labelExpr"] = f"split({{{table}}}[datum.label], '\\n')"
    # Room for a wider font than the one that it is laid out with.
    wider = (WIDE_LETTER - LETTER) * 2 * size.font
    key |= {"titlePadding": 4 + (wider * len(title) if beside else 0)}
    key |= {"columnPadding": 6 + wider * max(map(len, labels), default=1)}
    return {**key, "columns": max(1, min(len(labels), int(room // column)))}


def quoted(text: str) -> str:
    """A text as a literal of Vega's expressions."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _between(stops: Sequence[str], share: float) -> str:
    """The colour at a share of the way along a row of colours."""
    place = share * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    ends = [[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in stops[first : first + 2]]
    return "#" + "".join(f"{round(low + (high - low) * (place - first)):02x}" for low, high in zip(*ends, strict=True))
