"""Writes the HTML report: its sections in order, and the charts.

`llem report` and `--llem-html` call it. It is read without scripts as well, tables first; `assets/report.js` adds what
needs them. Ids and classes must match the assets; the rest is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from pytest_llem.job.files import write_text, writing
from pytest_llem.results.compare import ComparedMetric, compare, headlines
from pytest_llem.results.compared_sides import open_side, side_of
from pytest_llem.results.reading import Results
from pytest_llem.results.repeatability import BASELINES
from pytest_llem.results.report.answers import answers
from pytest_llem.results.report.asked import asked
from pytest_llem.results.report.charts import Chart, Size, charts, left_out, power_chart, svg_of
from pytest_llem.results.report.charts.chart import PAGE
from pytest_llem.results.report.charts.race import RACE, chart_of
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.results.report.data import page_data
from pytest_llem.results.report.document import asset, document
from pytest_llem.results.report.evidence import NOTHING, environments, methods, validity
from pytest_llem.results.report.experiments import experiments
from pytest_llem.results.report.gpu_settings import gpu_settings, least_energy
from pytest_llem.results.report.overview import overview, title_of
from pytest_llem.results.report.races import races
from pytest_llem.results.report.shown_race import ShownRace
from pytest_llem.results.report.verdicts import comparison, gates, searches
from pytest_llem.results.terminal import ShowProgress, silent

NO_CHARTS = '<p class="muted">Charts need <code>pip install "pytest-llem[report]"</code>.</p>'
WHOLE = Size(2 * PAGE.width, PAGE.font)
"""Of a drawing that has the page's width to itself."""
TOO_LARGE = '<p class="muted">This chart has too many points to be drawn without JavaScript.</p>'


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    baseline: Path | str | None = None,
    baseline_dir: Path = BASELINES,
    title: str | None = None,
    progress: ShowProgress = silent,
) -> None:
    """Write the report of runs, folders of runs or results to `out`.

    With `baseline`, a run, a results file or a saved baseline, every other run is compared with it; `baseline_dir` has
    the saved ones, and what `llem aa` found. Charts need the extra `report`; without it the report has tables alone and
    says so. `progress` sees each file as it is read. Raises `StoreError` when there is nothing to report, `WriteError`
    when `out` cannot be written.
    """
    content = gather_content(paths, baseline_dir=baseline_dir, progress=progress)
    compared = []
    if baseline is not None:
        before = open_side(str(baseline), baseline_dir)
        in_baseline = {result.run_id for result in before.source} if isinstance(before.source, Results) else set()
        runs = dict.fromkeys(result.run_id for result in content.rows if result.run_id not in in_baseline)
        sides = [side_of(run, content.rows.of_run(run)) for run in runs]
        plans = [plan for manifest in content.manifests.values() for plan in manifest.studies]
        compared = compare(before, sides, metrics=headlines(plans), baseline_dir=baseline_dir)
    page = _render(content, charts(content), compared, title or title_of(content), _bundle())
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)


def _render(
    content: Content, charts: Sequence[Chart], compared: Sequence[ComparedMetric], title: str, bundle: str | None
) -> str:
    """The page as one string. `bundle` is the charts' JavaScript; without it the page has tables alone."""
    drawn = charts if bundle else ()
    others = [chart for chart in drawn if not chart.id.startswith(f"{RACE}-")]
    sections = [
        ("Results", "experiments", experiments(content) if content.experiments else NOTHING),
        ("Best setting", "race", races(content, partial(_race, drawn))),
        ("Answers", "answers", answers(content)),
        ("Largest load under the SLO", "searches", searches(content)),
        ("Setting of the least energy", "optima", least_energy(content)),
        ("Gates", "gates", gates(content)),
        ("Comparison", "comparison", comparison(compared)),
        ("Charts", "charts", _charts(others) if others else "" if bundle else NO_CHARTS),
        ("Power over time", "power", _power(content) if bundle else ""),
        ("What was asked", "asked", asked(content)),
        ("Validity and warnings", "validity", validity(content)),
        ("How the GPUs were set", "gpu-settings", gpu_settings(content.results)),
        ("How it was measured", "method", methods(content.results)),
        ("Machine and software", "environment", environments(content.manifests)),
    ]
    return document(
        title,
        overview(content),
        sections,
        page_data(content, drawn),
        [*([bundle] if bundle else []), asset("report.js")],
        compiles=bundle is not None,
    )


def _charts(charts: Iterable[Chart]) -> str:
    return f'<div class="grid">{"".join(map(_figure, charts))}</div>'


def _race(drawn: Iterable[Chart], race: ShownRace) -> str:
    return "".join(_figure(chart, WHOLE) for chart in drawn if chart.id == chart_of(race))


def _figure(chart: Chart, size: Size = PAGE) -> str:
    return (
        f"<figure><h3>{escape(chart.title)}</h3>{_box(chart, size)}"
        f"<figcaption>{escape(f'{chart.description} {left_out(chart)}')}</figcaption></figure>"
    )


def _box(chart: Chart, size: Size = PAGE) -> str:
    """The chart as it is without scripts; the script draws it anew there, with filters and tooltips."""
    name, label, drawn = escape(chart.id), escape(chart.title), svg_of(chart, size)
    return f'<div class="chart" data-chart="{name}" role="img" aria-label="{label}">{drawn or TOO_LARGE}</div>'


def _power(content: Content) -> str:
    if not content.traces:
        return ""
    cycle, trace = next(iter(content.traces.items()))
    more = f" {content.left_out_traces} further cycles are left out." if content.left_out_traces else ""
    which = f'Power by the meter in <span id="power-of">{escape(cycle)}</span>.'
    caption = f"{which} Shaded are the windows: energy is accounted between their edges.{more}"
    return f"<figure>{_box(power_chart(cycle, trace))}<figcaption>{caption}</figcaption></figure>"


def _bundle() -> str | None:
    try:
        import vl_convert
    except ImportError:
        return None
    return str(vl_convert.javascript_bundle(None))  # type: ignore[arg-type]  # its stub misses the default
