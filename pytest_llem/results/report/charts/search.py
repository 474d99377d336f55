"""The chart of a search for the largest load under an SLO: the load of each window, what became of it, and the answer.

`charts` makes one for each of the first searches; `report.verdicts` has them all, in words.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llem.errors import JsonValue
from pytest_llem.results.report.charts.chart import GREY, Chart, Rows, Size, Spec, tooltip
from pytest_llem.results.report.charts.load import ASPECT, labelled_rules, state_shape
from pytest_llem.results.report.charts.points import Experiments, identity
from pytest_llem.results.report.charts.scales import continuous, quantity, upright
from pytest_llem.results.report.content import ExperimentRow
from pytest_llem.results.search_record import SearchRecord
from pytest_llem.results.served import STATES

MOST = 6
"""Searches with a chart. Chosen: more fill the page, and their windows stand in its table as well."""


def search_charts(experiments: Experiments, size: Size) -> Iterator[Chart]:
    """A chart for each of the first searches whose windows tell something."""
    found = [(row, row.search) for row in experiments.rows if row.search is not None]
    for row, search in found[:MOST]:
        yield _chart(experiments, row, search, size)


def _chart(experiments: Experiments, row: ExperimentRow, search: SearchRecord, size: Size) -> Chart:
    rows: Rows = []
    for number, cycle in search.cycles.items():
        for window in cycle.windows:
            if window.level is not None:
                said: Spec = {"state": window.level, "decided": window.decided, "cycle": number}
                rows.append({**identity(row), "x": window.step, "y": window.came, **said})
    states = [state for state in STATES if any(each["state"] == state for each in rows)]
    title = f"{search.unit[0].upper()}{search.unit[1:]}"
    height = round(size.width * ASPECT)
    answer = search.answer
    ends = [end for end in (answer.load, answer.low, answer.high) if end is not None]
    loads = [*(float(str(each["y"])) for each in rows), *ends]
    y = continuous("y", upright(title, height, size), loads)
    most = max((int(str(each["x"])) for each in rows), default=1)
    steps: list[JsonValue] = [*range(1, most + 1)]
    x = quantity("x", "Window", {"domain": [0.5, most + 0.5], "nice": False}, {"values": steps, "format": "d"})
    titles = tooltip(x="window", y=search.unit, state="SLO", decided="because")
    points: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 5 * size.font}
    layers: list[JsonValue] = []
    if answer.load is not None:
        said_of_it = f"answer: {answer.load:.4g}" if answer.high is not None else f"at least {answer.load:.4g}"
        at: Spec = {"values": [{"answer": answer.load, "low": answer.low, "high": answer.high, "said": said_of_it}]}
        band: Spec = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        layers.append({"data": at, "mark": {"type": "rect", "opacity": 0.18, "color": GREY}, "encoding": band})
        layers += labelled_rules(at, {**y, "field": "answer"}, size, topmost=answer.load >= max(loads))
    path: Spec = {"type": "line", "strokeWidth": 1, "opacity": 0.6}
    layers += [
        {"mark": path, "encoding": {"x": x, "y": y, "detail": {"field": "cycle"}}},
        {"mark": points, "encoding": {"x": x, "y": y, "shape": state_shape(states, size), "tooltip": titles}},
    ]
    several = sum(each.search is not None for each in experiments.rows) > 1
    name = f": {search.name}" if several else ""
    interval = "" if answer.low is None or answer.high is None else " Shaded: its 95 % interval."
    asked = f"SLO: {row.slo.limits_text}. " if row.slo and row.slo.limits_text else ""
    text = (
        f"The load of each window of the search{name}. {asked}"
        f"{'' if answer.load is None else f'Dashed: the largest load under the SLO.{interval} '}{search.line}."
    )
    return Chart(
        f"search-{experiments.within(row.study, row.experiment)}",
        f"Search for the largest load under the SLO{name}",
        text,
        {"height": height, "layer": layers},
        rows,
        ("max_rate_under_slo",),
        (row.study,),
    )
