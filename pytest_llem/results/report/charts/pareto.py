"""The chart of the headline against throughput, with the Pareto front and names at its points.

`charts` makes it. Names are placed here, because Vega-Lite prints them over each other: points on the front first, and
others where there is room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import metric_name
from pytest_llem.results.report.charts.chart import GREY, LETTER, LINE, Chart, Rows, Size, Spec, interval, tooltip
from pytest_llem.results.report.charts.points import Experiments, identity
from pytest_llem.results.report.charts.scales import (
    Unit,
    is_log,
    log_axis,
    log_scale,
    metric_words,
    quantity,
    unit_of,
    upright,
)

SPEED, ENERGY = "output_tokens_per_s", "joules_per_output_token"
ASPECT = 0.66
"""Height over width. Chosen: so that the names of a front, which runs from corner to corner, have room."""
AXIS = 4.5
"""Sizes of the text that an axis with its numbers takes."""
MARGIN = 0.08
"""Of the span, between the outermost point and the frame."""
LEAST_SPAN = 0.2
"""Of the largest value. Chosen: points closer together than that are drawn so."""
REACH = 0.5
"""How far bars may widen a scale, in spans of the points. Chosen: a longer bar, which ends at the frame, would flatten
what was measured."""
MAX_NARROW = 8
"""Chosen: so many names of one line find room in a column of print."""
MAX_NAMES = 24
"""Points on the front, and points off it, that are named at most. Chosen: more names hide the points."""
ANGLES = (20, -20, 160, -160, 90, -90, 50, -50, 130, -130, 0, 180)
DISTANCES = (6.0, 12.0, 20.0, 30.0, 42.0, 56.0)
HIDDEN = 1000.0
"""Weight of what a name hides of points and names, beside pixels of distance and of bars."""
LEADER = 10.0
"""Pixels between a point and its name from which on a line joins them."""

Place = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scale:
    """A scale with its domain stated, so that a position in pixels can be told before it is drawn."""

    low: float
    high: float
    log: bool
    pixels: float

    @classmethod
    def over(cls, values: Sequence[float], bars: Sequence[float], pixels: float) -> Scale:
        """Over these values and, as far as `REACH` allows, the ends of their bars."""
        log = is_log(values)
        ends = [math.log(value) if log else value for value in (min(values), max(values))]
        span = max(ends[1] - ends[0], LEAST_SPAN * (1 if log else abs(ends[1]))) or 1.0
        reach = [math.log(bar) if log else bar for bar in bars if bar > 0 or not log]
        low = max(min([*reach, ends[0]]), ends[0] - REACH * span) - MARGIN * span
        high = min(max([*reach, ends[1]]), ends[1] + REACH * span) + MARGIN * span
        return cls(low if log or min(values) < 0 else max(0.0, low), high, log, pixels)

    def to_pixel(self, value: float) -> float:
        """Pixels from the lower end."""
        place = math.log(max(value, 1e-300)) if self.log else value
        return (place - self.low) / (self.high - self.low) * self.pixels

    def to_value(self, pixel: float) -> float:
        """The value at so many pixels from the lower end."""
        place = self.low + pixel / self.pixels * (self.high - self.low)
        return math.exp(place) if self.log else place

    def position(self, field: str, title: JsonValue) -> Spec:
        """A field on it, as Vega-Lite takes it."""
        low, high = (math.exp(end) if self.log else end for end in (self.low, self.high))
        scale: Spec = log_scale(low, high) if self.log else {"domain": [low, high], "nice": False, "zero": False}
        return quantity(field, title, scale, log_axis(low, high) if self.log else None)


def pareto(experiments: Experiments, size: Size) -> Chart:
    """The headline against throughput, or energy per token against it where that is the headline."""
    headline = experiments.headline()
    metric = ENERGY if headline == SPEED else headline
    measured = [
        (row, x, y)
        for row in experiments.rows
        if (x := row.metrics.get(SPEED)) is not None and (y := row.metrics.get(metric)) is not None
    ]
    if len(measured) < 2:
        return Chart("pareto", "", "", {}, [])
    higher = metric_name(metric).higher_is_better
    front = _front([(x.value, y.value if higher else -y.value) for _, x, y in measured])
    units = (unit_of(SPEED, [x.value for _, x, _ in measured]), unit_of(metric, [y.value for _, _, y in measured]))
    values = [(x.value * units[0].factor, y.value * units[1].factor) for _, x, y in measured]
    bars = [[*map(units[0].of, interval(x)), *map(units[1].of, interval(y))] for _, x, y in measured]
    height = round(size.width * ASPECT)
    ends = [[end for bar in bars for end in bar[at : at + 2] if end] for at in (0, 2)]
    spans = [
        Scale.over([value[at] for value in values], ends[at], pixels)
        for at, pixels in ((0, size.width - AXIS * size.font), (1, height))
    ]
    places = [(spans[0].to_pixel(x), spans[1].to_pixel(y)) for x, y in values]
    names = [experiments.labels[row.key] for row, _, _ in measured]
    crosses = [box for place, bar in zip(places, bars, strict=True) for box in _cross(place, bar, spans)]
    placed = _place_names(places, names, front, crosses, spans, size.font)
    marks = experiments.marks([row.key for row, _, _ in measured])
    rows: Rows = []
    for at, (row, _, _) in enumerate(measured):
        slow, fast, low, high = bars[at]
        point: Spec = {"x": values[at][0], "y": values[at][1], "slow": slow, "fast": fast, "low": low, "high": high}
        name: Spec = {"label": names[at], "front": at in front}
        if at in placed:
            (across, up), end = placed[at]
            name |= {"name": names[at], "name_x": spans[0].to_value(across), "name_y": spans[1].to_value(up)}
            if end:
                name |= {"end_x": spans[0].to_value(end[0]), "end_y": spans[1].to_value(end[1])}
        rows.append({**identity(row), **point, **name, **marks.fields(row.key)})
    title = f"{units[1].name} against {metric_words(SPEED)}"
    text = (
        f"{title}: means over valid cycles, with bars for their expanded uncertainty (95 %); "
        "points whose bars overlap need not differ, and a bar at the frame goes on. Dashed: the Pareto front "
        f"({len(front)} of {len(rows)}), than which none is better in both. {marks.words}{experiments.without(metric)}"
    )
    spec: Spec = {
        "height": height,
        "layer": _layers(spans, units, marks.encoding, size, many=len(measured) > MAX_NAMES),
    }
    return Chart(
        "pareto",
        title,
        text.strip(),
        spec,
        rows,
        (metric, SPEED),
        experiments.studies,
        wide=len(measured) > MAX_NARROW or experiments.label_lines > 1,
    )


def _layers(spans: Sequence[Scale], units: Sequence[Unit], marks: Spec, size: Size, *, many: bool) -> list[JsonValue]:
    x = spans[0].position("x", units[0].title)
    y = spans[1].position("y", upright(units[1].title, spans[1].pixels, size))
    colour = {"color": marks["color"]} if "color" in marks else {}
    line: Spec = {"type": "rule", "opacity": 0.3 if many else 0.55, "strokeWidth": 1, "clip": True}
    at_name: Spec = {"x": {**x, "field": "name_x"}, "y": {**y, "field": "name_y"}}
    small: Spec = {"fontSize": size.font - 1, "lineHeight": LINE * (size.font - 1)}
    order: Spec = {"order": {"field": "x", "type": "quantitative"}}
    titles = tooltip(label="experiment", run="run", x=units[0].title, y=units[1].title)
    return [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1, "color": GREY},
            "encoding": {"x": x, "y": y, **order},
        },
        {"mark": line, "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **colour}},
        {"mark": line, "encoding": {"y": y, "x": {**x, "field": "slow"}, "x2": {"field": "fast"}, **colour}},
        {
            "transform": [{"filter": "isValid(datum.end_x)"}],
            "mark": {"type": "rule", "strokeWidth": 0.6, "color": GREY},
            "encoding": {"x": x, "y": y, "x2": {"field": "end_x"}, "y2": {"field": "end_y"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 4 * size.font, "opacity": 1},
            "encoding": {"x": x, "y": y, **marks, "tooltip": titles},
        },
        {
            "transform": [{"filter": "datum.name"}],
            "mark": {"type": "text", "lineBreak": "\n", "baseline": "middle", **small},
            "encoding": {**at_name, "text": {"field": "name"}},
        },
    ]


def _front(points: Sequence[tuple[float, float]]) -> set[int]:
    """The points than which no other is better in one and at least as good in the other; equal points are all on it."""
    front: set[int] = set()
    best, best_x = -math.inf, math.inf
    for at in sorted(range(len(points)), key=lambda at: points[at], reverse=True):
        x, y = points[at]
        if y > best or (y == best and x == best_x):
            front.add(at)
            best, best_x = y, x
    return front


def _cross(place: Place, bar: Sequence[float | None], spans: Sequence[Scale]) -> Iterator[Box]:
    """The two bars of a point, as boxes of a pixel's width."""
    (x, y), (slow, fast, low, high) = place, bar
    if slow is not None and fast is not None:
        yield (spans[0].to_pixel(slow), y - 0.5, spans[0].to_pixel(fast), y + 0.5)
    if low is not None and high is not None:
        yield (x - 0.5, spans[1].to_pixel(low), x + 0.5, spans[1].to_pixel(high))


def _place_names(
    places: Sequence[Place],
    names: Sequence[str],
    front: set[int],
    bars: Sequence[Box],
    spans: Sequence[Scale],
    font: float,
) -> dict[int, tuple[Place, Place | None]]:
    """The centre of each name that finds room, in pixels from the lower left, and the end of a line to its point.

    No name hides a point or another name, except on the front, where each has one: it stands where it hides least. A
    name over a bar is avoided where another place is near.
    """
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    others = [at for at in range(len(places)) if at not in front]
    placed: dict[int, tuple[Place, Place | None]] = {}
    for at in [*sorted(front)[:MAX_NAMES], *(others if len(others) <= MAX_NAMES else ())]:
        lines = names[at].split("\n")
        width = max(map(len, lines)) * LETTER * (font - 1) + 2
        height = len(lines) * font * LINE
        best: tuple[float, float, Box] | None = None
        near = [box for box in taken if _reaches(box, places[at], width, height)]
        crossed = [bar for bar in bars if _reaches(bar, places[at], width, height)]
        for distance in DISTANCES if at in front else DISTANCES[:3]:
            for angle in ANGLES:
                across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                x = places[at][0] + across * (distance + width / 2)
                y = places[at][1] + up * (distance + height / 2)
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                if box[0] < 0 or box[1] < 0 or box[2] > spans[0].pixels or box[3] > spans[1].pixels:
                    continue
                hidden = sum(_overlap(box, other) for other in near) * HIDDEN + sum(
                    _overlap(box, bar) for bar in crossed
                )
                if best is None or hidden + distance < best[0]:
                    best = (hidden + distance, distance, box)
        if best and (best[0] < HIDDEN or at in front):
            _, distance, box = best
            taken.append(box)
            x, y = places[at]
            nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            placed[at] = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), nearest if distance > LEADER else None
    return placed


def _reaches(box: Box, place: Place, width: float, height: float) -> bool:
    """Whether a name of that size, somewhere around the place, could touch the box."""
    far = DISTANCES[-1]
    across = box[0] - far - width < place[0] < box[2] + far + width
    return across and box[1] - far - height < place[1] < box[3] + far + height


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0
