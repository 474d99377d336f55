"""The charts with a row per experiment: its cycles, where its energy goes, and its latencies.

`charts` makes them. The page and the figures show the first `MAX_BANDS` experiments that are left by a filter.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import percentile_name, percentile_of
from pytest_llem.job.percentiles import written
from pytest_llem.results.metrics import metric as metric_of
from pytest_llem.results.report.charts.chart import (
    GREY,
    LINE,
    PALETTE,
    Chart,
    Rows,
    Size,
    Spec,
    interval,
    legend,
    name_of_experiment,
    tooltip,
)
from pytest_llem.results.report.charts.points import Experiments, identity
from pytest_llem.results.report.charts.scales import beside_names, continuous, logarithmic, quantity, unit_of
from pytest_llem.results.schema import Result

MAX_BANDS = 40
"""Chosen: as many labelled rows as a page holds; `assets/report.js` has the same."""
PARTS = {"idle": "#BBBBBB", "above idle": PALETTE[0], "prefill": PALETTE[4], "decode": PALETTE[2]}
KINDS = ("valid", "invalid, not in the mean")
LATENCIES = {"ttft": PALETTE[0], "tpot": PALETTE[1], "e2el": PALETTE[2]}
PERCENTILES = {50.0: "circle", 90.0: "square", 99.0: "triangle-right"}
CHOSEN = ("diamond", "triangle-up", "cross", "triangle-down", "triangle-left")
"""Shapes of the percentiles that a study chose beside those."""


def cycles(experiments: Experiments, size: Size) -> Chart:
    """Every cycle's headline, with the interval of its experiment's mean."""
    name = experiments.headline()
    measure = metric_of(name)
    results = experiments.content.results
    unit = unit_of(name, [measure.of(result) for result in results])
    of_key: dict[str, list[Result]] = {row.key: [] for row in experiments.rows}
    for result in results:
        of_key[f"{result.run_id}/{result.study}/{result.experiment.id}"].append(result)
    rows: Rows = []
    for result in (result for of in of_key.values() for result in of):
        value = unit.of(measure.of(result))
        if value is not None:
            row = experiments.by_key[f"{result.run_id}/{result.study}/{result.experiment.id}"]
            estimate = row.metrics.get(name)
            low, high = map(unit.of, interval(estimate))
            validity = KINDS[0 if result.validity.valid else 1]
            cycle: Spec = {"cycle": result.cycle, "x": value, "validity": validity, "low": low, "high": high}
            mean: Spec = {"y": unit.of(estimate.value) if estimate else None}
            rows.append({**identity(row), "label": experiments.labels[row.key], **cycle, **mean})
    y = name_of_experiment(size, experiments.longest_line)
    reached = [end for row in rows for name in ("x", "high") if isinstance(end := row[name], float)]
    x = beside_names(continuous("x", unit.title, reached))
    kinds = [kind for kind in KINDS if any(row["validity"] == kind for row in rows)]
    key: Spec = {"legend": {"labelLimit": 0, "symbolOpacity": 1} if len(kinds) > 1 else None}
    by_kind: Spec = {"field": "validity", "type": "nominal", "title": "Cycle", **key}
    colour: Spec = {**by_kind, "scale": {"domain": [*KINDS], "range": [PALETTE[0], PALETTE[1]]}}
    shape: Spec = {**by_kind, "scale": {"domain": [*KINDS], "range": ["circle", "cross"]}}
    titles = tooltip(label="experiment", run="run", cycle="cycle", x=unit.title, validity="validity")
    layers: list[JsonValue] = [
        {
            "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.3, "color": GREY},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "tick", "thickness": 1.5, "size": 1.1 * size.font, "color": GREY},
            "encoding": {"y": y, "x": {**x, "field": "y"}},
        },
        {
            "mark": {"type": "point", "filled": False, "size": 2.5 * size.font, "opacity": 1, "strokeWidth": 1.2},
            "encoding": {"y": y, "x": x, "color": colour, "shape": shape, "tooltip": titles},
        },
    ]
    text = (
        f"{unit.name} of each cycle (points), the mean over valid cycles (tick) and its expanded uncertainty "
        f"at 95 % (bar).{experiments.without(name)}"
    )
    spec: Spec = {"height": {"step": _step(experiments, size)}, "layer": layers}
    return _chart(experiments, "cycles", "Cycles, and the interval of their mean", text, spec, rows, name)


def split(experiments: Experiments, size: Size) -> Chart:
    """Where the energy of a token goes: idle and above idle, prefill and decode."""
    energies = [each for row in experiments.rows for each in (row.idle_j, row.net_j, *row.phases.values())]
    unit = unit_of("joules_per_output_token", energies)
    rows: Rows = []
    for row in experiments.rows:
        halves: Mapping[str, Mapping[str, float | None]] = {
            "idle / above idle": {"idle": row.idle_j, "above idle": row.net_j},
            "prefill / decode": row.phases,
        }
        for half, parts in halves.items():
            for place, (part, value) in enumerate(parts.items()):
                if value is not None:
                    shown: Spec = {"part": part, "half": half, "x": unit.of(value), "place": place}
                    rows.append({**identity(row), "label": experiments.labels[row.key], **shown})
    parts_shown = {part: colour for part, colour in PARTS.items() if any(row["part"] == part for row in rows)}
    colour = _key("part", parts_shown, size)
    halves_shown = len({row["half"] for row in rows})
    offset: Spec = {"yOffset": {"field": "half"}} if halves_shown > 1 else {}
    title = unit.title
    step = _step(experiments, size) * (1.5 if halves_shown > 1 else 1)
    spec: Spec = {
        "height": {"step": step, "for": "position"},
        "mark": {"type": "bar"},
        "encoding": {
            "y": name_of_experiment(size, experiments.longest_line),
            **offset,
            "x": {**beside_names(quantity("x", title, {"zero": True})), "stack": "zero"},
            "order": {"field": "place"},
            "color": colour,
            "tooltip": tooltip(label="experiment", run="run", part="part", x=title),
        },
    }
    text = f"{unit.name}, by what the device draws idle (model loaded, over the measured time) and above that"
    text += ", and by phase. Means over valid cycles." if halves_shown > 1 else ". Means over valid cycles."
    return _chart(experiments, "split", "Where the energy goes", text, spec, rows, "joules_per_output_token")


def latency(experiments: Experiments, size: Size) -> Chart:
    """Percentiles of ttft, tpot and e2el per experiment: the mean over its cycles."""
    rows: Rows = []
    stated = {each[1] for row in experiments.rows for name in row.metrics if (each := percentile_of(name))}
    shape_of = PERCENTILES | dict(zip(sorted(stated - PERCENTILES.keys()), itertools.cycle(CHOSEN), strict=False))
    for row in experiments.rows:
        for short in LATENCIES:
            summaries = {f"p{written(p)}": row.metrics.get(percentile_name(short, p)) for p in sorted(shape_of)}
            count = max((summary.n for summary in summaries.values() if summary), default=0)
            # A percentile that some cycles had too few requests for is a mean over others than the median is.
            found = {each: of.value * 1e3 for each, of in summaries.items() if of and of.n == count}
            ends: Spec = {"low": min(found.values()), "high": max(found.values())} if found else {}
            for statistic, value in found.items():
                shown: Spec = {"metric": short, "statistic": statistic, "x": value, **ends}
                rows.append({**identity(row), "label": experiments.labels[row.key], **shown})
    metrics = {short: colour for short, colour in LATENCIES.items() if any(row["metric"] == short for row in rows)}
    named = {f"p{written(percentile)}": shape_of[percentile] for percentile in sorted(shape_of)}
    shapes = {each: shape for each, shape in named.items() if any(row["statistic"] == each for row in rows)}
    y = name_of_experiment(size, experiments.longest_line)
    offset: Spec = {"yOffset": {"field": "metric", "sort": [*metrics]}}
    x = beside_names(logarithmic("x", "Milliseconds", [row["x"] for row in rows if isinstance(row["x"], float)]))
    colour = _key("metric", metrics, size)
    shape = _key("statistic", shapes, size)
    titles = tooltip(label="experiment", run="run", metric="latency", statistic="percentile", x="ms")
    layers: list[JsonValue] = [
        {
            "mark": {"type": "rule", "opacity": 0.5},
            "encoding": {"y": y, **offset, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 3 * size.font, "opacity": 1},
            "encoding": {"y": y, **offset, "x": x, "color": colour, "shape": shape, "tooltip": titles},
        },
    ]
    text = (
        "Percentiles over requests, each the mean over valid cycles. ttft: time to first token; "
        "tpot: per output token after the first; e2el: whole request. Percentiles of too few requests are left out."
    )
    spec: Spec = {
        "height": {"step": max(_step(experiments, size), 2.6 * size.font), "for": "position"},
        "layer": layers,
    }
    return _chart(experiments, "latency", "Latency", text, spec, rows, "ttft_p50_s")


def _chart(experiments: Experiments, id: str, title: str, text: str, spec: Spec, rows: Rows, metric: str) -> Chart:
    wide = experiments.label_lines > 1
    return Chart(id, title, text, spec, rows, (metric,), experiments.studies, wide=wide)


def _key(field: str, marks: Mapping[str, str], size: Size) -> Spec:
    """A channel by a field with few values, each with its colour or shape."""
    scale: Spec = {"domain": [*marks], "range": [*marks.values()]}
    key = legend("", [*marks], size)
    return {"field": field, "type": "nominal", "title": None, "scale": scale, "legend": key}


def _step(experiments: Experiments, size: Size) -> float:
    """The height of a row in pixels: that of its label."""
    return (experiments.label_lines * LINE + 0.6) * size.font
