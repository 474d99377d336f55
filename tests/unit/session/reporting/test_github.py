"""What GitHub Actions shows: sentences at the line of the study that decided them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow, RunOfBaseline
from pytest_llem.session.reporting.github import workflow_commands, wrong_studies
from pytest_llem.study import Study, load_study

STUDY = """\
name: gates
model: builtin:tiny-llama
engine: transformers
sweep:
  transformers.batch_size: [1, 4]
expect: {joules_per_output_token: "<= 0.5"}
compare:
  fail_if:
    output_tokens_per_s: -30%
"""
FELL = "fell by 88.5 % (90 % interval -89.0 % to -88.0 %), the limit is -30 %"
SLOW = GateRow("output_tokens_per_s", "comparison", "fail", "-30 %", 100.0, 11.5, 0.115, 0.11, 0.12, FELL)
COSTLY = GateRow("joules_per_output_token", "budget", "fail", "<= 0.5", None, 0.62, 1.24, 1.2, 1.3, "is 0.62 J")
MAIN = BaselineNamed("main", (RunOfBaseline("r", "2026-11-01T08:00:00+00:00", "4f2a91c07"),))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study in a folder of the checkout, which is the current directory."""
    path = tmp_path / "studies" / "gates.yaml"
    path.parent.mkdir()
    path.write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    return load_study(path)


def item(outcome: str, text: str = "", **properties: str) -> pytest.TestReport:
    """A report of the gate of `batch_size:1`, or of a cycle where it has no verdict."""
    name = "studies/gates.yaml::test_gate[batch_size:1]"
    report = pytest.TestReport(name, ("studies/gates.yaml", 0, name), {}, outcome, text, "call")  # type: ignore[arg-type]
    report.user_properties = [("llem_study", "gates"), ("llem_experiment", "batch_size:1"), *properties.items()]
    return report


def gate(*rows: GateRow, strict: bool = False) -> GateReport:
    return GateReport("gates", "batch_size:1", rows, strict, MAIN)


def test_a_failed_limit_is_a_sentence_at_the_limits_own_line(study: Study) -> None:
    """The annotation was the whole table of a gate, without a file, titled by a node id."""
    report = item("failed", "a table", llem_verdict="fail")
    slow, costly = workflow_commands([report], [gate(SLOW, COSTLY)], [], [study], study.path.parent.parent)
    assert slow == (
        "::error file=studies/gates.yaml,line=9,title=gates%3A batch_size%3A1::output_tokens_per_s "
        "fell by 88.5 %25 (90 %25 interval -89.0 %25 to -88.0 %25), the limit is -30 %25; "
        "baseline main (1 run of 2026-11-01, commit 4f2a91c)"
    )
    assert costly.startswith("::error file=studies/gates.yaml,line=6,")
    assert costly.endswith("::joules_per_output_token is 0.62 J")


def test_a_limit_of_the_command_line_stands_at_the_sweep(study: Study) -> None:
    row = replace(SLOW, metric="ttft_p50_s")
    (line,) = workflow_commands(
        [item("failed", llem_verdict="fail")], [gate(row)], [], [study], study.path.parent.parent
    )
    assert line.startswith("::error file=studies/gates.yaml,line=4,")


def test_what_could_not_be_judged_warns_and_is_an_error_where_it_fails(study: Study) -> None:
    row = replace(SLOW, status="not_comparable", ratio=None, reason="batch_size 4 -> 1")
    skipped = item("skipped", llem_verdict="not_comparable")
    (line,) = workflow_commands([skipped], [gate(row)], [], [study], study.path.parent.parent)
    assert line.startswith("::warning file=studies/gates.yaml,line=9,")
    assert "::output_tokens_per_s: not comparable: batch_size 4 -> 1; baseline main" in line
    strict = item("failed", llem_verdict="not_comparable")
    (line,) = workflow_commands([strict], [gate(row, strict=True)], [], [study], study.path.parent.parent)
    assert line.startswith("::error ")
    both = [
        line.partition(" ")[0]
        for line in workflow_commands([strict], [gate(row, SLOW)], [], [study], study.path.parent.parent)
    ]
    assert both == ["::warning", "::error"]


def test_a_failed_cycle_stands_at_the_sweep_and_a_users_test_at_its_own_line(study: Study) -> None:
    (line,) = workflow_commands(
        [item("failed", "it broke\n  fix: mend it\n  artifacts: here\n  worker.log ends with: much")],
        [],
        [],
        [study],
        study.path.parent.parent,
    )
    assert line.startswith("::error file=studies/gates.yaml,line=4,title=studies/gates.yaml%3A%3Atest_gate")
    assert line.endswith("::it broke%0A  fix: mend it")
    own = item("failed", "too much")
    own.nodeid, own.location = "tests/test_budget.py::test_budget", ("tests/test_budget.py", 11, "test_budget")
    (line,) = workflow_commands([own], [], [], [study], study.path.parent.parent)
    assert line.startswith("::error file=tests/test_budget.py,line=12,")


def test_files_are_named_from_the_root_of_the_checkout(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub finds no file that is named from a folder below."""
    monkeypatch.setenv("GITHUB_WORKSPACE", str(Path.cwd()))
    monkeypatch.chdir("studies")
    (line,) = workflow_commands(
        [item("failed", llem_verdict="fail")], [gate(SLOW)], [], [study], study.path.parent.parent
    )
    assert line.startswith("::error file=studies/gates.yaml,line=9,")


def test_each_problem_of_a_wrong_study_stands_at_its_line(study: Study) -> None:
    """A study that could not be collected ended the job without any annotation."""
    study.path.write_text(STUDY.replace("-30%", "-30").replace("name:", "nam:"))
    with pytest.raises(StudyError) as caught:
        load_study(study.path)
    reports = [
        pytest.CollectReport("studies/gates.yaml", "failed", text, []) for text in (str(caught.value), "no engine")
    ]
    first, second, whole = wrong_studies(reports, Path.cwd())
    assert first.startswith("::error file=studies/gates.yaml,line=1,title=wrong study::unknown setting 'nam'")
    assert second.startswith("::error file=studies/gates.yaml,line=9,title=wrong study::compare: output_tokens_per_s")
    assert whole == "::error file=studies/gates.yaml,line=1,title=wrong study::no engine"
