"""Draws a chart as SVG for the page, and completes its specification for any drawing.

The page shows the SVG where there is no JavaScript; `figures` draws through `document`. vl-convert, of the extra
`report`, is the only renderer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pytest_llem.errors import JsonValue, visible
from pytest_llem.results.report.charts.bands import MAX_BANDS
from pytest_llem.results.report.charts.chart import GREY, PAGE, PALETTE, Chart, Rows, Size, Spec

MAX_ROWS = 2000
"""Of a drawing. Chosen: more points are a cloud, and take a second to draw."""
MAX_BYTES = 400_000
"""Of a drawing. Chosen: a page of ten of them loads in a second; larger ones hold more points than can be seen."""
INK = "#010203"
"""Stands for the colour of the text around the drawing, which a page's theme decides."""
_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""What XML 1.0 leaves out of its characters (its production 2)."""
FONT = "Helvetica, Arial, sans-serif"


def svg_of(chart: Chart, size: Size = PAGE) -> str | None:
    """The chart as SVG to put into HTML, in the colour of the text around it, as wide as its box at most.

    `None` without the extra `report`, and for a chart of more points than a drawing should hold.
    """
    try:
        import vl_convert
    except ImportError:
        return None
    rows = shown(chart, bands(chart))
    if len(rows) > MAX_ROWS:
        return None
    svg = str(vl_convert.vegalite_to_svg(json.dumps(document(chart, rows, size, ink=INK))))
    svg = svg.replace(INK, "currentColor")
    name = re.sub(r"\W", "-", chart.id)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # within HTML it has its name space
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    widest = f"{size.width / PAGE.width * 40:g}rem"
    svg = svg.replace("<svg ", f'<svg role="img" style="width:100%;max-width:{widest};height:auto" ', 1)
    return svg if len(svg) <= MAX_BYTES else None


def page_style() -> Spec:
    """How drawings of the page look, for the script; `INK` stands for the colour of the text."""
    return {"ink": INK, "config": _config(PAGE, INK), "bands": MAX_BANDS}


def experiments_of(chart: Chart) -> list[str]:
    """The keys of the experiments that the rows belong to."""
    return list(dict.fromkeys(str(row["key"]) for row in chart.rows))


def bands(chart: Chart, tallest: float | None = None) -> int | None:
    """How many experiments a chart with a row for each may show, `tallest` pixels at most; `None` for other charts."""
    if chart.step is None:
        return None
    return MAX_BANDS if tallest is None else min(MAX_BANDS, int(tallest / chart.step))


def left_out(chart: Chart, tallest: float | None = None) -> str:
    """A sentence on the experiments that have no row; empty where all have."""
    most, total = bands(chart, tallest), len(experiments_of(chart))
    return f"The first {most} of {total} experiments." if most is not None and total > most else ""


def shown(chart: Chart, most: int | None) -> Rows:
    """The rows that are drawn: those of the first experiments, where a chart has a row for each."""
    if most is None:
        return chart.rows
    keys = set(experiments_of(chart)[:most])
    return [row for row in chart.rows if row["key"] in keys]


def document(chart: Chart, rows: Rows, size: Size, *, ink: str = "black", background: str | None = None) -> Spec:
    """The chart with these of its rows as a complete Vega-Lite document."""
    values: list[JsonValue] = [dict(row) for row in rows]
    whole: Spec = {
        **chart.spec,
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": size.width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 2, "top": 2, "right": 10, "bottom": 2},
        "background": background,
        "description": chart.description,
        "data": {"name": "table", "values": values},
        "config": _config(size, ink),
    }
    return {name: _drawable(entry) for name, entry in whole.items()}


def _drawable(entry: JsonValue) -> JsonValue:
    """The same without characters that SVG cannot hold: vl-convert ends the whole process where it meets one."""
    if isinstance(entry, str):
        return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", visible(entry))
    if isinstance(entry, (list, tuple)):
        return [_drawable(each) for each in entry]
    if isinstance(entry, Mapping):
        return {name: _drawable(each) for name, each in entry.items()}
    return entry


def _config(size: Size, ink: str) -> Spec:
    """How every drawing looks, with its text in a colour: the page's script draws with the same."""
    text: Spec = {"labelColor": ink, "titleColor": ink, "titleFontWeight": "normal"}
    fonts: Spec = {"labelFontSize": size.font - 0.5, "titleFontSize": size.font}
    axis: Spec = {"gridColor": GREY, "gridOpacity": 0.25, "gridWidth": 0.5, "domainColor": GREY, "tickColor": GREY}
    layout: Spec = {"top": {"anchor": "start", "direction": "vertical", "margin": 1}}
    symbols: Spec = {"symbolBaseFillColor": GREY, "symbolBaseStrokeColor": GREY, "symbolSize": 4 * size.font}
    key: Spec = {"orient": "top", "offset": 4, "rowPadding": 1, "columnPadding": 6, "layout": layout, **symbols}
    return {
        "font": FONT,
        "aria": False,
        "view": {"stroke": None},
        "axis": {**axis, **text, **fonts, "labelLimit": 0},
        "legend": {**key, **text, **fonts, "labelLimit": 0},
        "text": {"color": ink},
        "mark": {"color": PALETTE[0]},
        "rule": {"color": PALETTE[0]},  # or black, which a dark page swallows
    }
