"""The chart of a study's headline along its most varied axis of numbers, with a line for each point on the other axes.

`charts` makes it. It shows the values that the ratios of `effect` are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_llem.errors import JsonValue
from pytest_llem.results.device_axes import setting_of
from pytest_llem.results.report.charts.chart import Chart, Rows, Size, Spec, interval, tooltip
from pytest_llem.results.report.charts.load import GOODPUT, load_of
from pytest_llem.results.report.charts.points import Experiments, identity
from pytest_llem.results.report.charts.scales import continuous, swept, unit_of, upright
from pytest_llem.results.report.content import ExperimentRow
from pytest_llem.study.model import SweptAxis

ASPECT = 0.55
"""Height over width. Chosen: about the golden section."""


def value_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """One for each study that varies a number, where `load` and `device` have not the same with more."""
    for study in experiments.studies:
        metric = experiments.headline([study])
        rows = [row for row in experiments.rows if row.study == study and metric in row.metrics]
        numeric = [axis for axis in experiments.axes(study) if axis.ordered and setting_of(axis) is None]
        counted = [(len({row.point.get(axis.name) for row in rows} - {None}), axis) for axis in numeric]
        count, axis = max(counted, key=lambda entry: entry[0], default=(0, None))
        load = load_of(experiments, study) if metric == GOODPUT else None
        if axis is not None and count > 1 and not (load and axis.name in load.axes):
            shown = [row for row in rows if row.point.get(axis.name) is not None]
            if max(Counter(_line(row, axis) for row in shown).values()) > 1:
                yield _chart(experiments, study, shown, axis, metric, size)


def _line(row: ExperimentRow, axis: SweptAxis) -> str:
    """What is the same along the line of an experiment: its run, and its values on the other axes."""
    return f"{row.run} {sorted((name, str(value)) for name, value in row.point.items() if name != axis.name)}"


def _chart(
    experiments: Experiments, study: str, shown: Sequence[ExperimentRow], axis: SweptAxis, metric: str, size: Size
) -> Chart:
    marks = experiments.marks([row.key for row in shown], apart=[axis.name])
    unit = unit_of(metric, [row.metrics[metric].value for row in shown])
    rows: Rows = []
    for row in shown:
        low, high = map(unit.of, interval(row.metrics[metric]))
        point: Spec = {
            "x": row.point[axis.name],
            "y": row.metrics[metric].value * unit.factor,
            "low": low,
            "high": high,
        }
        line: Spec = {"line": _line(row, axis), "label": experiments.labels[row.key]}
        rows.append({**identity(row), **point, **line, **marks.fields(row.key)})
    x = swept("x", axis, [row.point[axis.name] for row in shown])
    height = round(size.width * ASPECT)
    reached = [value for row in rows for name in ("y", "high") if isinstance(value := row[name], float)]
    y = continuous("y", upright(unit.title, height, size), reached)
    joined: Spec = {"x": x, "detail": {"field": "line"}}
    if "color" in marks.encoding:
        joined["color"] = marks.encoding["color"]
    titles = tooltip(label="experiment", run="run", y=unit.title, low="low", high="high")
    bar: Spec = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    points: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 3.5 * size.font}
    layers: list[JsonValue] = [
        {"mark": {"type": "line", "strokeWidth": 1.2}, "encoding": {**joined, "y": y}},
        {"mark": {"type": "rule", "opacity": 0.6}, "encoding": {**joined, **bar}},
        {"mark": points, "encoding": {"x": x, "y": y, **marks.encoding, "tooltip": titles}},
    ]
    text = (
        f"{unit.name} by {axis.title}: the mean over each experiment's valid cycles with its expanded uncertainty "
        "(95 %), what all share included: bars may overlap where the effect is told apart. "
        f"{marks.words}{experiments.without(metric, [study])}"
    )
    return Chart(
        f"by-{experiments.within(study, axis.name)}",
        f"{unit.name} by {experiments.within(study, axis.title)}",
        text.strip(),
        {"height": height, "layer": layers},
        rows,
        (metric,),
        (study,),
    )
