"""What GitHub Actions shows of a run: tables in the step's summary, and annotations at lines of the study.

`Reporting` calls it. Texts may change; the syntax of workflow commands is GitHub's, and so are its variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.results.gate_report import GateReport
from pytest_llem.results.run_verdict import RunFinding, explained
from pytest_llem.results.terminal import UNCERTAIN, as_markdown, markdown_table
from pytest_llem.session.reporting.summary import by_study, notes, of_carried, of_impact, of_optima, of_races
from pytest_llem.session.reporting.table import table_of
from pytest_llem.study.problems import Location

if TYPE_CHECKING:
    import pytest

    from pytest_llem.results.carry_over import CarryOver
    from pytest_llem.results.device_optimum import Optimum
    from pytest_llem.results.manifest import StudyPlan
    from pytest_llem.results.optimize_record import OptimizeRecord
    from pytest_llem.results.summary import ExperimentSummary
    from pytest_llem.study import Study

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
ACTIONS_VARIABLE = "GITHUB_ACTIONS"
WORKSPACE_VARIABLE = "GITHUB_WORKSPACE"
VERDICTS = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "⚠️ inconclusive",
    "not_comparable": "⚠️ not comparable",
}
PROBLEM = re.compile(r"^(.+?):(\d+):\d+: (.+)$", re.MULTILINE)
"""A line of a `StudyError`: file, line and what is wrong there, which stands behind the column."""


def write_step_summary(
    rows: Sequence[ExperimentSummary],
    plans: Sequence[StudyPlan],
    gates: Sequence[GateReport],
    verdicts: Sequence[str],
    run_dir: Path,
    optima: Sequence[Optimum] = (),
    carried: Sequence[CarryOver] = (),
    races: Sequence[OptimizeRecord] = (),
) -> None:
    """Append the run's tables to the step summary of GitHub Actions, where there is one."""
    path = os.environ.get(SUMMARY_VARIABLE)
    if path and rows:
        with Path(path).open("a", encoding="utf-8") as stream:
            lines = summary_markdown(rows, plans, gates, verdicts, run_dir.name, optima, carried, races)
            stream.write("\n".join(lines) + "\n")


def summary_markdown(
    rows: Sequence[ExperimentSummary],
    plans: Sequence[StudyPlan],
    gates: Sequence[GateReport],
    verdicts: Sequence[str],
    run_id: str,
    optima: Sequence[Optimum] = (),
    carried: Sequence[CarryOver] = (),
    races: Sequence[OptimizeRecord] = (),
) -> list[str]:
    """A table of experiments per study, the notes, and a table of gates below what they say together (`verdicts`)."""
    lines = ["## LLM inference energy", ""]
    unknown = False
    for plan, of_study in by_study(rows, plans):
        table = table_of(of_study, plan)
        cells = list(zip(*(column.cells for column in table.columns), strict=True))
        unknown = unknown or any(f"{UNCERTAIN}?" in cell for row in cells for cell in row)
        lines += [f"### {as_markdown(plan.title or plan.name)}", ""]
        lines += [as_markdown(", ".join(table.shared)), ""] if table.shared else []
        lines += [*markdown_table([column.head for column in table.columns], cells, left=len(table.names)), ""]
        said = [
            *of_races(races, plan.name),
            *of_impact(of_study, plan),
            *of_optima(optima, plan.name),
            *of_carried(carried, plan),
        ]
        lines += [*(f"{as_markdown(line)}  " for line in said), ""] if said else []
    ranked = any(row.best is not None for row in rows)
    lines += [f"_{as_markdown(note.text)}_  " for note in notes(rows, spread=True, unknown=unknown, best=ranked)]
    judged = [
        (gate.experiment_id, row.metric, VERDICTS[row.status], row.cells()[4], row.limit, row.reason)
        for gate in gates
        for row in gate.rows
    ]
    if judged or verdicts:
        lines += ["", "### Gates", "", *(f"{as_markdown(line)}  " for line in verdicts), ""]
    if judged:
        lines += markdown_table(("experiment", "metric", "verdict", "change", "limit", "reason"), judged, left=6)
    return [*lines, "", f"Run `{run_id}`"]


def workflow_commands(
    reports: Iterable[pytest.TestReport],
    gates: Sequence[GateReport],
    findings: Iterable[RunFinding],
    studies: Sequence[Study],
    rootpath: Path,
) -> Iterator[str]:
    """An error per limit that was exceeded and per failed item, a warning per gate that could not judge.

    What a common shift explains is one error for all. Each stands at the line of the study that decided it.
    """
    by_name = {study.name: study for study in studies}
    judged = {(gate.study, gate.experiment_id): gate for gate in gates}
    for found in findings:
        if found.explained:
            place = _place(by_name.get(found.study), f"compare.fail_if.{found.metric}")
            yield _annotation("error", f"the whole run: {found.metric}", found.message, place)
    for report in reports:
        properties = {name: str(value) for name, value in report.user_properties}
        of = properties.get("llem_study", ""), properties.get("llem_experiment", "")
        gate = judged.get(of) if "llem_verdict" in properties else None
        if gate is not None and not (report.failed and explained(gate)):
            yield from _of_gate(gate, by_name.get(gate.study), failed=report.failed)
        elif gate is None and report.failed:
            # The worker's log is in the job's own, and would fill the page here.
            told = report.longreprtext.partition("\n  artifacts: ")[0]
            yield _annotation("error", report.nodeid, told, _place_of_item(report, studies, rootpath))


def wrong_studies(reports: Iterable[pytest.CollectReport], rootpath: Path) -> Iterator[str]:
    """An error for each line of a study that is wrong, and one at its beginning where the problem has no line."""
    for report in reports:
        told = report.longreprtext.strip()
        for file, line, message in PROBLEM.findall(told) or [(str(rootpath / report.nodeid), "1", told)]:
            yield _annotation("error", "wrong study", message, Location(file, int(line)))


def _of_gate(gate: GateReport, study: Study | None, *, failed: bool) -> Iterator[str]:
    undecided = "error" if failed and (gate.strict or gate.status != "fail") else "warning"
    for row in gate.rows:
        if row.status != "pass":
            budget = row.kind == "budget"
            against = "" if budget or gate.baseline is None else f"; baseline {gate.baseline}"
            place = _place(study, f"{'expect' if budget else 'compare.fail_if'}.{row.metric}")
            level = "error" if row.status == "fail" else undecided
            yield _annotation(level, f"{gate.study}: {gate.experiment_id}", row.sentence() + against, place)


def _place_of_item(report: pytest.TestReport, studies: Iterable[Study], rootpath: Path) -> Location | None:
    """Where an item was written: in a study its sweep or its experiments, else the test."""
    file = (rootpath / report.nodeid.partition("::")[0]).resolve()
    study = next((study for study in studies if study.path == file), None)
    return Location(str(file), (report.location[1] or 0) + 1) if study is None else _place(study, "sweep")


def _place(study: Study | None, setting: str) -> Location | None:
    """Where a setting was written or, where the command line gave it, the sweep, the experiments or the study."""
    if study is None:
        return None
    beginning = Location(str(study.path))
    found = (study.locate(each) for each in (setting, "sweep", "experiments"))
    return next((place for place in found if (place.line, place.column) != (1, 1)), beginning)


def _annotation(level: str, title: str, message: str, place: Location | None) -> str:
    """A workflow command of GitHub Actions that shows an error or a warning at a line, and at the top of the run."""
    properties = {"title": title}
    if place is not None:
        root = os.environ.get(WORKSPACE_VARIABLE) or Path.cwd()
        file = Path(os.path.relpath(Path(place.file).resolve(), root)).as_posix()
        properties = {"file": file, "line": str(place.line), **properties}
    said = ",".join(f"{name}={_escaped(value, in_property=True)}" for name, value in properties.items())
    return f"::{level} {said}::{_escaped(message)}"


def _escaped(text: str, *, in_property: bool = False) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace(":", "%3A").replace(",", "%2C") if in_property else escaped
