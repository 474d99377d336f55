"""Writes the HTML report: tables first, so that it can be read without charts, scripts or sight.

`llem report` and `--llem-html` call it. Ids and classes must match `assets/report.js` and `.css`; the rest is free.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from string import Template

from pytest_llem import __version__
from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_text, writing
from pytest_llem.results.compare import HEAD, ComparedMetric, cells, compare
from pytest_llem.results.gate_report import VERDICT_HEAD
from pytest_llem.results.gates import Status
from pytest_llem.results.manifest import Manifest
from pytest_llem.results.metrics import METRICS
from pytest_llem.results.reading import Results, load
from pytest_llem.results.repeatability import BASELINES
from pytest_llem.results.report.charts import Chart, charts, identity, power_spec
from pytest_llem.results.report.content import Content, ExperimentRow, gather_content
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.statistics import BETWEEN_RUNS
from pytest_llem.results.summary import MetricSummary
from pytest_llem.results.terminal import UNCERTAIN, ShowProgress, plus_minus, silent
from pytest_llem.study.model import SweptAxis

VERDICT_WORDS: Mapping[Status, str] = {
    "fail": "failed",
    "not_comparable": "not comparable",
    "inconclusive": "inconclusive",
    "pass": "passed",
}
FACTS = ("hostname", "kernel", "python", "pytest_llem", "memory_total_bytes", "cpu", "gpus", "packages", "git")
"""Host facts that the page shows, in this order."""
HEADLINE, SPREAD = "joules_per_output_token", "spread"
TABLE_METRICS = (
    HEADLINE,
    "output_tokens_per_s",
    "energy_j",
    "avg_power_w",
    "ttft_p50_s",
    "tpot_p50_s",
    "peak_memory_bytes",
    "mfu",
)
NOTHING = "<p>No cycle has a result.</p>"
NO_CHARTS = '<p class="muted">Charts need <code>pip install "pytest-llem[report]"</code>.</p>'


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    baseline: Path | None = None,
    baseline_dir: Path = BASELINES,
    title: str | None = None,
    progress: ShowProgress = silent,
) -> None:
    """Write the report of runs, folders of runs or results to `out`.

    With `baseline`, a run or results file, every run is compared with it; `baseline_dir` may hold what `llem aa` found.
    Charts need the extra `report`; without it
    the report has tables alone and says so. `progress` sees each file as it is read. Raises `StoreError` when there is
    nothing to report, `WriteError` when `out` cannot be written.
    """
    content = gather_content(paths, baseline_dir=baseline_dir, progress=progress)
    compared = []
    if baseline is not None:
        before = load(baseline)
        runs = dict.fromkeys(result.run_id for result in content.rows)
        in_baseline = {result.run_id for result in before}
        others = [(run, content.rows.of_run(run)) for run in runs if run not in in_baseline]
        compared = compare(before, others, baseline_dir=baseline_dir)
    named = [*(row.study for row in content.experiments), *(item.study for item in content.problems)]
    studies = ", ".join(dict.fromkeys(named))
    page = _render(content, charts(content), compared, title or f"Energy of {studies}", _bundle())
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)


def _render(
    content: Content, charts: Sequence[Chart], compared: Sequence[ComparedMetric], title: str, bundle: str | None
) -> str:
    """The page as one string. `bundle` is the charts' JavaScript; without it the page has tables alone."""
    power = bool(content.traces) and bundle is not None
    sections = [
        ("Experiments", "experiments-section", _experiments(content) if content.experiments else NOTHING),
        ("Gates", "gates", _gates(content)),
        ("Comparison", "comparison", _comparison(compared) if compared else ""),
        ("Charts", "charts", (_charts(charts) if bundle and charts else "" if bundle else NO_CHARTS)),
        ("Power over time", "power", _power(content) if power else ""),
        ("Validity and warnings", "validity", _validity(content)),
        ("How it was measured", "method", _methods(content.results)),
        (
            "Environment",
            "environment",
            _environments(content.manifests),
        ),
    ]
    present = [entry for entry in sections if entry[2]]
    valid = len(content.results.valid)
    runs = len({result.run_id for result in content.results})
    cycles = f"{valid} of {len(content.results)} cycles valid"
    subtitle = f"{len(content.experiments)} experiments, {cycles}, {runs} run{'s' * (runs != 1)}"
    data: JsonValue = {
        "experiments": [
            {**identity(row), "axes": {axis: _text(value) for axis, value in row.point.items()}}
            for row in content.experiments
        ],
        "charts": [
            {
                "id": chart.id,
                "description": chart.description,
                "spec": chart.spec,
                "rows": _indexed(chart, content.experiments),
                "banded": "step" in str(chart.spec.get("height")),
            }
            for chart in (charts if bundle else ())
        ],
        "power": power_spec(),
        "traces": {
            name: {"points": _rounded(trace.points), "windows": _rounded(trace.windows)}
            for name, trace in (content.traces.items() if power else ())
        },
    }
    return Template(_asset("report.html")).substitute(
        title=escape(title),
        subtitle=subtitle,
        css=_asset("report.css"),
        links="".join(f'<li><a href="#{anchor}">{name}</a></li>' for name, anchor, _ in present),
        main="".join(
            f'<section id="{a}" aria-labelledby="{a}-h"><h2 id="{a}-h">{n}</h2>{h}</section>' for n, a, h in present
        ),
        version=__version__,
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        bundle="<script>{}</script>".format(bundle.replace("</script", "<\\/script")) if bundle else "",
        js=_asset("report.js"),
    )


def _indexed(chart: Chart, experiments: Sequence[ExperimentRow]) -> JsonValue:
    """The chart's rows as index of the experiment and the other fields, so that no point repeats its names."""
    indices = {row.key: index for index, row in enumerate(experiments)}
    common = identity(experiments[0])  # a chart has rows, so there are experiments
    return [
        [indices[str(row["key"])], {name: value for name, value in row.items() if name not in common}]
        for row in chart.rows
    ]


def _experiments(content: Content) -> str:
    metrics = [name for name in TABLE_METRICS if any(name in row.metrics for row in content.experiments)]
    several = len({row.run for row in content.experiments}) > 1
    names = ["experiment", *(["run"] if several else []), "study", "model", "engine", "valid"]
    heads = [_head(name) for name in names]
    for name in metrics:
        heads.append(_head(f"{name} ({METRICS[name].unit})", number=True))
        heads += [_head(SPREAD, number=True)] if name == HEADLINE else []
    body = "".join(_experiment(row, names, metrics) for row in content.experiments)
    count = len(content.experiments)
    axes = [axis for of_study in content.axes.values() for axis in of_study.axes]
    selects = "".join(_select(axis, content.experiments) for axis in axes[:6])
    estimates = {result.energy.meter for result in content.results if not result.energy.measured} - {"none"}
    estimated = f"<strong>Energy is NOT measured by {escape(', '.join(sorted(estimates)))}</strong>: it is estimated."
    return f"""<div class="controls"><label>Filter by words<input id="filter" type="search" autocomplete="off"></label>
{selects}<output id="shown" aria-live="polite">{count} of {count} experiments</output></div>
<div class="scroll" tabindex="0" role="region" aria-label="Experiments"><table id="experiments">
<caption>Mean over valid cycles ± expanded uncertainty. Activate a column's head to sort.</caption>
<thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table></div>
<p><button type="button" id="more" hidden>Show all</button></p>
<p class="muted">Value ± uncertainty holds the true value in 95 % of studies (k=2, or more where cycles are few). It
covers scatter over cycles, the sensor, the thermal state where that is known, and what runs differ by
({BETWEEN_RUNS:.0%} assumed where <code>llem aa</code> has not measured it). ±? is not known, as after a single cycle.
The board's gain error is apart: <a href="#method">How it was measured</a>. Spread is the interquartile range of the
cycles. {estimated if estimates else ""}</p>"""


def _experiment(row: ExperimentRow, names: Sequence[str], metrics: Sequence[str]) -> str:
    texts: dict[str, str] = {name: getattr(row, name) for name in ("experiment", "run", "study", "model", "engine")}
    texts["valid"] = f"{row.valid}/{row.total}"
    done = "good" if row.valid == row.total else "bad"
    cells = [f'<th scope="row" data-v="{escape(row.experiment)}">{escape(row.experiment)}</th>']
    for name in names[1:]:
        css = f' class="{done}"' if name == "valid" else ""
        cells.append(f'<td data-v="{escape(texts[name])}"{css}>{escape(texts[name])}</td>')
    for name in metrics:
        estimate = row.metrics.get(name)
        cells.append(_number(estimate.value if estimate else None, _stated(estimate) if estimate else ""))
        if name == HEADLINE:
            spread = estimate.spread if estimate else None
            cells.append(_number(spread, "" if spread is None else f"{spread:.2g}"))
    words = " ".join([*texts.values(), *row.notes, *(f"{axis}={value}" for axis, value in row.point.items())]).lower()
    return f'<tr data-key="{escape(row.key)}" data-text="{escape(words)}">{"".join(cells)}</tr>'


def _number(value: float | None, text: str) -> str:
    if value is None:
        return '<td class="n" data-v=""><span aria-label="not known">–</span></td>'
    return f'<td class="n" data-v="{value!r}">{text}</td>'


def _stated(estimate: MetricSummary) -> str:
    if estimate.uncertainty:
        return plus_minus(estimate.value, estimate.uncertainty)
    return f"{estimate.value:.4g}{f' {UNCERTAIN}?' if estimate.uncertainty is None else ''}"


def _select(axis: SweptAxis, rows: Sequence[ExperimentRow]) -> str:
    values = dict.fromkeys(_text(row.point.get(axis.name)) for row in rows)
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    select = f'<select data-axis="{escape(axis.name)}"><option value="">any</option>{options}</select>'
    return f"<label>{escape(axis.title)}{select}</label>"


def _charts(charts: Sequence[Chart]) -> str:
    figures = [
        f'<figure><h3>{escape(chart.title)}</h3><div class="chart" data-chart="{chart.id}"></div>'
        f"<figcaption>{escape(chart.description)}</figcaption></figure>"
        for chart in charts
    ]
    note = '<p class="muted">Charts follow the filter above; those with a line per experiment show the first 40.</p>'
    return f'{note}<div class="grid">{"".join(figures)}</div>'


def _power(content: Content) -> str:
    more = f" {content.left_out_traces} further cycles are left out." if content.left_out_traces else ""
    return f"""<div class="controls"><label>Cycle<select id="cycle"></select></label></div>
<figure><div class="chart" id="power-chart"></div><figcaption>Power by the meter; shaded are the windows: energy is
accounted between their edges.{more}</figcaption></figure>"""


def _comparison(compared: Sequence[ComparedMetric]) -> str:
    body = [[row.run, *cells(row, several_studies=True)] for row in compared]
    differs = dict.fromkeys(difference for row in compared for difference in row.differs)
    notes = "".join(f"<li>{escape(difference)}</li>" for difference in differs)
    differing = f"<p>* differs:</p><ul>{notes}</ul>" if notes else ""
    return _table(("run", *HEAD), body, "Against the baseline run") + differing


def _gates(content: Content) -> str:
    reports = [(run, report) for run, judged_experiments in content.gates.items() for report in judged_experiments]
    if not reports:
        return ""
    several = len(content.gates) > 1
    gate, verdict, *numbers = VERDICT_HEAD
    head = [verdict, *(["run"] if several else []), "experiment", gate, *numbers]
    names = [[*([run] if several else []), f"{report.study}[{report.experiment_id}]"] for run, report in reports]
    judged = [(name, row) for name, (_, report) in zip(names, reports, strict=True) for row in report.rows]
    body = [[cells[1], *name, cells[0], *cells[2:]] for name, row in judged for cells in (row.cells(),)]
    counts = Counter(row.status for _, row in judged)
    totals = ", ".join(f"{counts[status]} {word}" for status, word in VERDICT_WORDS.items() if status in counts)
    explained = [(" ".join([*name, row.metric]), row.reason) for name, row in judged if row.reason]
    why = [f"<li>{escape(gated)}: {escape(reason)}</li>" for gated, reason in explained]
    return (
        f"<p>{totals}.</p>{_table(head, body, 'Verdicts on budgets and against the baseline')}"
        f"<details><summary>Why</summary><ul>{''.join(why)}</ul></details>"
    )


def _validity(content: Content) -> str:
    rows: list[list[str]] = [
        [f"{item.study}[{item.experiment_id}-c{item.cycle}]", item.state, reason]
        for item in content.problems
        if item.state != "invalid"
        for reason in (item.reasons or ("",))
    ]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for result in content.results:
        name = f"{result.study}[{result.experiment.id}]"
        for kind, notes in (("invalid", result.validity.reasons), ("warning", result.warnings)):
            for note in notes:
                grouped.setdefault((name, f"{kind}: {note.code}", note.message), []).append(f"c{result.cycle}")
    rows += [[f"{name} {', '.join(cycles)}", code, text] for (name, code, text), cycles in grouped.items()]
    if not rows:
        return "<p>Every cycle is valid, without warnings.</p>"
    return _table(("where", "what", "why"), rows, "Cycles that are not valid, and warnings", wrap=True)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, wrap: bool = False) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    css = ' class="wrap"' if wrap else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{css}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(name: str, *, number: bool = False) -> str:
    css = ' class="n"' if number else ""
    return f'<th scope="col"{css}><button type="button">{escape(name)}</button></th>'


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def _rounded(rows: Iterable[Iterable[float | str]]) -> JsonValue:
    return [[float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row] for row in rows]


def _bundle() -> str | None:
    try:
        import vl_convert
    except ImportError:
        return None
    return str(vl_convert.javascript_bundle(None))  # type: ignore[arg-type]  # its stub misses the default


def _asset(name: str) -> str:
    return (files("pytest_llem.results.report") / "assets" / name).read_text(encoding="utf-8")


def _methods(results: Results) -> str:
    """A row per way in which energy was measured, with its typical relative uncertainty."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        energy = result.energy
        estimators = sorted({window.estimator or "none" for window in energy.windows if window.name == MEASURE})
        key = (
            energy.meter,
            "measured" if energy.measured else f"estimated: {energy.source}" if energy.source else "not measured",
            energy.scope or "–",
            energy.placement or "–",
            ", ".join(estimators) or "–",
            "–" if energy.gain_uncertainty_rel is None else f"{energy.gain_uncertainty_rel:.1%}",
        )
        groups.setdefault(key, []).append(result)
    way = ("meter", "kind", "scope", "sampler", "estimator", "gain error, apart")
    head = (*way, "median uncertainty of a cycle", "median samples", "cycles")
    rows = [(*key, _uncertainty(group), _samples(group), str(len(group))) for key, group in groups.items()]
    return _table(head, rows, "Meters, estimators and the sensor's uncertainty (k=2)", wrap=True)


def _environments(manifests: Mapping[str, Manifest]) -> str:
    """A row per fact, a column per run."""
    environments = {name: manifest.environment for name, manifest in manifests.items()}
    shown = [(fact, *(_shown(environment.get(fact)) for environment in environments.values())) for fact in FACTS]
    rows = [row for row in shown if any(row[1:])]
    return _table(("fact", *environments), rows, "Machine and software of each run", wrap=True) if rows else ""


def _uncertainty(group: Sequence[Result]) -> str:
    energies = [result.energy for result in group]
    shares = [e.uncertainty_j / e.energy_j for e in energies if e.uncertainty_j is not None and e.energy_j]
    return f"{median(shares):.2%}" if shares else "–"


def _samples(group: Sequence[Result]) -> str:
    counts = [sum(w.samples for w in result.energy.windows if w.name == MEASURE) for result in group]
    return f"{median(counts):.0f}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return " | ".join(_shown(entry) for entry in value)
    return "" if value is None else str(value)
