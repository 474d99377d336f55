"""GitHub Actions: the step summary gets tables, failures become annotations. Nothing happens elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.results.tables import markdown_table
from pytest_llem.session.reporting.table import HEADER, meter_notes, row_cells

if TYPE_CHECKING:
    from pytest_llem.results.judging import GateReport
    from pytest_llem.results.summary import ExperimentSummary

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
ACTIONS_VARIABLE = "GITHUB_ACTIONS"
VERDICTS = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "⚠️ inconclusive",
    "not_comparable": "⚠️ not comparable",
}


def write_step_summary(rows: Sequence[ExperimentSummary], gates: Sequence[GateReport], run_dir: Path) -> None:
    """Append the run's tables to the step summary, where the job has one."""
    path = os.environ.get(SUMMARY_VARIABLE)
    if path and rows:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write("\n".join(summary_markdown(rows, gates, run_dir.name)) + "\n")


def summary_markdown(rows: Sequence[ExperimentSummary], gates: Sequence[GateReport], run_id: str) -> list[str]:
    """A table of experiments per study, the notes, and a table of verdicts."""
    lines = ["## LLM inference energy", ""]
    for study in dict.fromkeys(row.study for row in rows):
        of_study = [row_cells(row) for row in rows if row.study == study]
        lines += [f"### {study}", "", *markdown_table(HEADER, of_study), ""]
    lines += [f"_{note}_  " for note in meter_notes(rows)]
    verdicts = [
        (
            gate.experiment_id,
            row.metric,
            VERDICTS[row.status],
            "-" if row.ratio is None else f"{row.ratio:.4g}",
            row.limit,
            row.reason.replace("\n", " "),
        )
        for gate in gates
        for row in gate.rows
    ]
    if verdicts:
        lines += ["", "### Gates", ""]
        lines += markdown_table(("experiment", "metric", "verdict", "ratio", "limit", "reason"), verdicts, left=3)
    return [*lines, "", f"Run `{run_id}`"]


def annotation(title: str, message: str) -> str:
    """A workflow command that shows an error at the top of the run."""
    return f"::error title={_command(title, properties=True)}::{_command(message)}"


def _command(text: str, *, properties: bool = False) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace(":", "%3A").replace(",", "%2C") if properties else escaped
