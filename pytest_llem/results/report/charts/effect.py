"""The charts of what an axis of a sweep does: ratios to its first value, paired over the other axes.

`charts` makes them, with the intervals of `results.effects`. Only the points of numbers are joined by a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_llem.errors import JsonValue
from pytest_llem.results.effects import Effect, Pair, effects
from pytest_llem.results.report.charts.chart import (
    GREY,
    LINE,
    PALETTE,
    Chart,
    Rows,
    Size,
    Spec,
    names_axis,
    quoted,
    tooltip,
    wrapped,
)
from pytest_llem.results.report.charts.points import Experiments, Marks, identity, value_text
from pytest_llem.results.report.charts.scales import (
    EVEN,
    beside_names,
    log_axis,
    metric_words,
    quantity,
    swept,
    unit_of,
    widened,
)
from pytest_llem.study.model import SweptAxis

MAX_RATIO = 4.0
"""Factor beyond all ratios at which a bar is cut, with an arrow. Chosen: a wider one flattens what was measured."""
FACTOR = 3.0
"""Ratio from which on a change is stated as a factor. Chosen: +200 % is read as a doubling."""
MAX_VALUES = 100
"""Values of an axis that has a chart of its effect. Chosen: more bars hide one another, and fill the page."""
ASPECT = 0.5
"""Height over width where the axis is one of numbers."""
NAMES = 0.36
"""Share of the chart's width for the names of values."""
ABOVE, BELOW = 0.4, 0.75
"""Where the effect and its pairs stand in the row of a value, from top to bottom."""


def effect_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """For each axis of each study its effect on the study's headline, where two of its values have a pair."""
    for study in experiments.studies:
        metric = experiments.headline([study])
        results = experiments.content.results.of_study(study)
        for axis in experiments.axes(study):
            if len(axis.values) > MAX_VALUES:
                continue
            found = effects(results, experiments.content.axes[study], axis, metric)
            told = [effect for effect in found if effect.ratio is not None]
            if told:
                yield _chart(experiments, study, axis, metric, told, size)


def _chart(
    experiments: Experiments, study: str, axis: SweptAxis, metric: str, found: Sequence[Effect], size: Size
) -> Chart:
    keys = {(row.run, _point(row.point)): row for row in experiments.rows if row.study == study}
    pairs = [
        (effect, pair, row)
        for effect in found
        for pair in effect.each
        if (row := keys.get((pair.run, _point({**pair.others, axis.name: effect.value}))))
    ]
    marks = experiments.marks([row.key for _, _, row in pairs], apart=[axis.name])
    rows: Rows = []
    for effect, pair, row in pairs:
        of_pair: Spec = {"value": _position(effect.value, axis), "ratio": pair.ratio, "said": _said(pair)}
        rows.append({**identity(row), "label": experiments.labels[row.key], **of_pair, **marks.fields(row.key)})
    counts = sorted(effect.pairs for effect in found)
    several = counts[-1] > 1
    number = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    reference = value_text(found[0].reference)
    name = unit_of(metric, ()).name
    text = (
        f"{name} as a ratio to that at {axis.title} {reference}, "
        f"{f'the geometric mean over {number} pairs of' if several else 'of two'} experiments that differ in "
        f"{axis.title} alone, with 95 % intervals."
    )
    drawn = _drawn(found, axis)
    if any(each["cut_low"] or each["cut_high"] for each in drawn):
        text += " An arrow: the interval goes on."
    if several:
        text += f" Faint: each pair. {marks.words}"
    ratio = _ratio(drawn, [pair.ratio for _, pair, _ in pairs], [f"{name},", f"ratio to {axis.title} {reference}"])
    ratio = ratio if axis.ordered else beside_names(ratio)
    position, height = _along(axis, drawn, size) if axis.ordered else _beside(axis, drawn, size)
    return Chart(
        f"effect-{experiments.within(study, axis.name)}",
        f"Effect of {experiments.within(study, axis.title)} on {metric_words(metric)}",
        text.strip(),
        {**height, "layer": _layers(position, ratio, drawn, marks if several else None, size)},
        rows,
        (metric,),
        (study,),
        wide=not axis.ordered and max(len(value_text(each["value"])) for each in drawn) > 2 * size.letters(NAMES),
    )


def _drawn(found: Sequence[Effect], axis: SweptAxis) -> list[dict[str, JsonValue]]:
    """The reference and each effect with the ends of its bar, and what is cut of it."""
    ratios = [1.0, *(pair.ratio for effect in found for pair in effect.each)]
    floor, ceiling = min(ratios) / MAX_RATIO, max(ratios) * MAX_RATIO
    reference = {"value": _position(found[0].reference, axis), "ratio": 1.0, "change": "", "said": "reference"}
    drawn: list[dict[str, JsonValue]] = [{**reference, "low": None, "high": None, "cut_low": None, "cut_high": None}]
    for effect in found:
        low, high = effect.ci_low, effect.ci_high
        drawn.append(
            {
                "value": _position(effect.value, axis),
                "ratio": effect.ratio,
                "low": None if low is None else max(low, floor),
                "high": None if high is None else min(high, ceiling),
                "cut_low": floor if low is not None and low < floor else None,
                "cut_high": ceiling if high is not None and high > ceiling else None,
                "change": change(effect.ratio),
                "said": _said(effect),
            }
        )
    return drawn


def _along(axis: SweptAxis, drawn: Sequence[Mapping[str, JsonValue]], size: Size) -> tuple[Spec, Spec]:
    """Numbers along the horizontal axis: their position, and the chart's height."""
    return {"x": swept("value", axis, [each["value"] for each in drawn])}, {"height": round(size.width * ASPECT)}


def _beside(axis: SweptAxis, drawn: Sequence[Mapping[str, JsonValue]], size: Size) -> tuple[Spec, Spec]:
    """Values below each other in the order of the sweep: their position, and the chart's height."""
    shown = {each["value"] for each in drawn}
    letters = max(14, size.letters(NAMES))
    texts = {text: wrapped(text, letters) for value in axis.values if (text := value_text(value)) in shown}
    longest = max(len(line) for lines in texts.values() for line in lines)
    table = ", ".join(f"{quoted(text)}: {quoted(chr(10).join(lines))}" for text, lines in texts.items())
    named = names_axis(size, longest, f"{{{table}}}[datum.label]")
    y: Spec = {"field": "value", "type": "nominal", "title": None, "sort": [*texts], "axis": named}
    most = max(map(len, texts.values()))
    return {"y": y}, {"height": round(len(texts) * max(3.4, most * LINE + 1) * size.font)}


def _layers(
    position: Spec, ratio: Spec, drawn: Sequence[JsonValue], marks: Marks | None, size: Size
) -> list[JsonValue]:
    """The line at 1, the pairs, and the effects with their intervals; beside each other, pairs stand below."""
    joined = "x" in position
    along = "y" if joined else "x"
    data: Spec = {"data": {"values": [*drawn]}}
    colour = PALETTE[0] if marks is None else GREY
    above, below = ({} if joined else _offset(share) for share in (ABOVE, BELOW))
    at: Spec = {**position, **above}
    point: Spec = {"type": "point", "filled": True, "color": colour, "opacity": 1}
    one: Spec = {name: value for name, value in ratio.items() if name != "field"} | {"datum": 1}
    dashed: Spec = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1, "color": GREY}
    layers: list[JsonValue] = [{"data": {"values": [{}]}, "mark": dashed, "encoding": {along: one}}]
    if marks is not None:
        titles = tooltip(label="experiment", run="run", said="ratio")
        faint: Spec = {"type": "point", "filled": True, "opacity": 0.55, "size": 2.4 * size.font}
        encoding: Spec = {**position, **below, along: ratio, **marks.encoding, "tooltip": titles}
        layers.append({"mark": faint, "encoding": encoding})
    if joined:
        line: Spec = {"type": "line", "color": colour, "strokeWidth": 1.2}
        layers.append({**data, "mark": line, "encoding": {**at, along: ratio}})
    bar: Spec = {"type": "rule", "color": colour, "strokeWidth": 1.6}
    ends: Spec = {along: {**ratio, "field": "low"}, f"{along}2": {"field": "high"}}
    layers.append({**data, "mark": bar, "encoding": {**at, **ends}})
    for end, (upright, level) in {"cut_low": ("down", "left"), "cut_high": ("up", "right")}.items():
        arrow: Spec = {**point, "size": 4 * size.font, "shape": f"triangle-{upright if joined else level}"}
        known: list[JsonValue] = [{"filter": f"isValid(datum.{end})"}]
        encoding = {**at, along: {**ratio, "field": end}}
        layers.append({**data, "transform": known, "mark": arrow, "encoding": encoding})
    diamond: Spec = {**point, "shape": "diamond", "size": 6 * size.font}
    layers.append({**data, "mark": diamond, "encoding": {**at, along: ratio, "tooltip": tooltip(said="effect")}})
    text: Spec = {"type": "text", "fontSize": size.font - 1}
    text |= {"dx": 5, "dy": -5, "align": "left", "baseline": "bottom"} if joined else {"dy": -0.9 * size.font}
    layers.append({**data, "mark": text, "encoding": {**at, along: ratio, "text": {"field": "change"}}})
    return layers


def _offset(share: float) -> Spec:
    return {"yOffset": {"datum": share, "type": "quantitative", "scale": {"domain": [0, 1]}}}


def _ratio(drawn: Sequence[Mapping[str, JsonValue]], ratios: Sequence[float], title: list[JsonValue]) -> Spec:
    """The scale of ratios: logarithmic, unless they are so close that there is no difference but in its ticks."""
    shown = [end for each in drawn for name in ("ratio", "low", "high") if isinstance(end := each[name], float)]
    shown += ratios
    log = max(shown) / min(shown) > EVEN
    low, high = widened(min(shown), max(shown), log=log)
    scale: Spec = {"type": "log" if log else "linear", "domain": [low, high], "nice": False}
    return quantity("ratio", title, scale, log_axis(low, high) if log else None)


def _said(effect: Effect | Pair) -> str:
    bounds = (
        f"{change(effect.ci_low)} .. {change(effect.ci_high)}" if effect.ci_low is not None else "interval not known"
    )
    return f"{change(effect.ratio)} ({bounds}), {effect.status}"


def change(ratio: float | None) -> str:
    """A ratio as a change in percent, or as a factor where it is large."""
    if ratio is None:
        return "?"
    if ratio >= FACTOR:
        return f"×{ratio:.3g}"
    percent = 100 * (ratio - 1)
    return f"{percent:+.{1 if abs(percent) < 10 else 0}f} %".replace("-", "−")


def _position(value: JsonValue, axis: SweptAxis) -> JsonValue:
    return value if axis.ordered else value_text(value)


def _point(values: Mapping[str, JsonValue]) -> str:
    return repr(sorted(values.items()))
