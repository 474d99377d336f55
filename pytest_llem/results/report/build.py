"""Writes the HTML report, and its charts as figures for a paper.

`llem report` and the session's `--llem-report` call it. Charts need the extra `report`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import slug, write_text
from pytest_llem.results.compare import compare
from pytest_llem.results.reading import load
from pytest_llem.results.report.charts import PALETTE, Chart, charts
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.report.page import render
from pytest_llem.results.terminal import ShowProgress, silent

FIGURE_FORMATS = ("svg", "png", "pdf")
FIGURE_WIDTH = 640
"""Pixels. Chosen: the text width of a page in print, at 96 pixels an inch."""
EXPERIMENTS_PER_FIGURE = 40
"""Chosen: as many labelled lines as a page holds."""


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    baseline: Path | None = None,
    title: str | None = None,
    progress: ShowProgress = silent,
) -> None:
    """Write the report of runs, folders of runs or results to `out`.

    With `baseline`, a run or results file, every run is compared with it. Charts need the extra `report`; without it
    the report has tables alone and says so. `progress` sees each file as it is read. Raises `StoreError` when there is
    nothing to report, `SettingsError` when `out` cannot be written.
    """
    content = gather_content(paths, progress=progress)
    compared = []
    if baseline is not None:
        before = load(baseline)
        runs = dict.fromkeys(result.run_id for result in content.results)
        in_baseline = {result.run_id for result in before}
        compared = compare(before, [(run, content.results.of_run(run)) for run in runs if run not in in_baseline])
    named = [*(row.study for row in content.experiments), *(item.study for item in content.problems)]
    studies = ", ".join(dict.fromkeys(named))
    page = render(content, charts(content), compared, title=title or f"Energy of {studies}", bundle=_bundle())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as problem:
        raise SettingsError(
            f"{out}: the report cannot be written: {problem.strerror or problem}",
            fix="name another file; `llem report RUN -o FILE` writes it from the run's directory",
        ) from None


def write_figures(
    paths: Sequence[Path],
    directory: Path,
    formats: Sequence[str] = FIGURE_FORMATS,
    *,
    progress: ShowProgress = silent,
) -> list[Path]:
    """Write every chart as SVG, PNG (at 3 times the size) and PDF; `SettingsError` without the extra `report`.

    Charts with a line per experiment show the first 40.
    """
    try:
        import vl_convert
    except ImportError:
        raise SettingsError("figures need vl-convert-python", fix='pip install "pytest-llem[report]"') from None
    makers: dict[str, Callable[[str], str | bytes]] = {
        "svg": lambda spec: vl_convert.vegalite_to_svg(spec),
        "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=3),
        "pdf": lambda spec: vl_convert.vegalite_to_pdf(spec),
    }
    unknown = [name for name in formats if name not in makers]
    if unknown:
        raise SettingsError(f"unknown figure format {unknown[0]!r}", fix=f"use one of: {', '.join(FIGURE_FORMATS)}")
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for chart in progress(charts(gather_content(paths, progress=progress)), "drawing"):
        spec = json.dumps(figure_spec(chart))
        for name in formats:
            file = directory / f"{slug(chart.title.lower())}.{name}"
            made = makers[name](spec)
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


def _bundle() -> str | None:
    try:
        import vl_convert
    except ImportError:
        return None
    return str(vl_convert.javascript_bundle(None))  # type: ignore[arg-type]  # its stub misses the default
