"""The charts of one metric against another, with the Pareto front and names at its points.

`charts` makes them: the headline against throughput and, where answers are scored, accuracy against what an answer
costs. Names are placed here, because Vega-Lite prints them over each other: points on the front first, and others where
there is room.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT, metric_name
from pytest_llem.results.front import STANDINGS, Spot, Standing, front, standings
from pytest_llem.results.metrics import is_energy
from pytest_llem.results.report.charts.chart import (
    GREY,
    LINE,
    PALETTE,
    Chart,
    Rows,
    Size,
    Spec,
    interval,
    tooltip,
)
from pytest_llem.results.report.charts.placing import MAX_NAMES, Box, Place, place_names
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
from pytest_llem.results.report.content import ExperimentRow

SPEED, ENERGY, ANSWER = "output_tokens_per_s", "joules_per_output_token", "joules_per_request"
FILLED: dict[Standing, float] = {"on": 1.0, "possible": 0.4, "dominated": 0.0}
"""How much a point is filled, by how it stands against the others."""
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


@dataclass(frozen=True)
class Scale:
    """A scale with its domain stated, so that a position in pixels can be told before it is drawn."""

    low: float
    high: float
    log: bool
    pixels: float

    @classmethod
    def over(cls, values: Sequence[float], bars: Sequence[float], pixels: float, *, share: bool = False) -> Scale:
        """Over these values and, as far as `REACH` allows, the ends of their bars; of a share all of them, linear."""
        log = is_log(values) and not share
        farthest = math.inf if share else REACH
        ends = [math.log(value) if log else value for value in (min(values), max(values))]
        span = max(ends[1] - ends[0], LEAST_SPAN * (1 if log else abs(ends[1]))) or 1.0
        reach = [math.log(bar) if log else bar for bar in bars if bar > 0 or not log]
        low = max(min([*reach, ends[0]]), ends[0] - farthest * span) - MARGIN * span
        high = min(max([*reach, ends[1]]), ends[1] + farthest * span) + MARGIN * span
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
    return _chart(experiments, size, "pareto", SPEED, ENERGY if headline == SPEED else headline)


def quality_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """Accuracy against energy per correct answer, and per answer; without rows where nothing was scored."""
    yield _chart(experiments, size, "quality", JOULES_PER_CORRECT, ACCURACY)
    yield _chart(experiments, size, "quality-per-answer", ANSWER, ACCURACY)


def _chart(experiments: Experiments, size: Size, id: str, across: str, metric: str) -> Chart:
    """`metric` against another one, and the front with its uncertainty."""
    measured = [
        (row, x, y)
        for row in experiments.rows
        if (x := row.metrics.get(across)) is not None and (y := row.metrics.get(metric)) is not None
    ]
    if len(measured) < 2:
        return Chart(id, "", "", {}, [])
    signs = [1 if metric_name(name).higher_is_better else -1 for name in (across, metric)]
    signed = [(signs[0] * x.value, signs[1] * y.value) for _, x, y in measured]
    asked = [_alike(row, across, metric) for row, _, _ in measured]
    kinds = [*dict.fromkeys(asked)]
    best: set[int] = set()
    for kind in kinds:
        places_of = [at for at, of in enumerate(asked) if of == kind]
        best |= {places_of[at] for at in front([signed[at] for at in places_of])}
    standing = [*standings_of(experiments.rows, across, metric).values()]
    units = (unit_of(across, [x.value for _, x, _ in measured]), unit_of(metric, [y.value for _, _, y in measured]))
    values = [(x.value * units[0].factor, y.value * units[1].factor) for _, x, y in measured]
    bars = [[*map(units[0].of, interval(x)), *map(units[1].of, interval(y))] for _, x, y in measured]
    height = round(size.width * ASPECT)
    ends = [[end for bar in bars for end in bar[at : at + 2] if end] for at in (0, 2)]
    spans = [
        Scale.over([value[at] for value in values], ends[at], pixels, share=name == ACCURACY)
        for at, pixels, name in ((0, size.width - AXIS * size.font, across), (1, height, metric))
    ]
    places = [(spans[0].to_pixel(x), spans[1].to_pixel(y)) for x, y in values]
    names = [experiments.labels[row.key] for row, _, _ in measured]
    crosses = [box for place, bar in zip(places, bars, strict=True) for box in _cross(place, bar, spans)]
    placed = place_names(places, names, best, crosses, (spans[0].pixels, spans[1].pixels), size.font)
    marks = experiments.marks([row.key for row, _, _ in measured])
    rows: Rows = []
    for at, (row, _, _) in enumerate(measured):
        slow, fast, low, high = bars[at]
        point: Spec = {"x": values[at][0], "y": values[at][1], "slow": slow, "fast": fast, "low": low, "high": high}
        name: Spec = {"label": names[at], "front": at in best}
        name |= {"standing": STANDINGS[standing[at]], "filled": FILLED[standing[at]]}
        name |= {"asked": kinds.index(asked[at])}
        if at in placed:
            (over, up), end = placed[at]
            name |= {"name": names[at], "name_x": spans[0].to_value(over), "name_y": spans[1].to_value(up)}
            if end:
                name |= {"end_x": spans[0].to_value(end[0]), "end_y": spans[1].to_value(end[1])}
        rows.append({**identity(row), **point, **name, **marks.fields(row.key)})
    title = f"{units[1].name} against {metric_words(across)}"
    text = (
        f"{title}: means over valid cycles, with bars for their expanded uncertainty (95 %); "
        "points whose bars overlap need not differ, and a bar at the frame goes on. Dashed: the Pareto front "
        f"({len(best)} of {len(rows)}), than which none is better in both. {_in_words(standing, len(kinds), metric)}"
        f"{marks.words}{experiments.without(metric)}"
    )
    layers = _layers(spans, units, marks.encoding, size, many=len(measured) > MAX_NAMES)
    spec: Spec = {"height": height, "layer": layers}
    return Chart(
        id,
        title,
        text.strip(),
        spec,
        rows,
        (metric, across),
        experiments.studies,
        wide=len(measured) > MAX_NARROW or experiments.label_lines > 1,
    )


def standings_of(rows: Sequence[ExperimentRow], across: str, metric: str) -> dict[str, Standing]:
    """How each experiment that has both metrics stands, by key, against those of the same questions and meter."""
    measured = [row for row in rows if across in row.metrics and metric in row.metrics]
    by_questions = metric == ACCURACY
    found: dict[str, Standing] = {}
    groups: dict[tuple[Hashable, str], list[ExperimentRow]] = {}
    for row in measured:
        groups.setdefault(_alike(row, across, metric), []).append(row)
    for (asked, _), group in groups.items():
        x, y = (
            [Spot.of(interval(row.metrics[name]), higher=metric_name(name).higher_is_better) for row in group]
            for name in (across, metric)
        )
        each = standings(x, y, [row.answers and row.answers.alike if by_questions else None for row in group])
        unknown = by_questions and asked is None
        found |= {row.key: "possible" if unknown else at for row, at in zip(group, each, strict=True)}
    return {row.key: found[row.key] for row in measured}


def _alike(row: ExperimentRow, *metrics: str) -> tuple[Hashable, str]:
    """What experiments must have alike for a common front: questions and scorer of accuracies, the meter of joules."""
    asked = row.answers and row.answers.asked if ACCURACY in metrics else None
    return asked, row.meter if any(map(is_energy, metrics)) else ""


def _in_words(standing: Sequence[Standing], kinds: int, metric: str) -> str:
    """How many points stand how against the others, as part of a caption."""
    looks: dict[Standing, str] = {"on": "full", "possible": "pale", "dominated": "hollow"}
    told = [f"{STANDINGS[each]} ({looks[each]}): {count}" for each in looks if (count := standing.count(each))]
    others = "questions, scorers or meters" if metric == ACCURACY else "meters"
    apart = f"Other {others} have fronts of their own: there are {kinds} kinds. " if kinds > 1 else ""
    tie = ", or costs less and has the same scores on every question" if metric == ACCURACY else ""
    return (
        f"{apart}By the intervals of both (95 %), {', '.join(told)}. Another setting dominates where it is better in "
        f"both by more than the intervals{tie}. "
    )


def _layers(
    spans: Sequence[Scale],
    units: Sequence[Unit],
    marks: Spec,
    size: Size,
    *,
    many: bool,
) -> list[JsonValue]:
    x = spans[0].position("x", units[0].title)
    y = spans[1].position("y", upright(units[1].title, spans[1].pixels, size))
    colour = {"color": marks["color"]} if "color" in marks else {}
    line: Spec = {"type": "rule", "opacity": 0.3 if many else 0.55, "strokeWidth": 1, "clip": True}
    at_name: Spec = {"x": {**x, "field": "name_x"}, "y": {**y, "field": "name_y"}}
    small: Spec = {"fontSize": size.font - 1, "lineHeight": LINE * (size.font - 1)}
    order: Spec = {"order": {"field": "x", "type": "quantitative"}}
    fronts: Spec = {"detail": {"field": "asked"}}
    standing = {"standing": "front (95 %)"}
    titles = tooltip(label="experiment", run="run", x=units[0].title, y=units[1].title, **standing)
    point: Spec = {"type": "point", "filled": False, "strokeWidth": 1.4, "size": 5 * size.font, "opacity": 1}
    return [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1, "color": GREY},
            "encoding": {"x": x, "y": y, **order, **fronts},
        },
        {"mark": line, "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **colour}},
        {"mark": line, "encoding": {"y": y, "x": {**x, "field": "slow"}, "x2": {"field": "fast"}, **colour}},
        {
            "transform": [{"filter": "isValid(datum.end_x)"}],
            "mark": {"type": "rule", "strokeWidth": 0.6, "color": GREY},
            "encoding": {"x": x, "y": y, "x2": {"field": "end_x"}, "y2": {"field": "end_y"}},
        },
        {"mark": point, "encoding": {"x": x, "y": y, **marks, **_filled(marks), "tooltip": titles}},
        {
            "transform": [{"filter": "datum.name"}],
            "mark": {"type": "text", "lineBreak": "\n", "baseline": "middle", **small},
            "encoding": {**at_name, "text": {"field": "name"}},
        },
    ]


def _filled(marks: Spec) -> Spec:
    """How a point stands, as its filling in the colour of its line; the caption says what that means."""
    colour = marks.get("color")
    fill: Spec = colour if isinstance(colour, dict) else {"value": PALETTE[0]}
    return {"fill": fill, "fillOpacity": {"field": "filled", "type": "quantitative", "scale": None, "legend": None}}


def _cross(place: Place, bar: Sequence[float | None], spans: Sequence[Scale]) -> Iterator[Box]:
    """The two bars of a point, as boxes of a pixel's width."""
    (x, y), (slow, fast, low, high) = place, bar
    if slow is not None and fast is not None:
        yield (spans[0].to_pixel(slow), y - 0.5, spans[0].to_pixel(fast), y + 0.5)
    if low is not None and high is not None:
        yield (x - 0.5, spans[1].to_pixel(low), x + 0.5, spans[1].to_pixel(high))
