"""The charts of a report as Vega-Lite specifications: which there are, and in which order.

`page` shows them, and `figures` writes them for a paper. A chart is a function of the experiments and of the size that
it is made for; one without rows is left out.
"""

from __future__ import annotations

from pytest_llem.results.report.charts.bands import cycles, latency, split
from pytest_llem.results.report.charts.by_value import value_charts
from pytest_llem.results.report.charts.chart import PAGE, Chart, Size
from pytest_llem.results.report.charts.device import device_charts
from pytest_llem.results.report.charts.drawing import left_out, page_style, svg_of
from pytest_llem.results.report.charts.effect import effect_charts
from pytest_llem.results.report.charts.load import load_charts
from pytest_llem.results.report.charts.pareto import pareto, quality_charts
from pytest_llem.results.report.charts.points import Experiments
from pytest_llem.results.report.charts.power import power_chart, power_spec
from pytest_llem.results.report.charts.race import race_charts
from pytest_llem.results.report.charts.search import search_charts
from pytest_llem.results.report.content import Content

__all__ = ["Chart", "Size", "charts", "left_out", "page_style", "power_chart", "power_spec", "svg_of"]


def charts(content: Content, size: Size = PAGE) -> list[Chart]:
    """The charts for which there is data."""
    of = Experiments(content, size)
    first = [
        *race_charts(of, size),
        *quality_charts(of, size),
        *search_charts(of, size),
        *load_charts(of, size),
        *device_charts(of, size),
        *value_charts(of, size),
        *effect_charts(of, size),
        pareto(of, size),
    ]
    return [chart for chart in (*first, cycles(of, size), split(of, size), latency(of, size)) if chart.rows]
