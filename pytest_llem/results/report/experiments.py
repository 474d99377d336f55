"""The table of a study's experiments: its axes as the user wrote them, the headline with uncertainties, then the rest.

`page` shows one per study. What is the same for all experiments stands once above. `assets/report.css` gives narrow
screens two lines per experiment, so that its first columns must be those that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pytest_llem.job.metric_names import ACCURACY, HEADLINE, JOULES_PER_CORRECT
from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.impact import Impact, impacts, made_of
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.metrics import METRICS, SHIPPED, Metric
from pytest_llem.results.ranking import in_percent
from pytest_llem.results.report.content import Content, ExperimentRow
from pytest_llem.results.report.markup import NOT_KNOWN, count, said, scroll, text
from pytest_llem.results.report.overview import LEVELS
from pytest_llem.results.statistics import BETWEEN_RUNS
from pytest_llem.results.summary import MetricSummary
from pytest_llem.results.terminal import PREFIXES, UNCERTAIN, common_exponent, plus_minus, significant, with_ends
from pytest_llem.study.model import SweptAxis
from pytest_llem.study.report_settings import ReportSettings

HEADLINES = (HEADLINE, "joules_per_request", "output_tokens_per_s")
"""Metrics that every table shows, after the study's own headline."""
SERVED = ("max_rate_under_slo", "good_requests_per_joule", "goodput_requests_per_s", HEADLINE)
"""The same where the study has an SLO."""
SCORED = (JOULES_PER_CORRECT, ACCURACY, HEADLINE)
"""The same where answers are scored."""
FURTHER = (
    "joules_per_good_request",
    "goodput_output_tokens_per_s",
    "joules_per_request",
    "joules_per_session",
    "cached_input_share",
    "output_tokens_per_s",
    "energy_j",
    "avg_power_w",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "e2el_p50_s",
    "requests_per_s",
    "peak_memory_bytes",
    "mfu",
    "load_s",
)
"""Metrics that a table shows on demand."""
UNITS: Mapping[str, str] = {
    HEADLINE: "J/token",
    "joules_per_total_token": "J/token in or out",
    "joules_per_request": "J/request",
    "joules_per_session": "J/session",
    "wh_per_1000_queries": "Wh/1000 requests",
    "tokens_per_joule": "tokens/J",
    "output_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s in and out",
    "requests_per_s": "requests/s",
    "good_requests_per_joule": "good requests/J",
    "joules_per_good_request": "J/good request",
    "goodput_requests_per_s": "good requests/s",
    "max_rate_under_slo": "largest requests/s",
    JOULES_PER_CORRECT: "J/correct answer",
    ACCURACY: "accuracy (%)",
}
"""Metrics whose unit says all."""
MAX_COLUMNS = 8
"""Axes with a column of their own. Chosen: more do not fit beside the headline on a screen 1,280 pixels wide."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its short head, what it means, and its cell of each row, as markup."""

    head: str
    meaning: str
    cell: Callable[[ExperimentRow], str]
    number: bool = False


def experiments(content: Content) -> str:
    """A table for each study, with what its experiments have in common above."""
    parts = []
    for number, (study, axes) in enumerate(content.axes.items()):
        rows = [row for row in content.experiments if row.study == study]
        plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
        headline = next((plan.headline for plan in plans if plan.headline), None)
        title = f"<h3>{text(plans[0].title or study if plans else study)}</h3>" if len(content.axes) > 1 else ""
        report = beyond_joules(plans, rows)
        parts += [title, _study(f"t{number}", rows, axes, headline or HEADLINE, report), _without(content, study, rows)]
        if impacts(report):
            scopes = {result.energy.scope for result in content.results.of_study(study)}
            parts.append(f'<p class="muted">{text(made_of(report, scopes))}.</p>')
    return "".join(parts) + NOTE


NOTE = f"""<p class="muted">Value ± uncertainty holds the true value in 95 % of studies (k=2, or more where cycles are
few). It covers scatter over cycles, the sensor, the thermal state where that is known, and what runs differ by
({BETWEEN_RUNS:.0%} assumed where <code>llem aa</code> has not measured it). ±? is not known, as after a single cycle.
The board's gain error is apart: <a href="#method">How it was measured</a>.</p>"""


def beyond_joules(plans: Sequence[StudyPlan], rows: Sequence[ExperimentRow]) -> ReportSettings:
    """What turns a study's joules into grams and money, of its last run that states some; nothing without joules."""
    stated = (plan.report for plan in reversed(plans) if impacts(plan.report))
    return next(stated, ReportSettings()) if any(HEADLINE in row.metrics for row in rows) else ReportSettings()


def _without(content: Content, study: str, rows: Sequence[ExperimentRow]) -> str:
    """How many planned experiments have no result, of runs that are shown whole; empty where all have."""
    items = [item for run in content.states for item in content.manifests[run].items if item.study == study]
    missing = len({item.experiment_id for item in items} - {row.experiment for row in rows})
    verb = "has" if missing == 1 else "have"
    return f"<p>{count(missing, 'planned experiment')} {verb} no result.</p>" if missing else ""


def _study(name: str, rows: Sequence[ExperimentRow], axes: StudyAxes, headline: str, report: ReportSettings) -> str:
    naming, others, same = _naming(rows, axes)
    alike = len({row.valid for row in rows}) == 1 and all(row.valid == row.total for row in rows)
    cycles = [] if alike else [CYCLES]
    if alike:
        same.append((CYCLES.head, CYCLES.cell(rows[0])))
    measured = {metric for row in rows for metric in row.metrics}
    with_slo = any(row.slo for row in rows)
    first = first_metrics(rows, headline)
    grams_and_money = [_impact(each, report) for each in impacts(report)]
    shown = [
        *naming,
        *(_metric(metric, rows) for metric in first[:1]),
        *([_best(headline)] if headline in first[:1] and any(row.best is not None for row in rows) else []),
        *(_metric(metric, rows) for metric in first[1:]),
        *grams_and_money,
        *([SLO] if with_slo else []),
        *cycles,
    ]
    if len(asked := {row.slo.limits_text for row in rows if row.slo}) == 1:
        same.append(("SLO", text(*asked)))
    more = [*(_spread(metric, rows) for metric in first[:1])]
    beyond = dict.fromkeys(metric for row in rows for metric in row.metrics if metric not in SHIPPED)
    further = [metric for metric in (*FURTHER, *beyond) if metric in measured and metric not in first]
    more += [_metric(metric, rows) for metric in further]
    columns = [*shown, *more, *others]
    heads = "".join(
        f'<th scope="col"{_class(column)} title="{escape(column.meaning)}">{escape(column.head)}</th>'
        for column in columns
    )
    body = "".join(
        f"<tr>{''.join(_cell(column, row, names=place < len(naming)) for place, column in enumerate(columns))}</tr>"
        for row in rows
    )
    caption = f"{count(len(rows), 'experiment')}: mean over valid cycles ± expanded uncertainty"
    table = (
        f'<table class="results" id="{name}"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )
    facts = " · ".join(f"{escape(term)} <b>{value}</b>" for term, value in same)
    toggle = f'<input type="checkbox" class="all" id="{name}-all"><label for="{name}-all">More columns</label>'
    styles = f"<style>{_styles(name, len(naming), len(shown), cycles=bool(cycles))}</style>"
    return f'{styles}<p class="same">{facts}</p><div>{toggle}{scroll(table, "Experiments")}</div>'


def first_metrics(rows: Sequence[ExperimentRow], headline: str) -> list[str]:
    """The metrics that a study is about, of those that its rows have: its headline, then those of what it measured."""
    measured = {metric for row in rows for metric in row.metrics}
    scored = SCORED if any(row.answers for row in rows) else ()
    wanted = (*scored, *(SERVED if any(row.slo for row in rows) else () if scored else HEADLINES))
    return [metric for metric in dict.fromkeys([headline, *wanted]) if metric in measured]


def _styles(name: str, naming: int, shown: int, *, cycles: bool) -> str:
    """Which columns are shown on demand, and which name the row: said once, not in each of ten thousand rows."""
    row = f"#{name} tr"
    names, last = f"{row}>:nth-child(-n+{naming})", f"{row}>:nth-child({shown})"
    beside = f"{last}{{order:0;flex:0 0 auto;margin-left:auto}}" if cycles else ""
    return (
        f"#{name}-all:not(:checked)~.scroll>{row}>:nth-child(n+{shown + 1}){{display:none}}"
        f"@media(max-width:45rem){{{names}{{order:0;flex:0 0 auto}}{beside}"
        f'{names}:not(:first-child)::before{{content:"· "}}}}'
    )


def _cell(column: Column, row: ExperimentRow, *, names: bool) -> str:
    tag = 'th scope="row"' if names else "td"
    return f"<{tag}{_class(column)}>{column.cell(row)}</{tag[:2]}>"


def _class(column: Column) -> str:
    return ' class="n"' if column.number else ""


def _naming(rows: Sequence[ExperimentRow], axes: StudyAxes) -> tuple[list[Column], list[Column], list[tuple[str, str]]]:
    """The columns that name an experiment, further ones that tell of it, and what is the same for all."""
    naming = [_axis(axis) for axis in axes.axes]
    named = {column.head for column in naming}
    naming += [column for column in FACTS if column.head not in named]
    values = {column.head: {column.cell(row) for row in rows} for column in naming}
    same = [(head, next(iter(cells))) for head, cells in values.items() if len(cells) == 1 and head != RUN.head]
    naming = [column for column in naming if len(values[column.head]) > 1]
    told = {tuple(column.cell(row) for column in naming) for row in rows}
    others = [NOTES] if len({row.notes for row in rows}) > 1 else []
    if len(naming) > MAX_COLUMNS:
        return [ID], [*naming, *others], same
    return ([*naming], [ID, *others], same) if naming and len(told) == len(rows) else ([ID, *naming], others, same)


def _axis(axis: SweptAxis) -> Column:
    def cell(row: ExperimentRow) -> str:
        value = row.point.get(axis.name)
        return '<span aria-label="no effect">–</span>' if value is None else text(value)

    return Column(axis.title, axis.name, cell)


def _cycles(row: ExperimentRow) -> str:
    if row.valid == row.total:
        return str(row.valid)
    return f'<span class="bad">{row.valid} of {row.total}</span>'


def _slo(row: ExperimentRow) -> str:
    if row.slo is None or not row.slo.cell:
        return NOT_KNOWN
    title = f' title="{escape(row.slo.share_text)}"' if row.slo.share_text else ""
    return f"<span{title}>{said(LEVELS.get(row.slo.state or '', 'open'), row.slo.cell)}</span>"


SLO = Column(
    "SLO reached",
    "Whether the share of good requests reaches that of the SLO, by its 95 % interval; undecided: it holds that share",
    _slo,
)
ID = Column("id", "Id of the experiment, for -k", lambda row: text(row.experiment))
NOTES = Column("notes", "Codes of reasons and warnings", lambda row: text(" ".join(row.notes)))
CYCLES = Column("valid cycles", "Valid cycles, of those planned", _cycles)
RUN = Column("run", "The run that measured it", lambda row: text(row.run))
FACTS = (
    RUN,
    Column("model", "The model", lambda row: text(row.model)),
    Column("engine", "Inference engine and its version", lambda row: text(row.engine)),
)
"""What names an experiment beside its axes, where it is not the same for all."""


def _metric(name: str, rows: Sequence[ExperimentRow]) -> Column:
    """A metric with the SI prefix that suits most of its values, so that all cells of the column have one unit."""
    metric = METRICS[name]
    head, scale = head_and_scale(name, rows)
    meaning = f"{metric.description} ({name})"
    if metric.quality:
        meaning = f"{metric.description}, with its 95 % interval ({name})"
    return Column(head, meaning, lambda row: stated(metric, row.metrics.get(name), scale) or NOT_KNOWN, number=True)


def head_and_scale(name: str, rows: Sequence[ExperimentRow]) -> tuple[str, float]:
    """The head of a metric's column with its unit, and the number that values are divided by to be in it."""
    metric, exponent = METRICS[name], _exponent(name, rows)
    prefix = PREFIXES[exponent]
    unit = "" if metric.unit == "1" else f" ({prefix}{metric.unit})"
    return prefix + UNITS[name] if name in UNITS else _short(name) + unit, 1000.0**exponent


def _best(headline: str) -> Column:
    def cell(row: ExperimentRow) -> str:
        return NOT_KNOWN if row.best is None else escape(in_percent(row.best))

    meaning = f"Probability that it is truly the best of these settings in {headline}: one that leads may do so by luck"
    return Column("best (%)", meaning, cell, number=True)


def _impact(impact: Impact, report: ReportSettings) -> Column:
    def cell(row: ExperimentRow) -> str:
        of = row.metrics.get(HEADLINE)
        figure = None if of is None else impact.of(of.value, of.uncertainty)
        return NOT_KNOWN if figure is None else with_uncertainty(figure.value, figure.uncertainty)

    return Column(impact.head, f"{made_of(report, ())} ({impact.name})", cell, number=True)


def _spread(name: str, rows: Sequence[ExperimentRow]) -> Column:
    exponent = _exponent(name, rows)

    def cell(row: ExperimentRow) -> str:
        spread = row.metrics[name].spread if name in row.metrics else None
        return NOT_KNOWN if spread is None else significant(spread / 1000.0**exponent, 2)

    return Column("spread", f"Interquartile range of the cycles' {name}", cell, number=True)


def _exponent(name: str, rows: Sequence[ExperimentRow]) -> int:
    return common_exponent((row.metrics[name].value for row in rows if name in row.metrics), METRICS[name].unit)


def _short(name: str) -> str:
    """A metric's name without its unit."""
    for suffix in ("_bytes", "_s", "_j", "_w"):
        name = name.removesuffix(suffix)
    return name


def stated(metric: Metric, estimate: MetricSummary | None, scale: float) -> str:
    """A figure in its column's unit: `12.30 ± 0.41`, `23.1 (21.4–25.3)`, `12.3 ±?`; empty if it was not measured."""
    if estimate is None:
        return ""
    if metric.quality:
        ends = (end and end / scale for end in (estimate.low, estimate.high))
        return with_ends(estimate.value / scale, *ends, percent=metric.name == ACCURACY)
    return with_uncertainty(estimate.value / scale, estimate.uncertainty and estimate.uncertainty / scale)


def with_uncertainty(value: float, uncertainty: float | None) -> str:
    """A figure and its uncertainty, `±?` where that is not known."""
    if uncertainty:
        return plus_minus(value, uncertainty)
    return significant(value) + (f" {UNCERTAIN}?" if uncertainty is None else "")
