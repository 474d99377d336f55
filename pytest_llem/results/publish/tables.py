"""The tables of a paper, before they are LaTeX, Markdown or CSV: rows in order, figures as texts, the best ones known.

`command` calls `tables`, and `written` prints them. Nothing is averaged over a setting: a row is an experiment of a
run, and its figures are those of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_llem.errors import JsonValue, SettingsError, StoreError
from pytest_llem.job.files import slug
from pytest_llem.job.metric_names import HEADLINE
from pytest_llem.results.axes import written
from pytest_llem.results.effects import direction, interval, log_of_pair
from pytest_llem.results.impact import Impact, impacts, made_of
from pytest_llem.results.metrics import METRICS, Metric, is_at_least, is_beyond_numbers, is_energy, metric, why_absent
from pytest_llem.results.report.content import Content, ExperimentRow
from pytest_llem.results.report.experiments import (
    beyond_joules,
    first_metrics,
    head_and_scale,
    stated,
    with_uncertainty,
)
from pytest_llem.results.report.provenance import measured
from pytest_llem.results.schema import Result
from pytest_llem.results.terminal import UNCERTAIN
from pytest_llem.study.report_settings import ReportSettings

OF_THE_WINDOW = ("energy_j", "energy_above_idle_j")
"""Metrics that grow with the length of the window, so that less of them is no merit."""
PER_REQUEST = "joules_per_request"
ESTIMATED, AT_LEAST = "*", "≥"
CYCLES = "valid cycles"


@dataclass(frozen=True)
class FigureCell:
    """A figure as the report shows it, empty where it was not measured; `best` is set in bold.

    `estimated` marks one that no sensor measured, and `at_least` one of which only a bound is known.
    """

    text: str
    best: bool = False
    estimated: bool = False
    at_least: bool = False

    @property
    def parts(self) -> tuple[str, str | None]:
        """Value and uncertainty; `None` where the cell is no such pair."""
        value, sign, uncertainty = self.text.partition(f" {UNCERTAIN} ")
        return (value, uncertainty) if sign else (self.text, None)


@dataclass(frozen=True)
class MetricColumn:
    """One metric of the table; its head has the unit."""

    metric: str
    head: str
    cells: tuple[FigureCell, ...]


@dataclass(frozen=True)
class PaperTable:
    """A study's experiments. `heads` and `names` tell the rows apart, `counts` are their valid cycles if they differ.

    Where the first of several names changes, another group of rows begins.
    """

    name: str
    caption: str
    heads: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    columns: tuple[MetricColumn, ...]
    counts: tuple[str, ...] | None

    def begins_group(self, place: int) -> bool:
        """Whether a space belongs above a row."""
        return place > 0 and len(self.heads) > 1 and self.names[place][0] != self.names[place - 1][0]


def tables(content: Content, chosen: Sequence[Sequence[str]] = (), by: Sequence[str] = ()) -> list[PaperTable]:
    """A table for each study and each list of metrics: by default the study's headline and what it is about.

    Settings in `by` come first and in that order, the other axes of the sweep behind them. `SettingsError` for a metric
    that no valid cycle has, and for a setting that no study has; `StoreError` without a valid cycle.
    """
    if not content.results.valid:
        raise StoreError("no valid cycle to publish", fix="see llem list; the report says why each cycle is invalid")
    cycles: dict[str, list[Result]] = {}
    for result in content.results:
        cycles.setdefault("/".join((result.run_id, result.study, result.experiment.id)), []).append(result)
    for name in dict.fromkeys(name for names in chosen for name in names):
        if not any(metric(name).of(result) is not None for result in content.results.valid):
            why = why_absent(name, content.results.valid[0])
            raise SettingsError(f"no valid cycle has {name}: {why}", fix="leave it out of --table")
    _check(content, by)
    found = []
    for study in content.axes:
        rows = [row for row in content.experiments if row.study == study]
        lists = [[name for name in names if any(name in row.metrics for row in rows)] for names in chosen]
        lists = lists if chosen else [_default(content, study, rows)]
        for number, names in enumerate(lists, 1):
            if names:
                table = _table(content, study, rows, cycles, list(dict.fromkeys(names)), by)
                found.append(replace(table, name=slug(study) + (f"-{number}" if len(lists) > 1 else "")))
    return found


def _default(content: Content, study: str, rows: Sequence[ExperimentRow]) -> list[str]:
    """What the study is about; grams and money take the place of joules per request, or the table is too wide."""
    headline = _headline(content, study)
    plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
    left_out = {PER_REQUEST} - {headline} if impacts(beyond_joules(plans, rows)) else set()
    return [name for name in first_metrics(rows, headline) if name not in left_out]


def _headline(content: Content, study: str) -> str:
    plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
    return next((plan.headline for plan in plans if plan.headline and plan.headline in METRICS), None) or HEADLINE


Named = tuple[str, Callable[[ExperimentRow], JsonValue], Mapping[str, int]]
"""A column that tells rows apart: its head, its value of a row, and the order of values by `repr`."""


def _axes(content: Content, study: str) -> dict[str, Named]:
    """The axes of a study's sweep by name."""
    return {
        axis.name: (
            axis.title,
            lambda row, name=axis.name: row.point.get(name),  # type: ignore[misc]
            {repr(value): place for place, value in enumerate(axis.values)},
        )
        for axis in content.axes[study].axes
    }


def _setting(rows: Sequence[ExperimentRow], axes: Mapping[str, Named], called: str) -> tuple[str, Named] | None:
    """The axis, or else the setting, that a user calls so; `None` if these rows have none."""
    engines = {str(row.settings.get("config.engine")) for row in rows}

    def plain(name: str) -> str:
        """Without the engine's name, which results do not keep: `settings.batch_size`."""
        section, point, rest = name.casefold().partition(".")
        return f"settings.{rest}" if point and section in engines else name.casefold()

    for name, (head, value, order) in axes.items():
        if plain(called) in (plain(name), head.casefold()):
            return name, (head, value, order)
    wanted = (f"config.{plain(called)}", f"config.settings.{plain(called)}")
    names = [name for name in wanted if any(name in row.settings for row in rows)]
    if not names:
        return None
    values = dict.fromkeys(repr(row.settings.get(names[0])) for row in rows)
    head = called.rpartition(".")[2]
    return names[0], (head, lambda row: row.settings.get(names[0]), {value: at for at, value in enumerate(values)})


def _check(content: Content, by: Sequence[str]) -> None:
    for called in by:
        if not any(
            _setting([row for row in content.experiments if row.study == study], _axes(content, study), called)
            for study in content.axes
        ):
            names = dict.fromkeys(axis.name for axes in content.axes.values() for axis in axes.axes)
            raise SettingsError(f"no study has a setting {called!r}", fix=f"use one of: {', '.join(names) or 'none'}")


def _table(
    content: Content,
    study: str,
    rows: Sequence[ExperimentRow],
    cycles: Mapping[str, Sequence[Result]],
    metrics: Sequence[str],
    by: Sequence[str],
) -> PaperTable:
    axes = _axes(content, study)
    asked = dict(found for called in by if (found := _setting(rows, axes, called)) is not None)
    naming: list[Named] = [*asked.values(), *(axis for name, axis in axes.items() if name not in asked)]
    rows = sorted(rows, key=lambda row: [order.get(repr(value(row)), len(order)) for _, value, order in naming])
    heads = {head for head, _, _ in naming}
    facts: list[Named] = [("model", lambda row: row.model, {}), ("engine", lambda row: row.engine, {})]
    facts = [fact for fact in facts if fact[0] not in heads]
    varied = [*naming, *facts, ("run", lambda row: row.run, {})]
    texts = [(head, [written(value(row)) for row in rows]) for head, value, _ in varied]
    shown = [(head, cells) for head, cells in texts if len(set(cells)) > 1]
    same = [f"{head} {cells[0]}" for head, cells in texts if len(set(cells)) == 1 and cells[0] not in ("", "-")]
    told = [tuple(cells[place] for _, cells in shown) for place in range(len(rows))]
    if not shown or len({*told}) < len(told):
        shown.insert(0, ("experiment", [row.experiment for row in rows]))
    results = [cycles[row.key] for row in rows]
    plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
    columns = [_column(name, rows, results) for name in metrics]
    report = beyond_joules(plans, rows) if HEADLINE in metrics else ReportSettings()
    columns += [_impact(each, columns[metrics.index(HEADLINE)], rows) for each in impacts(report)]
    valid = [each for of_row in results for each in of_row if each.validity.valid]
    complete = len({row.valid for row in rows}) == 1 and all(row.valid == row.total for row in rows)
    counts = tuple(str(row.valid) if row.valid == row.total else f"{row.valid} of {row.total}" for row in rows)
    title = next((plan.title for plan in plans if plan.title), None) or f"Study {study}"
    sentences = [
        title,
        f"Each value is the mean over {counts[0] if complete else 'the'} valid cycle{'s' * (counts[0] != '1')}",
        *_explained(columns, rows),
        *([] if complete else ["Cycles that were planned and are not valid are left out"]),
        *(measured(valid) if any(is_energy(name) for name in metrics) else ()),
        *(
            [said]
            if (said := made_of(report, {each.energy.scope for each in content.results.of_study(study).valid}))
            else []
        ),
        *([f"The same for all: {', '.join(same)}"] if same else []),
    ]
    return PaperTable(
        name="",
        caption=" ".join(f"{sentence.rstrip('.')}." for sentence in sentences),
        heads=tuple(head for head, _ in shown),
        names=tuple(tuple(cells[place] for _, cells in shown) for place in range(len(rows))),
        columns=tuple(columns),
        counts=None if complete else counts,
    )


def _explained(columns: Sequence[MetricColumn], rows: Sequence[ExperimentRow]) -> list[str]:
    """What the signs in the cells mean, of those that occur."""
    cells = [cell for column in columns for cell in column.cells]
    factors = sorted(
        round(estimate.coverage_factor, 1)
        for row in rows
        for column in columns
        if (estimate := row.metrics.get(column.metric)) is not None and estimate.coverage_factor is not None
    )
    said = []
    if factors and any(cell.parts[1] for cell in cells):
        k = "k = 2" if factors[-1] == 2 else f"k = {factors[0]:g} to {factors[-1]:g}: above 2 where cycles are few"
        k = f"k = {factors[0]:g}" if factors[0] == factors[-1] != 2 else k
        said.append(f"{UNCERTAIN} is the expanded uncertainty (95 %, {k})")
    if any(cell.text.endswith(")") for cell in cells):
        said.append("Intervals in parentheses are of 95 %")
    if any(cell.text.endswith(f"{UNCERTAIN}?") for cell in cells):
        said.append(f"{UNCERTAIN}? is not known, as after a single cycle")
    if any(cell.best for cell in cells):
        said.append(
            "Bold: better than every other value of its column, each by more than the 95 % interval of the ratio"
        )
    if any(cell.estimated for cell in cells):
        said.append(f"{ESTIMATED}: NOT measured, but estimated")
    if any(cell.at_least for cell in cells):
        said.append(f"{AT_LEAST}: the search ended below the value, which is a lower bound")
    return said


def _column(name: str, rows: Sequence[ExperimentRow], cycles: Sequence[Sequence[Result]]) -> MetricColumn:
    measure = METRICS[name]
    head, scale = head_and_scale(name, rows)
    valid = [[result for result in group if result.validity.valid] for group in cycles]
    best = _best(measure, valid)
    cells = tuple(
        FigureCell(
            text=stated(measure, row.metrics.get(name), scale),
            best=place == best,
            estimated=name in row.metrics and measure.energy and not all(each.energy.measured for each in of_row),
            at_least=any(is_at_least(measure, each) for each in of_row),
        )
        for place, (row, of_row) in enumerate(zip(rows, valid, strict=True))
    )
    return MetricColumn(name, head, cells)


def _impact(impact: Impact, joules: MetricColumn, rows: Sequence[ExperimentRow]) -> MetricColumn:
    """Grams or money: joules times a factor, so that marks are those of the joules."""
    figures = [
        None if (of := row.metrics.get(HEADLINE)) is None else impact.of(of.value, of.uncertainty) for row in rows
    ]
    texts = ["" if each is None else with_uncertainty(each.value, each.uncertainty) for each in figures]
    cells = tuple(replace(cell, text=text) for cell, text in zip(joules.cells, texts, strict=True))
    return MetricColumn(impact.name, impact.head, cells)


def _best(measure: Metric, groups: Sequence[Sequence[Result]]) -> int | None:
    """The row that is better than each other one with a figure, by the interval of their ratio; `None` if none is.

    To be best is to be told apart from every other row, which more rows make no easier: each comparison at its own
    level is enough (Berger, Technometrics 24, 1982, 295-300). Estimates are none to compare, nor what is per nothing.
    """
    placed = [(place, [each for each in group if measure.of(each) is not None]) for place, group in enumerate(groups)]
    placed = [(place, group) for place, group in placed if group]
    every = [each for _, group in placed for each in group]
    unfit = measure.name in OF_THE_WINDOW or any(
        (measure.of(each) or 0) <= 0 or is_at_least(measure, each) or is_beyond_numbers(measure, each) for each in every
    )
    sensors = {(each.energy.meter, each.energy.scope) for each in every} if measure.energy else {()}
    estimated = measure.energy and not all(each.energy.measured for each in every)
    if len(placed) < 2 or unfit or estimated or len(sensors) > 1:
        return None
    wanted = "higher" if measure.higher_is_better else "lower"

    def beats(one: Sequence[Result], other: Sequence[Result]) -> bool:
        return direction(*interval([log_of_pair(measure, other, one)])) == wanted

    leading, best = placed[0]
    for place, group in placed[1:]:  # only the last to beat another may beat all
        if beats(group, best):
            leading, best = place, group
    return leading if all(beats(best, group) for place, group in placed if place != leading) else None
