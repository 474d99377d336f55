"""What the verdicts of a run say together: a line of gates, findings, and properties in JUnit.

`Reporting` calls it when the run has ended. Texts may change; names of properties not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pytest_llem.job.files import write_bytes
from pytest_llem.results.gate_report import GateReport, gates_line
from pytest_llem.results.run_verdict import RunFinding, explained
from pytest_llem.results.verdict_text import percent
from pytest_llem.session.reporting.summary import Line

if TYPE_CHECKING:
    import pytest

    from pytest_llem.study import Study


def verdict_lines(gates: Sequence[GateReport], findings: Sequence[RunFinding], studies: Iterable[Study]) -> list[Line]:
    """The line of gates, also where there are limits and none was judged, and a line per finding."""
    if gates:
        bad = any(gate.failed for gate in gates)
        colour = "red" if bad else "green" if all(gate.status == "pass" for gate in gates) else "yellow"
        return [Line(gates_line(gates), colour), *(Line(finding.message, "yellow") for finding in findings)]
    experiments = [experiment for study in studies for experiment in study.experiments]
    if any(experiment.expect for experiment in experiments):
        return [Line(gates_line(()), "yellow")]
    if any(experiment.compare for experiment in experiments):
        return [Line(f"{gates_line(())}: the limits of compare need --llem-baseline=NAME", "yellow")]
    return []


def shorten(reports: Iterable[pytest.TestReport], gates: Iterable[GateReport]) -> None:
    """Leave one line of each failed gate's report that the whole run's shift explains: the finding is printed once."""
    alike = _explained(gates)
    for report in reports:
        gate = alike.get(_experiment(report))
        if gate is not None and report.failed:
            report.longrepr = "\n".join(
                f"{row.metric}: {percent(row.ratio)}, limit {row.limit}; the whole run is {percent(row.common)}"
                for row in gate.rows
                if row.status == "fail" and row.ratio and row.common
            )


def note_in_junit(path: Path, gates: Sequence[GateReport], findings: Iterable[RunFinding]) -> None:
    """Add the line of gates and the findings to the suite's properties, where pytest has written the file.

    pytest's own `record_testsuite_property` is no way: it is lost under xdist, and ends before the last gate.
    """
    if not gates or not path.is_file():
        return
    tree = ElementTree.parse(path)
    suite = tree.getroot() if tree.getroot().tag == "testsuite" else tree.getroot().find("testsuite")
    if suite is None:
        return
    properties = suite.find("properties")
    if properties is None:
        properties = ElementTree.Element("properties")
        suite.insert(0, properties)
    for name, value in [("llem_gates", gates_line(gates)), *((f"llem_{each.code}", each.message) for each in findings)]:
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    write_bytes(path, ElementTree.tostring(tree.getroot(), encoding="utf-8", xml_declaration=True))


def is_whole(path: Path) -> bool:
    """Whether a JUnit file is there and was written to its end."""
    try:
        ElementTree.parse(path)
    except (OSError, ElementTree.ParseError):
        return False
    return True


def _explained(gates: Iterable[GateReport]) -> dict[tuple[object, object], GateReport]:
    return {(gate.study, gate.experiment_id): gate for gate in gates if explained(gate)}


def _experiment(report: pytest.TestReport) -> tuple[object, object]:
    """The study and experiment of a gate's report; of other reports nothing that a gate has."""
    properties = dict(report.user_properties)
    if "llem_verdict" not in properties:
        return None, None
    return properties.get("llem_study"), properties.get("llem_experiment")
