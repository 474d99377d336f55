"""The chart of a GPU's power limit or clock: energy per token above throughput, with the setting that costs the least.

`charts` makes one for each such axis of a study. Both panels share the axis and stand in one view: below each other on
a phone as on a page, and no point belongs to one of two scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_llem.errors import JsonValue
from pytest_llem.results.axes import numbers
from pytest_llem.results.device_axes import DEFAULT, POWER_LIMIT, WORDS, device_axes, lies_at, setting_of
from pytest_llem.results.device_optimum import SPEED, Optimum, judged_by, optima, sentences
from pytest_llem.results.report.charts.chart import GREY, Chart, Rows, Size, Spec, interval, tooltip
from pytest_llem.results.report.charts.points import Experiments, Marks, identity
from pytest_llem.results.report.charts.scales import Unit, quantity, unit_of, upright, widened
from pytest_llem.results.report.content import ExperimentRow
from pytest_llem.results.schema import Result
from pytest_llem.study.model import SweptAxis

ASPECT = 0.8
"""Height over width. Chosen: two panels of about the golden section each."""
GAP = 0.07
"""Of the height, between the panels: room for a word."""
STEP = 0.12
"""Of the span of the numbers, to a default of which nothing says where it lies. Chosen: the room of a word."""
MOST_SAID = 4
"""Optima that a caption says. Chosen: more are not read; `summary.json` has them all."""
BEST, POSSIBLE = "the least", "as good within the uncertainty"
RINGS = {BEST: 1.0, POSSIBLE: 0.4, None: 0.0}
"""How visible a point's ring is."""


def device_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """A chart for each axis of a GPU's limit or clocks on which two settings were measured."""
    for study in experiments.studies:
        of_study = [row for row in experiments.rows if row.study == study]
        metric = judged_by(experiments.headline([study]))
        swept = device_axes(experiments.axes(study))
        found = optima(experiments.content.results.of_study(study), experiments.content.axes[study], metric)
        for axis in swept:
            rows = [row for row in of_study if metric in row.metrics and row.point.get(axis.name) is not None]
            if found and numbers(row.point[axis.name] for row in rows):
                yield _chart(experiments, study, axis, metric, rows, found, size)


def _chart(
    experiments: Experiments,
    study: str,
    axis: SweptAxis,
    metric: str,
    shown: Sequence[ExperimentRow],
    found: Sequence[Optimum],
    size: Size,
) -> Chart:
    marks = experiments.marks([row.key for row in shown], apart=[axis.name])
    places = _places(experiments, axis, shown)
    energy = unit_of(metric, [row.metrics[metric].value for row in shown])
    speed = unit_of(SPEED, [row.metrics[SPEED].value for row in shown if SPEED in row.metrics])
    rows: Rows = []
    for row in shown:
        value = row.point[axis.name]
        low, high = map(energy.of, interval(row.metrics[metric]))
        slow, fast = map(speed.of, interval(row.metrics.get(SPEED)))
        fields: Spec = {
            "x": places[row.key].at,
            "setting": f"{value}",
            "joined": places[row.key].joined,
            "y": energy.of(row.metrics[metric].value),
            "low": low,
            "high": high,
            "speed": speed.of(row.metrics[SPEED].value) if SPEED in row.metrics else None,
            "slow": slow,
            "fast": fast,
            "optimal": (standing := _standing(row, found)),
            "ring": RINGS[standing],
            "line": _line(row, axis),
            "label": experiments.labels[row.key],
        }
        rows.append({**identity(row), **fields, **marks.fields(row.key)})
    height = round(size.width * ASPECT)
    words = WORDS[setting_of(axis) or ""].title
    text = (
        f"{energy.name} and {speed.name[0].lower()}{speed.name[1:]} by {axis.title}: means over valid cycles with "
        f"their expanded uncertainty (95 %). {_rings(rows)}{_of_default(shown, axis, places)}{marks.words} "
        f"{_said(found)}"
        f"{experiments.without(metric, [study])}"
    )
    return Chart(
        f"device-{experiments.within(study, setting_of(axis) or axis.name)}",
        f"{energy.name} and throughput by {experiments.within(study, axis.title)}",
        " ".join(text.split()),
        {
            "height": height,
            "resolve": {"scale": {"y": "independent"}, "axis": {"y": "independent"}},
            "layer": _layers(words, rows, energy, speed, marks, size, height),
        },
        rows,
        (metric, SPEED),
        (study,),
    )


class _Place(NamedTuple):
    """Where an experiment stands: `read` or set rather than put anywhere, and `joined` with the others by a line."""

    at: float
    read: bool
    joined: bool


def _places(experiments: Experiments, axis: SweptAxis, shown: Sequence[ExperimentRow]) -> dict[str, _Place]:
    """The place of each experiment, by key.

    A word lies at the limit that was in force, or at the clock that the load ran at; above all numbers where neither
    was read. A clock that nobody set is no point of the line.
    """
    known = numbers(dict.fromkeys(row.point[axis.name] for row in shown))
    top = max(known) + max(STEP * (max(known) - min(known)), 1.0)
    setting = setting_of(axis) or ""
    measured: dict[str, list[Result]] = {}
    for result in experiments.content.rows.valid:
        measured.setdefault(f"{result.run_id}/{result.study}/{result.experiment.id}", []).append(result)
    places: dict[str, _Place] = {}
    for row in shown:
        value = numbers([row.point[axis.name]])
        read = value[0] if value else lies_at(measured.get(row.key, ()), setting)
        joined = bool(value) or (read is not None and setting == POWER_LIMIT)
        places[row.key] = _Place(top if read is None else read, read is not None, joined)
    return places


def _standing(row: ExperimentRow, found: Sequence[Optimum]) -> str | None:
    """Whether an experiment is the best of its settings, or may be."""
    for each in found:
        values = tuple(row.point.get(name) for name in each.axes)
        point = {name: value for name, value in row.point.items() if name not in each.axes}
        if (each.run, point) == (row.run, dict(each.point)):
            return BEST if values == each.best else POSSIBLE if values in each.others else None
    return None


def _line(row: ExperimentRow, axis: SweptAxis) -> str:
    return f"{row.run} {sorted((name, str(value)) for name, value in row.point.items() if name != axis.name)}"


def _rings(rows: Rows) -> str:
    kinds = {row["optimal"] for row in rows}
    pale = " Pale rings: as good within the uncertainty." if POSSIBLE in kinds else ""
    return f"Ring: the least energy.{pale} " if BEST in kinds else ""


def _of_default(shown: Sequence[ExperimentRow], axis: SweptAxis, places: Mapping[str, _Place]) -> str:
    own = [places[row.key] for row in shown if row.point[axis.name] == DEFAULT]
    if not own:
        return ""
    where = "" if all(each.joined for each in own) else ", at the clock that it ran at"
    return f"Dashed: the board's default{where if all(each.read for each in own) else ', which was not read'}. "


def _said(found: Sequence[Optimum]) -> str:
    said = [f"{line[0].upper()}{line[1:]}." if len(found) == 1 else f"{line}." for line in sentences(found)]
    more = len(said) - MOST_SAID
    return " ".join([*said[:MOST_SAID], *([f"And {more} more."] if more > 0 else [])])


def _layers(
    title: str,
    rows: Rows,
    energy: Unit,
    speed: Unit,
    marks: Marks,
    size: Size,
    height: int,
) -> list[JsonValue]:
    at = sorted({float(str(row["x"])) for row in rows})
    own = sorted({float(str(row["x"])) for row in rows if row["setting"] == DEFAULT})
    low, high = widened(at[0], at[-1], log=False)
    ticks: list[JsonValue] = [*sorted({float(str(row["x"])) for row in rows if row["joined"]})]
    x = quantity("x", title, {"domain": [low, high], "nice": False}, {"values": ticks, "labelOverlap": "greedy"})
    x["axis"] |= {"grid": False}  # type: ignore[operator]
    half = height * (1 - GAP) / 2
    panels = (
        (energy, ("y", "low", "high"), [half, 0.0]),
        (speed, ("speed", "slow", "fast"), [float(height), height - half]),
    )
    layers: list[JsonValue] = [
        {"layer": _panel(x, unit, fields, [*span], half, marks, size)} for unit, fields, span in panels
    ]
    if own:
        mark: Spec = {"type": "rule", "strokeDash": [5, 4], "color": GREY}
        side: Spec = {"align": "right", "dx": -3} if own[-1] > (low + high) / 2 else {"align": "left", "dx": 3}
        word: Spec = {"type": "text", "baseline": "middle", "fontSize": size.font - 0.5, **side}
        rules: Spec = {"values": [{"x": place} for place in own]}
        named: Spec = {"values": [{"x": own[-1], "said": DEFAULT}]}
        layers.append({"data": rules, "mark": mark, "encoding": {"x": x}})
        between: Spec = {"x": x, "y": {"value": height / 2}, "text": {"field": "said"}}
        layers.append({"data": named, "mark": word, "encoding": between})
    return layers


def _panel(
    x: Spec, unit: Unit, fields: tuple[str, str, str], span: list[JsonValue], half: float, marks: Marks, size: Size
) -> list[JsonValue]:
    """One of both panels: the line, the bars, the points, and rings about those that may cost the least."""
    middle, low, high = fields
    scale: Spec = {"zero": False, "nice": True, "range": span}
    y = quantity(middle, upright(unit.title, half, size), scale, {"orient": "left"})
    colour: Spec = {"color": marks.encoding["color"]} if "color" in marks.encoding else {}
    joined: Spec = {"x": x, "detail": {"field": "line"}, **colour}
    bar: Spec = {"y": {**y, "field": low}, "y2": {"field": high}}
    names = {"label": "experiment", "run": "run", "setting": "setting", middle: unit.title, low: "low", high: "high"}
    titles = tooltip(**names, optimal="energy")
    point: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 3.5 * size.font}
    ring: Spec = {"type": "point", "filled": False, "shape": "circle", "size": 16 * size.font, "strokeWidth": 1.5}
    seen: Spec = {"strokeOpacity": {"field": "ring", "type": "quantitative", "scale": None, "legend": None}}
    known: Spec = {"filter": f"isValid(datum.{middle}) && datum.joined"}
    return [
        {"transform": [known], "mark": {"type": "line", "strokeWidth": 1.2}, "encoding": {**joined, "y": y}},
        {"mark": {"type": "rule", "opacity": 0.6}, "encoding": {**joined, **bar}},
        {"mark": ring, "encoding": {"x": x, "y": y, **colour, **seen}},
        {"mark": point, "encoding": {"x": x, "y": y, **marks.encoding, "tooltip": titles}},
    ]
