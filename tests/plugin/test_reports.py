"""What a run leaves for people and other tools: the HTML report, JUnit, GitHub's summary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

# pytester forgets modules that an inner run imported, and this one refuses to be imported twice.
with contextlib.suppress(ImportError):
    import vl_convert as _preimported  # noqa: F401

Write = Callable[..., None]

STUDY = """\
name: reports
engine: faulty
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0.02}}, warmup: {{max_repeats: 1}}}}
sweep:
  model: [{models}]
execution: {{cycles: 3, retries: 0}}
{more}
"""


@pytest.fixture
def write(pytester: pytest.Pytester) -> Write:
    def write(models: str = "none", more: str = "") -> None:
        (pytester.path / "reports.yaml").write_text(STUDY.format(models=models, more=more))

    return write


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return started(pytester, "--llem-study=reports.yaml", *arguments)


def started(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    # xdist's workers get the import path of the process that imported xdist first, without the faulty engine.
    own_process = any(argument.startswith("-n") for argument in arguments)
    return (pytester.runpytest_subprocess if own_process else pytester.runpytest)(*arguments)


@pytest.mark.parametrize("parallel", [(), ("-n2",)], ids=["alone", "xdist"])
def test_the_report_holds_the_runs_numbers_and_verdicts(
    pytester: pytest.Pytester, write: Write, parallel: tuple[str, ...]
) -> None:
    write("none, exception", 'expect: {output_tokens_per_s: ">= 1000000"}')
    result = run(pytester, "--llem-html=made/report.html", *parallel)
    result.assert_outcomes(failed=4, passed=3, skipped=1)
    result.stdout.fnmatch_lines(["report: made/report.html"])
    page = (pytester.path / "made" / "report.html").read_text()
    for part in (
        "model:none",
        "1 gate failed",
        "1 gate inconclusive",
        "3 of 6 cycles valid",
        "--llem-study=reports.yaml",
        "sweep:\n  model: [none, exception]",
        "1e+06",
        "the faulty engine raised this",
        "Energy of reports",
    ):
        assert part in page


def test_a_run_of_which_nothing_succeeded_has_a_report_of_why(pytester: pytest.Pytester, write: Write) -> None:
    write("exception")
    run(pytester, "--llem-html=report.html").stdout.fnmatch_lines(["report: report.html"])
    page = (pytester.path / "report.html").read_text()
    assert "No cycle has a result" in page
    assert "the faulty engine raised this" in page


def test_a_report_that_cannot_be_written_costs_the_exit_code_and_nothing_else(
    pytester: pytest.Pytester, write: Write
) -> None:
    """The last thing a run does must not lose what it measured."""
    write()
    pytester.makeconftest('def pytest_collection_finish(): open("in-the-way", "w").close()')
    result = run(pytester, "--llem-html=in-the-way/report.html")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["--llem-html: *in-the-way/report.html: cannot be written: *", "fix: *"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (manifest,) = pytester.path.glob("llem-results/*/run.json")
    assert json.loads(manifest.read_text())["finished_at"] is not None


def test_a_report_that_is_a_directory_is_refused_before_anything_runs(pytester: pytest.Pytester, write: Write) -> None:
    write()
    result = run(pytester, "--llem-html=.")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llem-html=.: not a file*"])
    assert not (pytester.path / "llem-results").exists()


def test_a_saved_baseline_is_compared_in_the_report(pytester: pytest.Pytester, write: Write) -> None:
    """It had verdicts alone, and no numbers; nor may the run that is saved into it be compared with itself."""
    write()
    run(pytester, "--llem-save-baseline=main")
    run(pytester, "--llem-baseline=main", "--llem-save-baseline=main", "--llem-html=report.html")
    page = (pytester.path / "report.html").read_text()
    assert "output_tokens_per_s" in page.partition("Against the baseline</caption>")[2].partition("</table>")[0]
    assert "same measurements" not in page
    assert "Verdicts on budgets and against the baseline" in page


@pytest.mark.parametrize("parallel", [(), ("-n2",)], ids=["alone", "xdist"])
def test_a_users_own_tests_get_manifest_summary_and_report(
    pytester: pytest.Pytester, write: Write, parallel: tuple[str, ...]
) -> None:
    """Under xdist the controller collects nothing, and learns from its workers that there is a run to report."""
    write()
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llem_study("reports.yaml")
        def test_mine(llem_result):
            assert llem_result.throughput.output_tokens_per_s > 1
        """
    )
    result = started(pytester, "--llem-html=report.html", *parallel)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["report: report.html"])
    (manifest,) = pytester.path.glob("llem-results/*/run.json")
    assert json.loads(manifest.read_text())["finished_at"] is not None
    assert Path(manifest.parent, "summary.csv").exists()


XUNIT2 = {
    "testsuites": ({"name"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "errors", "failures", "skipped", "time", "timestamp", "hostname"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "testcase": (
        {"name", "classname", "time"},
        ["skipped", "error", "failure", "rerunFailure", "rerunError", "flakyFailure", "system-out", "system-err"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "skipped": ({"type", "message"}, []),
    "failure": ({"type", "message"}, []),
    "error": ({"type", "message"}, []),
}
"""The Jenkins xUnit plugin's schema, as far as pytest uses it: attributes and children of each element."""


def check_xunit2(element: ElementTree.Element) -> None:
    """Fails on an element or attribute that the schema does not have, or a count that does not add up."""
    attributes, children = XUNIT2[element.tag]
    assert set(element.attrib) <= attributes, element.tag
    for child in element:
        assert child.tag in children, f"{child.tag} in {element.tag}"
        check_xunit2(child)
    if element.tag == "testcase":
        assert {"name", "classname"} <= set(element.attrib)
        assert float(element.attrib["time"]) >= 0
    if element.tag == "testsuite":
        assert int(element.attrib["tests"]) == len(element.findall("testcase"))
        for counted, tag in (("failures", "failure"), ("skipped", "skipped"), ("errors", "error")):
            assert int(element.attrib[counted]) == len(element.findall(f"testcase/{tag}"))


def test_junit_keeps_to_the_xunit2_schema_apart_from_properties(pytester: pytest.Pytester, write: Write) -> None:
    """Passed, failed and skipped items: what Jenkins' viewer and others like it accept, and properties per test."""
    write("none, exception", 'expect: {output_tokens_per_s: ">= 1"}')
    study = next(pytester.path.glob("*.yaml"))
    study.write_text(study.read_text().replace("retries: 0", "retries: 0, headline: requests_per_s"))
    run(pytester).assert_outcomes(passed=4, failed=3, skipped=1)
    (file,) = pytester.path.glob("llem-results/*/junit.xml")
    tree = ElementTree.parse(file)
    verdicts = set()
    for case in tree.iter("testcase"):
        (properties,) = case.findall("properties")
        found = {entry.attrib["name"]: entry.attrib["value"] for entry in properties}
        assert len(found) == len(properties), "a name stands once"
        assert found["llem_study"] == "reports"
        if "llem_verdict" in found:
            assert found["llem_budget_output_tokens_per_s"] == found["llem_verdict"]
        elif found["llem_status"] == "valid":
            assert float(found["llem_requests_per_s"]) > 0, "the headline of the study"
        verdicts.add(found.get("llem_status") or found["llem_verdict"])
        case.remove(properties)
    assert verdicts == {"valid", "failed", "pass", "inconclusive"}
    check_xunit2(tree.getroot())
