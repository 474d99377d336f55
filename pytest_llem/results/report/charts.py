"""Vega-Lite specifications of the report's charts, which `page` shows, and the charts as figures for a paper.

`page` shows them; `llem report --figures` writes them, with the extra `report`. A chart's data set must be called
`table`, and its rows have a `key` where they belong to an experiment: `assets/report.js` filters by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.files import slug
from pytest_llem.results.report.content import Content, ExperimentRow, gather_content
from pytest_llem.results.summary import MetricSummary
from pytest_llem.results.terminal import ShowProgress, silent

Spec = dict[str, JsonValue]
Rows = list[Mapping[str, JsonValue]]
PALETTE: list[JsonValue] = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]
"""Okabe and Ito's colours, which people with colour-vision deficiency can tell apart."""
MAX_AXES = 8
"""Swept settings with a chart of their own. Chosen: few sweeps have more, and each chart adds a row per experiment."""
FIGURE_WIDTH = 640
"""Pixels. Chosen: the text width of a page in print, at 96 pixels an inch."""
EXPERIMENTS_PER_FIGURE = 40
"""Chosen: as many labelled lines as a page holds."""
LABEL: Spec = {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}


@dataclass(frozen=True)
class Chart:
    """A chart with its title, what it shows in words, its specification (without data) and its rows."""

    id: str
    title: str
    description: str
    spec: Spec
    rows: Rows


def charts(content: Content) -> list[Chart]:
    """The charts for which there is data."""
    made = [pareto(content.experiments), *axes(content), cycles(content), split(content.experiments), latency(content)]
    return [chart for chart in made if chart.rows]


def pareto(experiments: Sequence[ExperimentRow]) -> Chart:
    """Energy per token against throughput, with the Pareto front."""
    measured: list[tuple[MetricSummary, MetricSummary, ExperimentRow]] = []
    for row in experiments:
        energy, speed = row.metrics.get("joules_per_output_token"), row.metrics.get("output_tokens_per_s")
        if energy and speed:
            measured.append((energy, speed, row))
    front: set[str] = set()
    best = float("inf")
    for joules, _, row in sorted(measured, key=lambda entry: (-entry[1].value, entry[0].value)):
        if joules.value < best:
            best = joules.value
            front.add(row.key)
    rows: Rows = []
    for joules, per_s, row in measured:
        (low, high), (slow, fast) = _interval(joules), _interval(per_s)
        point: Spec = {"joules": joules.value, "speed": per_s.value, "front": row.key in front}
        rows.append({**identity(row), **point, "low": low, "high": high, "slow": slow, "fast": fast})
    x = _quantity("speed", "Output tokens per second", zero=False)
    y = _quantity("joules", "Joules per output token", zero=False)
    position: Spec = {"x": x, "y": y}
    bar: Spec = {"mark": {"type": "rule", "opacity": 0.6}}
    colour = _coloured("engine", "Engine")
    upright: Spec = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    level: Spec = {"y": y, "x": {**x, "field": "slow"}, "x2": {"field": "fast"}, "color": colour}
    bars: list[JsonValue] = [{**bar, "encoding": upright}, {**bar, "encoding": level}]
    spec: Spec = {
        "height": 360,
        "layer": [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "strokeDash": [5, 4], "opacity": 0.7, "interpolate": "step-after"},
                "encoding": {**position, "color": {"value": PALETTE[7]}},
            },
            *bars,
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.85},
                "encoding": {
                    **position,
                    "color": colour,
                    "shape": {"field": "front", "type": "nominal", "title": "On the Pareto front"},
                    "tooltip": _tooltip("experiment", "run", "joules", "speed"),
                },
            },
        ],
    }
    text = (
        f"{len(rows)} experiments, {len(front)} on the Pareto front: none is both faster and more frugal. "
        "Bars are expanded uncertainties: points whose bars overlap need not differ."
    )
    return Chart("pareto", "Energy per token against throughput", text, spec, rows)


def axes(content: Content) -> list[Chart]:
    """One chart per axis of a study's sweep: energy per token by the value on it."""
    made: list[Chart] = []
    of_studies = [(study, axis) for study, of_study in content.axes.items() for axis in of_study.axes]
    for number, (study, axis) in enumerate(of_studies[:MAX_AXES]):
        short = axis.title
        rows: Rows = [
            {**identity(row), "value": _axis_value(value), "joules": energy.value}
            for row in content.experiments
            if row.study == study and (value := row.point.get(axis.name)) is not None
            if (energy := row.metrics.get("joules_per_output_token"))
        ]
        numeric = all(isinstance(entry["value"], (int, float)) for entry in rows)
        x: Spec = {"field": "value", "type": "ordinal", "title": short, "sort": "ascending" if numeric else None}
        y = _quantity("joules", "Joules per output token", zero=False)
        spec: Spec = {
            "height": 220,
            "layer": [
                {
                    "mark": {"type": "point", "filled": True, "opacity": 0.6, "size": 45},
                    "encoding": {"x": x, "y": y, "tooltip": _tooltip("experiment", "value", "joules")},
                },
                {
                    "mark": {"type": "line", "point": {"shape": "diamond", "size": 90}, "color": PALETTE[5]},
                    "encoding": {"x": x, "y": {**y, "aggregate": "mean"}},
                },
            ],
        }
        text = "Each point is an experiment's mean; the line joins the means over all experiments with that value."
        made.append(Chart(f"axis-{number}", f"Effect of {short}", text, spec, rows))
    return made


def cycles(content: Content) -> Chart:
    """Every cycle's energy per token, with the interval of its experiment's mean."""
    by_key = {row.key: row for row in content.experiments}
    rows: Rows = []
    for result in content.results:
        value = result.energy.joules_per_output_token
        if value is not None:
            row = by_key[f"{result.run_id}/{result.study}/{result.experiment.id}"]
            low, high = _interval(row.metrics.get("joules_per_output_token"))
            validity = "valid" if result.validity.valid else "invalid"
            cycle: Spec = {"cycle": result.cycle, "joules": value, "validity": validity, "low": low, "high": high}
            rows.append({**identity(row), **cycle})
    x = _quantity("joules", "Joules per output token", zero=False)
    colours: Spec = {"domain": ["valid", "invalid"], "range": [PALETTE[0], PALETTE[5]]}
    spec: Spec = {
        "height": {"step": 18},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6},
                "encoding": {
                    "y": LABEL,
                    "x": {**x, "field": "low"},
                    "x2": {"field": "high"},
                    "color": {"value": PALETTE[7]},
                },
            },
            {
                "mark": {"type": "tick", "thickness": 2, "size": 13},
                "encoding": {
                    "y": LABEL,
                    "x": x,
                    "color": {**_coloured("validity", "Cycle"), "scale": colours},
                    "tooltip": _tooltip("experiment", "run", "cycle", "joules", "validity"),
                },
            },
        ],
    }
    text = "A tick per cycle; the bar is the experiment's mean ± its expanded uncertainty, without the board's gain."
    return Chart("cycles", "Cycles, and the interval of their mean", text, spec, rows)


def split(experiments: Sequence[ExperimentRow]) -> Chart:
    """Where the energy of a token goes: idle and above idle, prefill and decode."""
    rows: Rows = []
    for row in experiments:
        parts = {"idle": row.idle_j, "above idle": row.net_j, **row.phases}
        for part, value in parts.items():
            if value is not None:
                group = "idle / above idle" if part in ("idle", "above idle") else "prefill / decode"
                rows.append({**identity(row), "part": part, "group": group, "joules": value})
    spec: Spec = {
        "height": {"step": 26},
        "mark": {"type": "bar", "tooltip": True},
        "encoding": {
            "y": LABEL,
            "yOffset": {"field": "group"},
            "x": {**_quantity("joules", "Joules per output token"), "stack": "zero"},
            "color": _coloured("part", "Part"),
            "tooltip": _tooltip("experiment", "part", "joules"),
        },
    }
    text = "Idle is the idle power, model loaded, over the measured time. Phases only where the engine separates them."
    return Chart("split", "Idle and net, prefill and decode", text, spec, rows)


def latency(content: Content) -> Chart:
    """Percentiles of ttft and tpot per experiment: the mean over its cycles."""
    rows: Rows = []
    for row in content.experiments:
        for metric in ("ttft", "tpot", "e2el"):
            for statistic in ("p50", "p90", "p99"):
                summary = row.metrics.get(f"{metric}_{statistic}_s")
                if summary:
                    rows.append({**identity(row), "metric": metric, "statistic": statistic, "seconds": summary.value})
    spec: Spec = {
        "height": {"step": 16},
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": {
            "y": LABEL,
            "x": {"field": "seconds", "type": "quantitative", "title": "Seconds", "scale": {"type": "log"}},
            "color": _coloured("metric", "Latency"),
            "shape": {"field": "statistic", "type": "nominal", "title": "Statistic"},
            "tooltip": _tooltip("experiment", "metric", "statistic", "seconds"),
        },
    }
    text = "ttft: time to first token; tpot: per token after the first; e2el: whole request. Logarithmic scale."
    return Chart("latency", "Latency", text, spec, rows)


def power_spec() -> Spec:
    """Power over time: the page puts one cycle's points and windows into `table` and `windows`."""
    return {
        "height": 260,
        "layer": [
            {
                "data": {"name": "windows"},
                "mark": {"type": "rect", "opacity": 0.18},
                "encoding": {
                    "x": _quantity("start", "Seconds"),
                    "x2": {"field": "end"},
                    "color": _coloured("name", "Window"),
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.5, "interpolate": "step-before"},
                "encoding": {
                    "x": _quantity("t", "Seconds"),
                    "y": _quantity("w", "Watts"),
                    "detail": {"field": "device"},
                    "tooltip": _tooltip("t", "w", "device"),
                },
            },
        ],
    }


def write_figures(paths: Sequence[Path], directory: Path, *, progress: ShowProgress = silent) -> list[Path]:
    """Write every chart as SVG, PNG and PDF (up to 40 experiments). `SettingsError` without the extra `report`."""
    try:
        import vl_convert
    except ImportError:
        raise SettingsError("figures need vl-convert-python", fix='pip install "pytest-llem[report]"') from None
    makers: dict[str, Callable[[str], str | bytes]] = {
        "svg": vl_convert.vegalite_to_svg,
        "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=3),
        "pdf": vl_convert.vegalite_to_pdf,
    }
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for chart in progress(charts(gather_content(paths, progress=progress)), "drawing"):
        spec = json.dumps(figure_spec(chart))
        for suffix, draw in makers.items():
            file = directory / f"{slug(chart.title.lower())}.{suffix}"
            made = draw(spec)
            file.write_bytes(made.encode() if isinstance(made, str) else made)
            written.append(file)
    return written


def figure_spec(chart: Chart) -> dict[str, object]:
    """A chart as a complete Vega-Lite document with its data, on white."""
    keys = list(dict.fromkeys(row.get("key") for row in chart.rows))[:EXPERIMENTS_PER_FIGURE]
    banded = isinstance(chart.spec.get("height"), dict)
    return {
        **chart.spec,
        "width": FIGURE_WIDTH,
        "background": "white",
        "description": chart.description,
        "data": {"values": [row for row in chart.rows if not banded or row.get("key") in keys]},
        "config": {"font": "Helvetica, Arial, sans-serif", "mark": {"color": PALETTE[0]}},
    }


def _interval(estimate: MetricSummary | None) -> tuple[float | None, float | None]:
    """Both ends, for a quantity that is never below zero."""
    if estimate is None or estimate.uncertainty is None:
        return None, None
    return max(0.0, estimate.value - estimate.uncertainty), estimate.value + estimate.uncertainty


def identity(row: ExperimentRow) -> dict[str, JsonValue]:
    """The experiment's fields in each row of a chart."""
    return {"key": row.key, "label": row.label, "experiment": row.experiment, "run": row.run, "engine": row.engine}


def _quantity(field: str, title: str, *, zero: bool = True) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": zero}}


def _tooltip(*fields: str) -> list[JsonValue]:
    return [{"field": name} for name in fields]


def _coloured(field: str, title: str) -> Spec:
    return {"field": field, "type": "nominal", "title": title, "scale": {"range": PALETTE}}


def _axis_value(value: object) -> JsonValue:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
