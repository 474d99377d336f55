"""Summaries of a run: a table for the terminal, and tables and annotations for GitHub Actions.

`Reporting` prints and writes them; `plan` uses `short_path`. One row per experiment: means over valid cycles with
their expanded uncertainty. Tables are for people and may change; the syntax of annotations is GitHub's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.results.terminal import UNCERTAIN, as_markdown, markdown_table, plus_minus, quantity

if TYPE_CHECKING:
    from pytest_llem.results.baselines import Saved
    from pytest_llem.results.gate_report import GateReport
    from pytest_llem.results.summary import ExperimentSummary, MetricSummary

SPREAD = "spread"
HEADER = ("experiment", "valid", "J/output token", "output tokens/s", "energy", SPREAD)
GAP = "  "
LEAST_COLUMNS = 3
"""Columns that stay on the narrowest terminal. Chosen: id, valid cycles and the headline metric."""

LEAST_ID = 24
"""Characters of an id that stay on the narrowest terminal. Chosen: both ends of an id remain recognisable."""

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
ACTIONS_VARIABLE = "GITHUB_ACTIONS"
VERDICTS = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "⚠️ inconclusive",
    "not_comparable": "⚠️ not comparable",
}


def summary_lines(rows: Sequence[ExperimentSummary], run_dir: Path, width: int) -> list[str]:
    """Lines of the table, the notes under it, and where the artifacts are; nothing when nothing was measured."""
    if not rows:
        return []
    lines: list[str] = []
    for study in dict.fromkeys(row.study for row in rows):
        of_study = [row for row in rows if row.study == study]
        cells = [row_cells(row) for row in of_study]
        lines += [f"study {study}", *_align([HEADER, *cells], width), ""]
    fits = any(SPREAD in line.split() for line in lines)
    lines += [*_invalid_notes(rows), *meter_notes(rows, spread=fits)]
    lines.append(f"artifacts: {short_path(run_dir)}")
    return lines


def saved_lines(saved: Saved) -> list[str]:
    """The files of a saved baseline, and what was left out of it."""
    lines = [f"baseline saved: {short_path(path)}" for path in saved.files]
    lines += [
        f"not in the baseline: {study} {experiment}: {reason}" for (study, experiment), reason in saved.refused.items()
    ]
    return lines


def row_cells(row: ExperimentSummary) -> tuple[str, ...]:
    """The cells of an experiment's row, under `HEADER`."""
    headline = row.metrics.get("joules_per_output_token")
    spread = headline.spread if headline and headline.value else None
    return (
        row.experiment_id,
        f"{row.cycles_valid}/{row.cycles_total}",
        _cell(headline, "J"),
        _cell(row.metrics.get("output_tokens_per_s")),
        _cell(row.metrics.get("energy_j"), "J"),
        "-" if headline is None or spread is None else f"{spread / abs(headline.value):.1%}",
    )


def _cell(estimate: MetricSummary | None, unit: str | None = None) -> str:
    if estimate is None:
        return "-"
    if unit is None:
        return plus_minus(estimate.value, estimate.uncertainty)
    return quantity(estimate.value, unit, estimate.uncertainty)


def _align(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Aligned lines no wider than the terminal: first the last columns go, then the middle of long ids."""
    shown = len(HEADER)
    widths = [max(len(row[column]) for row in rows) for column in range(shown)]
    while shown > LEAST_COLUMNS and sum(widths[:shown]) + len(GAP) * (shown - 1) > width:
        shown -= 1
    widths[0] = min(widths[0], max(LEAST_ID, width - sum(widths[1:shown]) - len(GAP) * (shown - 1)))
    lines = []
    for row in rows:
        rest = (cell.rjust(size) for cell, size in zip(row[1:shown], widths[1:shown], strict=True))
        lines.append(GAP.join([_middle_cut(row[0], widths[0]).ljust(widths[0]), *rest]))
    return lines


def _middle_cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _invalid_notes(rows: Sequence[ExperimentSummary]) -> list[str]:
    """How many cycles are not valid, and the codes of why: pytest itself names no reasons of skips without `-rs`."""
    count = sum(row.states.get("invalid", 0) for row in rows)
    codes = dict.fromkeys(reason.partition(":")[0] for row in rows for reason in row.reasons)
    named = ", ".join(code for code in codes if code.isidentifier())
    return [f"not valid: {count} cycle{'s' * (count != 1)} ({named}): `pytest -rs` says more"] if count else []


def meter_notes(rows: Sequence[ExperimentSummary], *, spread: bool = True) -> list[str]:
    """Notes on how to read the numbers; `spread` says whether its column is there."""
    notes = []
    if any(row.metrics for row in rows):
        notes.append(f"mean over valid cycles {UNCERTAIN} expanded uncertainty (95 %): `llem budget` lists its parts")
        notes += [f"{SPREAD}: interquartile range of J/output token"] if spread else []
    if any(f"{UNCERTAIN}?" in cell for row in rows for cell in row_cells(row)):
        notes.append(f"{UNCERTAIN}? is not known, as after a single cycle: `llem budget` says why")
    gains = dict.fromkeys(row.gain_uncertainty_rel for row in rows if row.gain_uncertainty_rel is not None)
    notes += [f"the board's gain error, {gain:.0%}, is apart: the same in all runs on one board" for gain in gains]
    meters = dict.fromkeys((row.meter, row.measured) for row in rows if row.meter is not None)
    for meter, measured in meters:
        if meter == "none":
            notes.append("no energy was measured (meter: none)")
        elif measured:
            notes.append(f"energy measured by {meter}")
        else:
            notes.append(f"energy NOT measured: {meter} from CPU time, fit for trying out, not for publishing")
    return notes


def short_path(path: Path) -> str:
    """A path relative to the current directory, if it is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def write_step_summary(
    rows: Sequence[ExperimentSummary], gates: Sequence[GateReport], notes: Sequence[str], run_dir: Path
) -> None:
    """Append the run's tables to the step summary of GitHub Actions, where there is one."""
    path = os.environ.get(SUMMARY_VARIABLE)
    if path and rows:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write("\n".join(summary_markdown(rows, gates, notes, run_dir.name)) + "\n")


def summary_markdown(
    rows: Sequence[ExperimentSummary], gates: Sequence[GateReport], notes: Sequence[str], run_id: str
) -> list[str]:
    """A table of experiments per study, the notes, and a table of verdicts below what they say together (`notes`)."""
    lines = ["## LLM inference energy", ""]
    for study in dict.fromkeys(row.study for row in rows):
        of_study = [row_cells(row) for row in rows if row.study == study]
        lines += [f"### {as_markdown(study)}", "", *markdown_table(HEADER, of_study), ""]
    lines += [f"_{as_markdown(note)}_  " for note in (*_invalid_notes(rows), *meter_notes(rows))]
    verdicts = [
        (
            gate.experiment_id,
            row.metric,
            VERDICTS[row.status],
            "-" if row.ratio is None else f"{row.ratio:.4g}",
            row.limit,
            row.reason,
        )
        for gate in gates
        for row in gate.rows
    ]
    if verdicts or notes:
        lines += ["", "### Gates", "", *(f"{as_markdown(note)}  " for note in notes), ""]
    if verdicts:
        lines += markdown_table(("experiment", "metric", "verdict", "ratio", "limit", "reason"), verdicts, left=3)
    return [*lines, "", f"Run `{run_id}`"]


def annotation(title: str, message: str, level: str = "error") -> str:
    """A workflow command of GitHub Actions that shows an error (or a warning) at the top of the run."""
    return f"::{level} title={_command(title, properties=True)}::{_command(message)}"


def _command(text: str, *, properties: bool = False) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace(":", "%3A").replace(",", "%2C") if properties else escaped
