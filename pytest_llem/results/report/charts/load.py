"""The charts of a server's load: each latency that an SLO limits, with its limit as a line, and goodput per joule.

`charts` makes them for a study that varies a rate of arrivals or a number of requests in flight. A saturated level has
a mark at its load and no figure: what was measured there depends on how long it was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_llem.errors import JsonValue
from pytest_llem.results.report.charts.chart import (
    GREY,
    Chart,
    Rows,
    Size,
    Spec,
    interval,
    legend,
    tooltip,
)
from pytest_llem.results.report.charts.points import Experiments, Marks, identity
from pytest_llem.results.report.charts.scales import Unit, continuous, swept, unit_of, upright
from pytest_llem.results.report.content import ExperimentRow
from pytest_llem.results.served import STATES
from pytest_llem.study.model import SweptAxis

LOADS = {
    "workload.arrival.rate_per_s": ("config.workload.arrival.rate_per_s", "Requests that arrive per second"),
    "workload.arrival.concurrency": ("config.workload.arrival.concurrency", "Requests in flight"),
    "openai.concurrency": ("config.settings.concurrency", "Requests in flight"),
}
"""Settings that are a load: where a row has each, and the axis' title."""
GOODPUT = "good_requests_per_joule"
WITHOUT_LIMITS = ("ttft", "tpot")
"""Latencies that are shown where no SLO names any: those that a user of a stream feels."""
MOST_TICKS = 12
"""Loads that have a tick each. Chosen: more labels do not fit under a column."""
ASPECT = 0.55
"""Height over width, as of `by_value`."""
SHAPES: dict[str, str] = dict(zip(STATES, ("circle", "cross", "diamond", "triangle-down"), strict=True))
NO_SLO = "no SLO"
PHONE = 330
"""Pixels that a chart has on a narrow screen: a legend in more columns than fit there is cut off."""
TOP = 7
"""Pixels below the frame at which a saturated level has its mark."""


@dataclass(frozen=True)
class SweptLoad:
    """The load that a study varies: the setting's name, the axis' title, and its value by the key of an experiment."""

    name: str
    title: str
    values: dict[str, float]
    axes: tuple[str, ...]
    """The axes of the sweep that set it."""


def load_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """For each study that varies a load: a chart per limited latency, and that of good requests per joule."""
    for study in experiments.studies:
        load = load_of(experiments, study)
        if load is not None:
            rows = [row for row in experiments.rows if row.key in load.values]
            for latency in _latencies(rows):
                metric = _percentile(latency, rows)
                if metric is not None:
                    yield _chart(experiments, study, load, rows, metric, size, latency)
            if any(GOODPUT in row.metrics for row in rows):
                yield _chart(experiments, study, load, rows, GOODPUT, size)


def load_of(experiments: Experiments, study: str) -> SweptLoad | None:
    """The load that has the most values in a study; `None` where none has two."""
    rows = [row for row in experiments.rows if row.study == study]
    best: SweptLoad | None = None
    for name, (column, title) in LOADS.items():
        found = {row.key: row.settings.get(column) for row in rows}
        values = {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}
        if len(set(values.values())) > (1 if best is None else len(set(best.values.values()))):
            known = [row for row in rows if row.key in values]
            axes = [axis.name for axis in experiments.axes(study) if _sets(axis, name, known, values)]
            best = SweptLoad(name, title, values, tuple(axes))
    return best


def _sets(axis: SweptAxis, name: str, rows: Sequence[ExperimentRow], values: dict[str, float]) -> bool:
    """Whether an axis is that of the load: it has its name, or each of its values has a load of its own."""
    pairs = {(repr(row.point.get(axis.name)), values[row.key]) for row in rows}
    one_to_one = len(pairs) == len({place for place, _ in pairs}) == len({load for _, load in pairs})
    return axis.name == name or one_to_one


def _latencies(rows: Sequence[ExperimentRow]) -> list[str]:
    limited = dict.fromkeys(name.removesuffix("_s") for row in rows if row.slo for name in row.slo.limits)
    return [*limited] or [*WITHOUT_LIMITS]


def _percentile(latency: str, rows: Sequence[ExperimentRow]) -> str | None:
    """The metric of a latency's percentile that most rows have, of those the closest to the share that the SLO asks."""
    asked = max((row.slo.at for row in rows if row.slo and row.slo.at), default=0.99)
    pattern = re.compile(rf"{latency}_p([\d_.]+)_s")
    shares: dict[str, float] = {}
    for row in rows:
        for name in row.metrics:
            if found := pattern.fullmatch(name):
                shares[name] = float(found[1].replace("_", ".")) / 100
    counts = {name: sum(name in row.metrics for row in rows) for name in shares}
    return max(shares, key=lambda name: (counts[name], -abs(shares[name] - asked)), default=None)


def _chart(
    experiments: Experiments,
    study: str,
    load: SweptLoad,
    rows: Sequence[ExperimentRow],
    metric: str,
    size: Size,
    latency: str | None = None,
) -> Chart:
    measured = [row for row in rows if metric in row.metrics]
    saturated = [row for row in rows if row.slo and row.slo.state == "saturated"]
    shown = [*measured, *(row for row in saturated if row not in measured)]
    marks = experiments.marks([row.key for row in shown], apart=load.axes, shapes=False)
    limits = sorted({row.slo.limits[f"{latency}_s"] for row in rows if row.slo and f"{latency}_s" in row.slo.limits})
    unit = unit_of(metric, [*(row.metrics[metric].value for row in measured), *limits])
    drawn: Rows = []
    for row in shown:
        summary = row.metrics.get(metric) if row in measured else None
        low, high = map(unit.of, interval(summary))
        value = unit.of(summary.value) if summary else None
        point: Spec = {"x": load.values[row.key], "y": value, "low": low, "high": high}
        state = (row.slo and row.slo.state) or NO_SLO
        share = (row.slo and row.slo.share_text) or None
        line: Spec = {"line": _line(row, load), "label": experiments.labels[row.key]}
        drawn.append({**identity(row), **point, "state": state, "share": share, **line, **marks.fields(row.key)})
    states = [state for state in (*STATES, NO_SLO) if any(row["state"] == state for row in drawn)]
    height = round(size.width * ASPECT)
    title = f"{unit.name} by load"
    text = (
        f"{unit.name} by {load.title[0].lower()}{load.title[1:]}: the mean over each experiment's valid cycles with "
        f"its expanded uncertainty (95 %). {marks.words} {_in_words(rows, states, bool(limits))}"
        f"{experiments.without(metric, [study], besides=[row.key for row in saturated])}"
    )
    return Chart(
        f"load-{experiments.within(study, latency or 'goodput')}",
        experiments.within(study, title),
        re.sub(" +", " ", text).strip(),
        {
            "height": height,
            "layer": _layers(_along(experiments, study, load, shown), unit, drawn, limits, states, marks, size, height),
        },
        drawn,
        (metric,),
        (study,),
    )


def _line(row: ExperimentRow, load: SweptLoad) -> str:
    """What is the same along a line: the run, and the values on the axes that do not set the load."""
    others = sorted((name, str(value)) for name, value in row.point.items() if name not in load.axes)
    return f"{row.run} {others}"


def _in_words(rows: Sequence[ExperimentRow], states: Sequence[str], line: bool) -> str:
    """What the line and the shapes mean, as part of a caption."""
    asked = dict.fromkeys(row.slo.limits_text for row in rows if row.slo and row.slo.at is not None)
    said = [f"SLO: {'; or '.join(asked)}."] if asked else []
    said += ["Dashed: the limit."] if line else []
    if asked:
        said.append("Reached or not: by the 95 % interval of that share over all requests.")
    if "undecided" in states:
        said.append("Undecided: more requests are needed, or one of the cycles was saturated.")
    if "saturated" in states:
        said.append("Saturated (at the top): requests came faster than they were served, so that no figure holds.")
    return " ".join(said)


def _along(experiments: Experiments, study: str, load: SweptLoad, rows: Sequence[ExperimentRow]) -> Spec:
    """The load's position, with a tick at each level that was swept."""
    values = [load.values[row.key] for row in rows]
    swept_here = any(axis.name == load.name and axis.ordered for axis in experiments.axes(study))
    if swept_here and len(set(values)) <= MOST_TICKS:
        return swept("x", SweptAxis(load.name, load.title, (), ()), values)
    return continuous("x", load.title, values)


def _layers(
    x: Spec,
    unit: Unit,
    rows: Rows,
    limits: Sequence[float],
    states: Sequence[str],
    marks: Marks,
    size: Size,
    height: float,
) -> list[JsonValue]:
    reached = [value for row in rows for name in ("y", "high") if isinstance(value := row[name], float)]
    stated = [limit * unit.factor for limit in limits]
    y = continuous("y", upright(unit.title, height, size), [*reached, *stated])
    colour: Spec = {"color": marks.encoding["color"]} if "color" in marks.encoding else {}
    joined: Spec = {"x": x, "detail": {"field": "line"}, **colour}
    scale: Spec = {"domain": [*states], "range": [SHAPES.get(state, "circle") for state in states]}
    key: Spec = {
        "legend": legend("SLO", [*states], replace(size, width=min(size.width, PHONE))) if states != [NO_SLO] else None
    }
    shape: Spec = {"field": "state", "type": "nominal", "title": "SLO", "scale": scale, **key}
    titles = tooltip(label="experiment", run="run", x="load", y=unit.title, state="SLO", share="good requests")
    marked: Spec = {"shape": shape, **colour, "tooltip": titles}
    points: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 6 * size.font}
    known: Spec = {"filter": "isValid(datum.y)"}
    said: list[JsonValue] = [_limit(limit, unit) for limit in limits]
    at: Spec = {"data": {"values": said}}
    level: Spec = {**y, "field": "limit"}
    text: Spec = {"type": "text", "align": "left", "baseline": "bottom", "dx": 3, "dy": -1, "fontSize": size.font - 0.5}
    bar: Spec = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    top: Spec = {"y": {"value": TOP}}
    layers: list[JsonValue] = [
        {"transform": [known], "mark": {"type": "line", "strokeWidth": 1.2}, "encoding": {**joined, "y": y}},
        {"transform": [known], "mark": {"type": "rule", "opacity": 0.6}, "encoding": {**joined, **bar}},
        {"transform": [known], "mark": points, "encoding": {"x": x, "y": y, **marked}},
        {"transform": [{"filter": "!isValid(datum.y)"}], "mark": points, "encoding": {"x": x, **top, **marked}},
    ]
    if limits:
        dashed: Spec = {"type": "rule", "strokeDash": [5, 4], "color": GREY}
        layers.append({**at, "mark": dashed, "encoding": {"y": level}})
        layers.append({**at, "mark": text, "encoding": {"y": level, "x": {"value": 0}, "text": {"field": "said"}}})
    return layers


def _limit(limit: float, unit: Unit) -> Spec:
    value = limit * unit.factor
    return {"limit": value, "said": f"SLO: {value:.4g} {unit.symbol}"}
