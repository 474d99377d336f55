"""Where things stand in a panel: the scales of its two axes, and paths through its runs.

`panels` draws the first view with it, for readers without scripts; `assets/trend.js` does the same for every other view
and must match. A drawing is stretched to its box, so that it is `WIDE` by `HIGH` and its texts stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_llem.results.history.record import HistoryEntry, MetricEntry

WIDE, HIGH = 1000, 500
LEAST_SPAN = 0.04
"""Of the middle, what the vertical axis shows at least. Chosen: noise of 0.1 % must not look like a mountain."""
OUTER = 0.05
"""Share of the intervals' ends that may lie outside on either side: one run of two cycles must not flatten the rest."""
MARGIN = 0.05
"""Of the span, above and below. Chosen: no point lies on the frame."""
MOST_DOTS = 100
"""Runs of a level up to which each has a dot. Chosen: on a phone more of them touch."""
Point = tuple[int, int]


@dataclass(frozen=True)
class ValueScale:
    """The ends of the vertical axis, in a metric's values."""

    low: float
    high: float

    @classmethod
    def of(cls, shown: Sequence[MetricEntry]) -> ValueScale:
        """All values, and most ends of their intervals."""
        values = [each.value for each in shown]
        lows = sorted(each.low for each in shown if each.low is not None)
        highs = sorted(each.high for each in shown if each.high is not None)
        low = min([*values, *lows[int(OUTER * len(lows)) :][:1]])
        high = max([*values, *highs[: len(highs) - int(OUTER * len(highs))][-1:]])
        half = max((high - low) * (0.5 + MARGIN), LEAST_SPAN / 2 * abs(high + low) / 2) or 1.0
        return cls((high + low) / 2 - half, (high + low) / 2 + half)

    def y(self, value: float) -> int:
        """Where a value lies, from the top; what is outside lies on the frame."""
        share = (self.high - value) / (self.high - self.low)
        return round(HIGH * min(1.0, max(0.0, share)))

    def ticks(self) -> list[float]:
        """One to five round values inside, none so low that it touches the dates below."""
        size = 10.0 ** math.floor(math.log10(self.high - self.low))
        step = next(each * size for each in (0.2, 0.5, 1, 2) if (self.high - self.low) / (each * size) < 5.5)
        lowest = self.low + MARGIN * (self.high - self.low)
        return [step * each for each in range(math.ceil(lowest / step), math.floor(self.high / step) + 1)]


def x_of(place: int, runs: int) -> int:
    """Where a study's run number `place` (from 0) of `runs` lies."""
    return round(WIDE * place / (runs - 1)) if runs > 1 else WIDE // 2


def line(points: Sequence[Point]) -> str:
    """A path from point to point, one at least."""
    return "M" + _joined(points[0]) + "".join(("l", *_steps(points)) if len(points) > 1 else "")


def dots(points: Iterable[Point]) -> str:
    """A path of lines without length, which round ends make dots of."""
    return "".join(f"M{x} {y}h0" for x, y in points)


def rule(start: Point, end: int) -> str:
    """A level line from a point to the x of another."""
    return f"M{start[0]} {start[1]}H{max(end, start[0] + 1)}"


def band(entries: Sequence[tuple[int, MetricEntry]], scale: ValueScale) -> str:
    """The area between both bounds, by x; it ends where a run has none."""
    parts: list[list[tuple[int, float, float]]] = [[]]
    for x, each in entries:
        if each.low is None or each.high is None:
            parts.append([])
        else:
            parts[-1].append((x, each.low, each.high))
    paths = []
    for part in parts:
        above = [(x, scale.y(high)) for x, _, high in part]
        below = [(x, scale.y(low)) for x, low, _ in reversed(part)]
        if part:
            paths.append(line([*above, *below]) + "z")
    return "".join(paths)


def mean(entries: Sequence[HistoryEntry], metric: str) -> float:
    """The mean of a metric over runs."""
    return sum(entry.metrics[metric].value for entry in entries) / len(entries)


def _steps(points: Sequence[Point]) -> Iterable[str]:
    first = True
    for (x, y), (to_x, to_y) in pairwise(points):
        step = _joined((to_x - x, to_y - y))
        yield step if first or step.startswith("-") else f" {step}"
        first = False


def _joined(point: Point) -> str:
    x, y = point
    return f"{x}{y}" if y < 0 else f"{x} {y}"
