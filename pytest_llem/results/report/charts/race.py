"""The chart of a race for the best setting: how each compares with its best rivals round by round, and how it left.

`charts` makes one for each race; `report.races` has them all in words. What may still be the best stands first, then
what left last: the first rows of two hundred say what matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pytest_llem.errors import JsonValue
from pytest_llem.results.racing.answer import Bounds
from pytest_llem.results.report.charts.bands import MAX_BANDS
from pytest_llem.results.report.charts.chart import (
    GREY,
    LINE,
    PALETTE,
    Chart,
    Rows,
    Size,
    Spec,
    legend,
    name_of_experiment,
    names_axis,
    quoted,
    tooltip,
)
from pytest_llem.results.report.charts.load import PHONE
from pytest_llem.results.report.charts.points import Experiments, identity
from pytest_llem.results.report.charts.scales import beside_names, metric_words, quantity, unit_of, widened
from pytest_llem.results.report.shown_race import ShownRace

RACE = "race"
"""How the ids of these charts begin."""
MARKS = {
    "recommended": (PALETTE[2], "diamond"),
    "may be the best": (PALETTE[0], "circle"),
    "dropped": (GREY, "cross"),
    "infeasible": (PALETTE[1], "triangle-up"),
    "failed": (PALETTE[3], "square"),
    "not needed": (PALETTE[5], "triangle-down"),
}
"""Colour and shape of what a setting has come to."""
FAR = 1.5
"""Ratio beyond which a setting stands at the edge. Chosen: one percent between the best two can then still be seen."""
SEVERAL = 10.0
"""Ratio from which on decimals say nothing."""
LEAST_SPAN = 1.01
"""Chosen: what differs by less is as good as equal, and a scale of its own would make a cliff of it."""
ROUND = 1.5
"""Pixels from one round's line to the next."""
ASIDE = 400
"""Pixels of width from which what became of each setting stands beside it."""


def race_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """A chart for each race of which something was measured."""
    for race in experiments.content.races:
        of_race = (race.run, race.record.study)
        keys = {row.experiment: row.key for row in experiments.rows if (row.run, row.study) == of_race}
        ordered = {name: keys[name] for name in race.fates if name in keys}
        if ordered:
            yield _chart(experiments, race, ordered, size)


def chart_of(race: ShownRace) -> str:
    """The id of a race's chart."""
    return f"{RACE}-{race.record.study}-{race.run}"


def _chart(experiments: Experiments, race: ShownRace, keys: dict[str, str], size: Size) -> Chart:
    fates = {name: race.fates[name] for name in keys}
    ends = _ends([fate.ratios[-1] for fate in [*fates.values()][:MAX_BANDS] if fate.ratios])
    rows: Rows = []
    for name, fate in fates.items():
        of_setting: Spec = {**identity(experiments.by_key[keys[name]]), "label": experiments.labels[keys[name]]}
        of_setting |= {"state": race.state(name), "why": fate.reason, "cycles": fate.cycles}
        for bounds in fate.ratios:
            of_round: Spec = {"round": bounds.round, "last": bounds is fate.ratios[-1], "said": ratio_text(bounds)}
            rows.append({**of_setting, **of_round, **_drawn(bounds, ends)})
        if not fate.ratios:
            rows.append({**of_setting, "round": fate.cycles, "last": True, "said": "not compared"})
    record = race.record
    least, better, worse = ("least", "left", "right") if race.lower_is_better else ("highest", "right", "left")
    words = metric_words(record.metric)
    text = (
        f"{words[0].upper()}{words[1:]} of each setting over that of its best rivals: {worse} of 1 it is worse, "
        f"{better} of 1 better. One line per round, from the top, with bounds that hold in all rounds together "
        f"({100 * record.confidence:g} %); the mark is the last round that it took part in. What reaches an edge "
        "goes on."
    )
    several = len(experiments.content.races) > 1
    name = f": {experiments.within(record.study, race.run)}" if several else ""
    step = max((experiments.label_lines * LINE + 0.6) * size.font, ROUND * (record.rounds + 1))
    return Chart(
        chart_of(race),
        f"The race for the {least} {words}{name}",
        text,
        {
            "height": {"step": step, "for": "position"},
            "layer": _layers(experiments, race, rows, ends, size),
            "resolve": {"axis": {"y": "independent"}},
        },
        rows,
        (record.metric,),
        (record.study,),
        wide=True,
    )


def _layers(
    experiments: Experiments, race: ShownRace, rows: Rows, ends: tuple[float, float], size: Size
) -> list[JsonValue]:
    named = name_of_experiment(size, experiments.longest_line)
    y: Spec = {**named, "sort": list(dict.fromkeys(row["label"] for row in rows)), "axis": None}
    rounds: Spec = {"domain": [0, max(2, race.record.rounds) + 1]}
    offset: Spec = {"yOffset": {"field": "round", "type": "quantitative", "scale": rounds}}
    low, high = widened(*ends, log=False)
    scale: Spec = {"domain": [low, high], "nice": False, "clamp": True}
    title = [f"{unit_of(race.record.metric, ()).name},", "ratio to that of the best rivals"]
    x = beside_names(quantity("x", [*title], scale, {"labelOverlap": "greedy", "labelSeparation": 4}))
    shown = [state for state in MARKS if any(row["state"] == state for row in rows)]
    key = legend("", shown, replace(size, width=min(PHONE, size.width)))
    by_state: Spec = {"field": "state", "type": "nominal", "title": None, "legend": key}
    colour: Spec = {**by_state, "scale": {"domain": [*shown], "range": [MARKS[state][0] for state in shown]}}
    shape: Spec = {**by_state, "scale": {"domain": [*shown], "range": [MARKS[state][1] for state in shown]}}
    span: Spec = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour}
    titles = tooltip(label="setting", state="state", why="why", cycles="cycles", round="round", said="ratio")
    last: list[JsonValue] = [{"filter": "datum.last"}]
    dashed: Spec = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1, "color": GREY}
    line: Spec = {"type": "rule", "strokeWidth": 1, "opacity": 0.45}
    bar: Spec = {"type": "rule", "strokeWidth": 2.2}
    point: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 4.5 * size.font}
    one: Spec = {name: value for name, value in x.items() if name != "field"} | {"datum": 1}
    unseen: Spec = {"type": "point", "opacity": 0}
    layers: list[JsonValue] = [
        {"mark": unseen, "encoding": {"y": {**y, "axis": named["axis"]}}},
        {"data": {"values": [{}]}, "mark": dashed, "encoding": {"x": one}},
        {"mark": line, "encoding": {"y": y, **offset, **span}},
        {"transform": last, "mark": bar, "encoding": {"y": y, **offset, **span}},
        {
            "transform": last,
            "mark": point,
            "encoding": {"y": y, **offset, "x": x, "color": colour, "shape": shape, "tooltip": titles},
        },
    ]
    if size.width >= ASIDE:
        beside = {str(row["label"]): race.aside(str(row["experiment"])) for row in rows}
        table = ", ".join(f"{quoted(label)}: {quoted(said)}" for label, said in beside.items())
        right: Spec = {
            **names_axis(size, max(map(len, beside.values())), f"{{{table}}}[datum.label]"),
            "orient": "right",
        }
        layers.append({"name": "aside", "mark": unseen, "encoding": {"y": {**y, "axis": right}}})
    return layers


def _ends(lasts: Sequence[Bounds]) -> tuple[float, float]:
    """What is in view of these: all that is not far off, with as much of the bounds as leaves room for differences."""
    near = [1.0, *(each.value for each in lasts if 1 / FAR <= each.value <= FAR)]
    room = max(LEAST_SPAN, math.sqrt(max(near) / min(near)))
    floor, ceiling = min(near) / room, max(near) * room
    ends = [end for each in lasts for end in (each.low, each.value, each.high) if end is not None]
    shown = [1.0, *(min(max(end, floor), ceiling) for end in ends)]
    return min(shown), max(shown)


def _drawn(bounds: Bounds, ends: tuple[float, float]) -> Spec:
    """Bounds as far as they are in view; an open one goes on to the edge."""
    floor, ceiling = ends
    low = floor if bounds.low is None else min(max(bounds.low, floor), ceiling)
    high = ceiling if bounds.high is None else max(min(bounds.high, ceiling), floor)
    return {"x": min(max(bounds.value, floor), ceiling), "low": low, "high": high}


def ratio_text(bounds: Bounds) -> str:
    """`1.042 (1.013 .. 1.071)`; an open side is `?`."""
    value, low, high = (
        "?" if end is None else f"{end:.3f}" if end < SEVERAL else f"{end:.3g}"
        for end in (bounds.value, bounds.low, bounds.high)
    )
    return f"{value} ({low} .. {high})"
