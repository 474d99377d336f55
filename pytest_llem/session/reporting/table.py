"""The table of a study's experiments: a column per axis of the sweep, then the headline, energy and throughput.

`summary` prints it and writes it as Markdown. It must be readable at any width: what distinguishes the experiments and
the figures with their uncertainty stay, further columns come where there is room. Tables may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llem.job.metric_names import ACCURACY, HEADLINE, JOULES_PER_CORRECT, known_metric
from pytest_llem.results.axes import numbers, written
from pytest_llem.results.impact import impacts
from pytest_llem.results.ranking import in_percent
from pytest_llem.results.terminal import PREFIXED, PREFIXES, common_exponent, middle_cut, plus_minus, with_ends

if TYPE_CHECKING:
    from pytest_llem.results.manifest import StudyPlan
    from pytest_llem.results.summary import ExperimentSummary, MetricSummary

ALWAYS = (HEADLINE, "joules_per_request", "output_tokens_per_s")
SEARCHED = "max_rate_under_slo"
"""Beside the headline of a study that searches it."""
SERVED = ("joules_per_good_request", "goodput_requests_per_s")
"""The same where a study has an SLO."""
QUALITY = (JOULES_PER_CORRECT, ACCURACY)
"""The same where answers are scored, before energy per token; their intervals are not even."""
INVERSE = {"good_requests_per_joule": "joules_per_good_request"}
"""What a headline makes needless."""
WHERE_ROOM = ("avg_power_w", "energy_j")
SHORT = {
    "joules_per_output_token": ("", "J", "/token"),
    "joules_per_request": ("", "J", "/request"),
    "output_tokens_per_s": ("", "", "tokens/s"),
    "energy_j": ("energy", "J", ""),
    "avg_power_w": ("power", "W", ""),
    "joules_per_good_request": ("", "J", "/good"),
    "good_requests_per_joule": ("", "", "good/J"),
    "goodput_requests_per_s": ("", "", "good/s"),
    "goodput_output_tokens_per_s": ("", "", "good tokens/s"),
    "max_rate_under_slo": ("", "", "max requests/s"),
    JOULES_PER_CORRECT: ("", "J", "/correct"),
    ACCURACY: ("accuracy", "", "%"),
}
"""What stands before a figure, its unit, and what follows the unit; of other metrics, name and unit."""
SPREAD = "spread"
BEST = "best (%)"
SLO = "SLO reached"
GAP = "  "
INDENT = "    "
LEAST_NAME = 8
"""Characters that a cut value keeps at least. Chosen: both ends of a word remain recognisable."""
ESTIMATED = "*"
"""Marks a column of estimates, and a cell where others of its column were measured."""


@dataclass(frozen=True)
class TableColumn:
    """A column: its head, a cell per experiment, and `before` and `after` of a cell that stands without its head."""

    head: str
    cells: tuple[str, ...]
    before: str = ""
    after: str = ""
    left: bool = False

    @property
    def width(self) -> int:
        """Characters of its widest cell."""
        return max(map(len, (self.head, *self.cells)))

    def alone(self, row: int) -> str:
        """A cell with what its head says."""
        return " ".join(filter(None, (self.before, self.cells[row], self.after)))


@dataclass(frozen=True)
class Table:
    """A study's experiments: what all share, what tells them apart, the figures, and more where there is room.

    The first of `further` stays in a block as well.
    """

    shared: tuple[str, ...]
    names: tuple[TableColumn, ...]
    figures: tuple[TableColumn, ...]
    further: tuple[TableColumn, ...]

    @property
    def columns(self) -> tuple[TableColumn, ...]:
        """All of them."""
        return (*self.names, *self.figures, *self.further)

    def lines(self, width: int) -> list[str]:
        """Lines no wider than the terminal: a table where names and figures fit, else a block per experiment."""
        names = _fitted(self.names, width - _width(self.figures) - len(GAP))
        if names is None or _width([*names, *self.figures]) > width:
            return list(self._blocks(width))
        columns = [*names, *self.figures]
        for column in self.further:
            if _width([*columns, column]) <= width:
                columns.append(column)
        rows = zip(*((column.head, *column.cells) for column in columns), strict=True)
        return [
            GAP.join(
                cell.ljust(column.width) if column.left else cell.rjust(column.width)
                for cell, column in zip(row, columns, strict=True)
            ).rstrip()
            for row in rows
        ]

    def _blocks(self, width: int) -> Iterator[str]:
        for row in range(len(self.figures[0].cells)):
            yield from _wrapped([f"{column.before} {column.cells[row]}".strip() for column in self.names], width, "")
            yield from _wrapped([column.alone(row) for column in (*self.figures, *self.further[:1])], width, INDENT)


def _wrapped(parts: Sequence[str], width: int, indent: str) -> Iterator[str]:
    """The parts in as few lines as hold them whole."""
    line = indent
    for part in parts:
        if line.strip() and len(line) + len(GAP) + len(part) > width:
            yield line
            line = indent
        line += (GAP if line.strip() else "") + part
    if line.strip():
        yield line


def _width(columns: Sequence[TableColumn]) -> int:
    return sum(column.width for column in columns) + len(GAP) * max(0, len(columns) - 1)


def _fitted(columns: Sequence[TableColumn], width: int) -> list[TableColumn] | None:
    """The columns cut to a width, the widest first; `None` where values would not stay distinct."""
    fitted = list(columns)
    while fitted and _width(fitted) > width:
        widest = max(range(len(fitted)), key=lambda index: fitted[index].width)
        target = fitted[widest].width - 1
        cut = replace(
            fitted[widest],
            head=middle_cut(columns[widest].head, target),
            cells=tuple(middle_cut(cell, target) for cell in columns[widest].cells),
        )
        if target < LEAST_NAME or len(set(cut.cells)) < len(set(columns[widest].cells)):
            return None
        fitted[widest] = cut
    return fitted


def table_of(rows: Sequence[ExperimentSummary], plan: StudyPlan) -> Table:
    """The table of a study's experiments, with the axes and the headline of its plan."""
    headline = plan.headline or HEADLINE
    shared, names = _names(rows, plan)
    with_slo = any(row.slo for row in rows)
    known = {name for row in rows for name in row.metrics}
    scored = (*QUALITY, HEADLINE) if any(ACCURACY in row.metrics for row in rows) else ()
    wanted = dict.fromkeys((headline, SEARCHED, *scored, *(SERVED if with_slo else () if scored else ALWAYS)))
    measured = [name for name in wanted if name in known and name != INVERSE.get(headline)]
    further = [name for name in (*ALWAYS, *WHERE_ROOM) if name in known and name not in measured]
    return Table(
        tuple(shared),
        tuple(names),
        (*(_figure(name, rows) for name in measured or [headline]), *_impact(rows, plan), *([_slo(rows)] * with_slo)),
        (_valid(rows), *_best(rows), *(_figure(name, rows) for name in further), *_spread(headline, rows)),
    )


def _names(rows: Sequence[ExperimentSummary], plan: StudyPlan) -> tuple[list[str], list[TableColumn]]:
    """What all experiments share, and the columns that tell them apart: the axes, or the ids where these do not."""
    kinds = {row.model for row in rows} - {None}, {row.engine for row in rows} - {None}
    shared = [str(*kind) for kind in kinds if len(kind) == 1]
    names: list[TableColumn] = []
    axes = plan.study_axes()
    if not axes.tells_apart(row.experiment_id for row in rows):
        return shared, [TableColumn("experiment", tuple(row.experiment_id for row in rows), left=True)]
    for axis in axes.axes:
        values = [axes.point(row.experiment_id).get(axis.name) for row in rows]
        cells = tuple(map(written, values))
        if len(set(cells)) > 1:
            names.append(TableColumn(axis.title, cells, before=axis.title, left=not numbers(axis.values)))
        elif cells[0] not in ("-", *shared):
            shared.append(f"{axis.title} {cells[0]}")
    return shared, names


def _figure(name: str, rows: Sequence[ExperimentSummary]) -> TableColumn:
    """A metric's column: one SI prefix for all its cells, and a mark where the energy is an estimate."""
    before, unit, after = _words(name)
    found = [row.metrics.get(name) for row in rows]
    exponent = common_exponent((each.value for each in found if each is not None), unit)
    scale = 1000.0**exponent
    cells = tuple("-" if each is None else _cell(name, each, scale) for each in found)
    metric = known_metric(name)
    of_energy = metric is not None and metric.energy
    guessed = [of_energy and row.measured is False and bool(row.metrics) for row in rows]
    estimated = any(guessed) and not any(of_energy and row.measured and row.metrics for row in rows)
    if any(guessed) and not estimated:
        cells = tuple(cell + (ESTIMATED if guess else " ") for cell, guess in zip(cells, guessed, strict=True))
    whole = f"{PREFIXES[exponent] if unit else ''}{unit}{after}"
    head = (f"{before} ({whole})" if before and whole else before or whole) + ESTIMATED * estimated
    return TableColumn(head, cells, before, whole + ESTIMATED * estimated)


def _cell(name: str, of: MetricSummary, scale: float) -> str:
    if name in QUALITY:
        ends = (end and end / scale for end in (of.low, of.high))
        return with_ends(of.value / scale, *ends, percent=name == ACCURACY)
    return plus_minus(of.value / scale, of.uncertainty and of.uncertainty / scale)


def _words(name: str) -> tuple[str, str, str]:
    if name in SHORT:
        return SHORT[name]
    entry = known_metric(name)
    unit = "" if entry is None or entry.unit == "1" else entry.unit
    return name.removesuffix(f"_{unit.lower()}") if unit in PREFIXED else name, unit, ""


def _impact(rows: Sequence[ExperimentSummary], plan: StudyPlan) -> Iterator[TableColumn]:
    """Grams of CO2e and money, where the study states factors and something was measured."""
    estimated = ESTIMATED * any(row.measured is False and row.metrics for row in rows)
    for impact in impacts(plan.report):
        found = [row.impact.get(impact.name) for row in rows]
        if any(found):
            cells = tuple("-" if each is None else plus_minus(each.value, each.uncertainty) for each in found)
            yield TableColumn(impact.head + estimated, cells, after=impact.head + estimated)


def _valid(rows: Sequence[ExperimentSummary]) -> TableColumn:
    return TableColumn("valid", tuple(f"{row.cycles_valid}/{row.cycles_total}" for row in rows), after="valid")


def _best(rows: Sequence[ExperimentSummary]) -> Iterator[TableColumn]:
    """The probability of being the best by the headline; none where the cycles do not tell it."""
    if any(row.best is not None for row in rows):
        yield TableColumn(BEST, tuple(in_percent(row.best) for row in rows))


def _slo(rows: Sequence[ExperimentSummary]) -> TableColumn:
    return TableColumn(SLO, tuple((row.slo and row.slo.cell) or "-" for row in rows), before=SLO, left=True)


def _spread(headline: str, rows: Sequence[ExperimentSummary]) -> Iterator[TableColumn]:
    """The interquartile range of the headline over the cycles, relative to it; none where no row has one."""
    found = [row.metrics.get(headline) for row in rows]
    cells = tuple(
        "-" if each is None or each.spread is None or not each.value else f"{each.spread / abs(each.value):.1%}"
        for each in found
    )
    if set(cells) != {"-"}:
        yield TableColumn(SPREAD, cells, SPREAD)
