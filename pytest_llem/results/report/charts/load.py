"""The charts of a server's load: each latency that an SLO limits, with its limit as a line, and goodput per joule.

`charts` makes them for a study that varies a rate of arrivals or a number of requests in flight, or searches one. A
saturated level has a mark at its load and no figure: what was measured there depends on how long it was measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import percentile_of
from pytest_llem.results.report.charts.chart import GREY, Chart, Rows, Size, Spec, interval, legend, tooltip
from pytest_llem.results.report.charts.points import Experiments, Marks, identity
from pytest_llem.results.report.charts.scales import Unit, continuous, swept, unit_of, upright
from pytest_llem.results.report.content import ExperimentRow
from pytest_llem.results.served import STATES
from pytest_llem.results.summary import MetricSummary
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
class Level:
    """A load as it was measured: an experiment, or a window of one that is a search; no figure where it is saturated.

    Of a window, `figures` alone are known, not how far they may be off.
    """

    row: ExperimentRow
    load: float
    state: str
    share: str | None
    figures: Mapping[str, float]
    summaries: Mapping[str, MetricSummary]


@dataclass(frozen=True)
class SweptLoad:
    """The load that a study varies: the setting's name, the axis' title, its levels, and the axes that set it."""

    name: str
    title: str
    levels: tuple[Level, ...]
    axes: tuple[str, ...]


def load_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """For each study that varies a load: a chart per limited latency, and that of good requests per joule."""
    for study in experiments.studies:
        load = load_of(experiments, study)
        if load is not None:
            for latency in _latencies(load.levels):
                metric = _percentile(latency, load.levels)
                if metric is not None:
                    yield _chart(experiments, study, load, metric, size, latency)
            if any(GOODPUT in level.figures for level in load.levels):
                yield _chart(experiments, study, load, GOODPUT, size)


def load_of(experiments: Experiments, study: str) -> SweptLoad | None:
    """The load that has the most values in a study; `None` where none has two."""
    rows = [row for row in experiments.rows if row.study == study]
    best: SweptLoad | None = None
    most = 1
    for name, (column, title) in LOADS.items():
        levels = tuple(level for row in rows for level in _levels(row, name, column))
        count = len({level.load for level in levels})
        if count > most:
            most = count
            axes = [axis.name for axis in experiments.axes(study) if _sets(axis, name, levels)]
            best = SweptLoad(name, title, levels, tuple(axes))
    return best


def _levels(row: ExperimentRow, name: str, column: str) -> Iterator[Level]:
    if row.search is not None:
        cycles = row.search.cycles.values() if row.search.setting == name else ()
        for window in (window for cycle in cycles for window in cycle.windows):
            if window.level is not None:
                figures = {} if window.level == "saturated" else window.metrics
                yield Level(row, window.came, window.level, window.decided, figures, {})
        return
    value = row.settings.get(column)
    if isinstance(value, (int, float)):
        state = (row.slo and row.slo.state) or NO_SLO
        figures = {metric: summary.value for metric, summary in row.metrics.items()}
        yield Level(row, float(value), state, (row.slo and row.slo.share_text) or None, figures, row.metrics)


def _sets(axis: SweptAxis, name: str, levels: Sequence[Level]) -> bool:
    """Whether an axis is that of the load: it has its name, or each of its values has a load of its own."""
    pairs = {(repr(level.row.point.get(axis.name)), level.load) for level in levels}
    one_to_one = len(pairs) == len({place for place, _ in pairs}) == len({load for _, load in pairs})
    return axis.name == name or one_to_one


def _latencies(levels: Sequence[Level]) -> list[str]:
    limited = dict.fromkeys(name.removesuffix("_s") for level in levels if (of := level.row.slo) for name in of.limits)
    return [*limited] or [*WITHOUT_LIMITS]


def _percentile(latency: str, levels: Sequence[Level]) -> str | None:
    """The metric of a latency's percentile that most levels have, of those the closest to the share that is asked."""
    asked = _asked(levels) or 0.99
    names = dict.fromkeys(name for level in levels for name in level.figures)
    found = {name: percentile_of(name) for name in names}
    shares = {name: of[1] / 100 for name, of in found.items() if of is not None and of[0] == latency}
    counts = {name: sum(name in level.figures for level in levels) for name in shares}
    return max(shares, key=lambda name: (counts[name], -abs(shares[name] - asked)), default=None)


def _asked(levels: Sequence[Level]) -> float | None:
    """The largest share of requests that an SLO of the levels asks to be good."""
    return max((of.at for level in levels if (of := level.row.slo) and of.at), default=None)


def _chart(
    experiments: Experiments, study: str, load: SweptLoad, metric: str, size: Size, latency: str | None = None
) -> Chart:
    shown = [level for level in load.levels if metric in level.figures or level.state == "saturated"]
    marks = experiments.marks([level.row.key for level in shown], apart=load.axes, shapes=False)
    named = f"{latency}_s"
    limits = sorted({of.limits[named] for level in load.levels if (of := level.row.slo) and named in of.limits})
    unit = unit_of(metric, [*(level.figures.get(metric) for level in shown), *limits])
    drawn: Rows = []
    for level in shown:
        row = level.row
        low, high = map(unit.of, interval(level.summaries.get(metric)))
        point: Spec = {"x": level.load, "y": unit.of(level.figures.get(metric)), "low": low, "high": high}
        said: Spec = {"state": level.state, "share": level.share, "label": experiments.labels[row.key]}
        drawn.append({**identity(row), **point, **said, "line": _line(row, load), **marks.fields(row.key)})
    states = [state for state in (*STATES, NO_SLO) if any(row["state"] == state for row in drawn)]
    height = round(size.width * ASPECT)
    name = f"{unit.name} by {load.title[0].lower()}{load.title[1:]}"
    windows = any(level.row.search for level in shown)
    of_what = "of each window of a search" if windows else "the mean over each experiment's valid cycles with its "
    of_what += "" if windows else "expanded uncertainty (95 %)"
    text = (
        f"{name}: {of_what}. {marks.words} {_in_words(load.levels, states, metric, latency)}"
        f"{experiments.without(metric, [study], besides=[level.row.key for level in shown])}"
    )
    x = _along(experiments, study, load, shown)
    return Chart(
        f"load-{experiments.within(study, latency or 'goodput')}",
        experiments.within(study, f"{unit.name} by load"),
        re.sub(" +", " ", text).strip(),
        {"height": height, "layer": _layers(x, unit, drawn, limits, states, marks, size, height)},
        drawn,
        (metric,),
        (study,),
    )


def _line(row: ExperimentRow, load: SweptLoad) -> str:
    """What is the same along a line: the run, and the values on the axes that do not set the load."""
    others = sorted((name, str(value)) for name, value in row.point.items() if name not in load.axes)
    return f"{row.run} {others}"


def _in_words(levels: Sequence[Level], states: Sequence[str], metric: str, latency: str | None) -> str:
    """What the line and the shapes mean, as part of a caption."""
    asked = dict.fromkeys(of.limits_text for level in levels if (of := level.row.slo) and of.at is not None)
    said = [f"SLO: {'; or '.join(asked)}."] if asked else []
    said += ["Dashed: the limit."] if asked and latency else []
    share = _asked(levels)
    shown = percentile_of(metric)
    if share is not None and shown is not None and not math.isclose(shown[1], share * 100):
        said.append(
            f"The SLO asks for the percentile {share * 100:g}, which `percentiles` of the study adds where there are "
            "requests enough."
        )
    if asked:
        said.append("Reached or not: by the 95 % interval of that share over all requests.")
    if "undecided" in states:
        said.append("Undecided: more requests are needed, or one of the cycles was saturated.")
    if "saturated" in states:
        said.append("Saturated (at the top): requests came faster than they were served, so that no figure holds.")
    return " ".join(said)


def _along(experiments: Experiments, study: str, load: SweptLoad, levels: Sequence[Level]) -> Spec:
    """The load's position, with a tick at each level that was swept."""
    values = [level.load for level in levels]
    is_swept = any(axis.name == load.name and axis.ordered for axis in experiments.axes(study))
    is_swept = is_swept and not any(level.row.search for level in levels)
    if is_swept and len(set(values)) <= MOST_TICKS:
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
    y = continuous("y", upright(unit.title, height, size), [*reached, *(limit * unit.factor for limit in limits)])
    colour: Spec = {"color": marks.encoding["color"]} if "color" in marks.encoding else {}
    joined: Spec = {"x": x, "detail": {"field": "line"}, **colour}
    titles = tooltip(label="experiment", run="run", x="load", y=unit.title, state="SLO", share="good requests")
    marked: Spec = {"shape": state_shape(states, size), **colour, "tooltip": titles}
    points: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 5 * size.font}
    known: Spec = {"filter": "isValid(datum.y)"}
    bar: Spec = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    top: Spec = {"y": {"value": TOP}}
    layers: list[JsonValue] = [
        {"transform": [known], "mark": {"type": "line", "strokeWidth": 1.2}, "encoding": {**joined, "y": y}},
        {"transform": [known], "mark": {"type": "rule", "opacity": 0.6}, "encoding": {**joined, **bar}},
        {"transform": [known], "mark": points, "encoding": {"x": x, "y": y, **marked}},
        {"transform": [{"filter": "!isValid(datum.y)"}], "mark": points, "encoding": {"x": x, **top, **marked}},
    ]
    if limits:
        said: list[JsonValue] = [_limit(limit, unit) for limit in limits]
        topmost = limits[-1] * unit.factor >= max(reached, default=0.0)
        layers += labelled_rules({"values": said}, {**y, "field": "limit"}, size, topmost=topmost)
    return layers


def state_shape(states: Sequence[str], size: Size) -> Spec:
    """The shape of a level by what became of it, with its words in a legend."""
    scale: Spec = {"domain": [*states], "range": [SHAPES.get(state, "circle") for state in states]}
    room = replace(size, width=min(size.width, PHONE))
    key: JsonValue = None if [*states] == [NO_SLO] else legend("SLO", [*states], room)
    return {"field": "state", "type": "nominal", "title": "SLO", "scale": scale, "legend": key}


def labelled_rules(data: Spec, at: Spec, size: Size, *, topmost: bool) -> list[JsonValue]:
    """Dashed lines across a chart, each with its `said` above its left end; below it where a line may be the frame."""
    place: Spec = {"baseline": "top", "dy": 3} if topmost else {"baseline": "bottom", "dy": -1}
    text: Spec = {"type": "text", "align": "left", "dx": 3, "fontSize": size.font - 0.5, **place}
    dashed: Spec = {"type": "rule", "strokeDash": [5, 4], "color": GREY}
    return [
        {"data": data, "mark": dashed, "encoding": {"y": at}},
        {"data": data, "mark": text, "encoding": {"y": at, "x": {"value": 0}, "text": {"field": "said"}}},
    ]


def _limit(limit: float, unit: Unit) -> Spec:
    value = limit * unit.factor
    return {"limit": value, "said": f"SLO: {value:.4g} {unit.symbol}"}
