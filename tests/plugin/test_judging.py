"""Gates, baselines, resume, optional cycles and the breaker, as test items on an engine that is ready at once."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import pytest

from tests.timed import on_a_clock

Write = Callable[..., None]

STUDY = """\
name: gates
engine: faulty
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: {seconds}, idle: {{duration_s: 0.02}}, warmup: {{max_repeats: 1}}}}
sweep:
  model: [{models}]
execution: {{cycles: {cycles}, retries: 0{execution}}}
{more}
"""

RESTED = """\
import pathlib

def pytest_runtest_setup(item):
    if item.name.startswith("test_gate"):
        pathlib.Path("tired.now").unlink(missing_ok=True)
"""

STOP_AFTER_ONE = """\
def pytest_runtest_logfinish(nodeid):
    session.shouldstop = "enough"

def pytest_sessionstart(session):
    globals()["session"] = session
"""


@pytest.fixture
def write(pytester: pytest.Pytester) -> Write:
    def write(
        more: str = "", *, models: str = "none", cycles: int = 3, execution: str = "", seconds: float = 0.05
    ) -> None:
        text = STUDY.format(models=models, cycles=cycles, execution=execution, more=more, seconds=seconds)
        (pytester.path / "gates.yaml").write_text(text)

    return write


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest("--llem-study=gates.yaml", *arguments)


def manifest(pytester: pytest.Pytester) -> dict[str, list[dict[str, object]]]:
    newest = max(pytester.path.glob("llem-results/*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    data: dict[str, list[dict[str, object]]] = json.loads(newest.read_text())
    return data


def measured(pytester: pytest.Pytester) -> int:
    return len(list(pytester.path.glob("llem-results/*/gates/*/c*/measurement.json")))


def test_without_budget_or_baseline_there_are_no_gates(pytester: pytest.Pytester, write: Write) -> None:
    write("compare: {fail_if: {output_tokens_per_s: -5%}}")
    result = run(pytester, "--collect-only", "-q")
    assert "test_gate" not in result.stdout.str()


def test_a_budget_that_holds_passes_and_one_that_does_not_fails_with_a_table(
    pytester: pytest.Pytester, write: Write
) -> None:
    write('expect: {output_tokens_per_s: ">= 1"}')
    run(pytester).assert_outcomes(passed=4)
    write('expect: {output_tokens_per_s: ">= 1000000"}')
    result = run(pytester)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "output_tokens_per_s is */s (90 % interval */s to */s), the budget is >= 1000000/s",
            "gate *verdict *now *limit*",
            "output_tokens_per_s *fail*>= 1e+06*",
        ]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_gate_alone_measures_what_is_missing_and_nothing_twice(pytester: pytest.Pytester, write: Write) -> None:
    write('expect: {output_tokens_per_s: ">= 1"}')
    run(pytester, "-k", "test_gate").assert_outcomes(passed=1)
    assert measured(pytester) == 3


def test_a_gate_over_failed_cycles_is_inconclusive_and_fails_alone_or_when_strict(
    pytester: pytest.Pytester, write: Write
) -> None:
    """Beside its cycles' items, which fail, it is skipped; alone it would leave a run without a valid cycle green."""
    write('expect: {output_tokens_per_s: ">= 1"}', models="exception")
    result = run(pytester)
    assert result.parseoutcomes()["skipped"] == 1
    result.stdout.fnmatch_lines(["gates: 1 inconclusive (no cycle is valid)"])
    run(pytester, "-k", "test_gate").assert_outcomes(failed=1)
    run(pytester, "-k", "test_gate", "--llem-strict").assert_outcomes(failed=1)


def test_what_failed_is_measured_once_more_before_it_is_red(pytester: pytest.Pytester, write: Write) -> None:
    """A machine that was hot while the cycles ran made identical code red."""
    experiments = """\
experiments:
  - {id: hot, model: tired, expect: {output_tokens_per_s: ">= 120"}}
  - {id: bad, model: none, expect: {output_tokens_per_s: ">= 1000000"}}"""
    write(experiments, models="exception", execution=", confirm: true, cooldown: 0, isolation: experiment")
    (pytester.path / "tired.now").touch()
    (pytester.path / "conftest.py").write_text(RESTED)
    chosen = ("-k", "hot or bad")
    run(pytester, "--collect-only", *chosen).stdout.fnmatch_lines(
        ["  confirm: 3 more cycles for each gate that fails*"]
    )
    result = run(pytester, *chosen, "-rs", "--llem-save-baseline=main")
    result.assert_outcomes(passed=6, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "output_tokens_per_s is *; confirmed: */s in the first 3 cycles, */s in 3 more",
            "gates: 1 failed (bad), 1 inconclusive (not confirmed)",
            "SKIPPED *not confirmed: */s in the first 3 cycles, */s in 3 more; the budget is >= 120",
        ]
    )
    assert measured(pytester) == 6
    ran = manifest(pytester)
    assert [item["cycle"] for item in ran["confirming"]] == [4, 5, 6] * 2
    assert len(ran["items"]) == 6
    (directory,) = pytester.path.glob("llem-results/*/")
    facts = [
        json.loads((directory / str(item["directory"]) / "result.json").read_text())["runner"]["facts"]
        for item in ran["confirming"]
    ]
    assert [fact["engine_reused"] for fact in facts] == [False, True, True] * 2, (
        "the planned cycles' engine is not theirs"
    )
    rows = json.loads((directory / "summary.json").read_text())["experiments"]
    assert [row["metrics"]["output_tokens_per_s"]["n"] for row in rows] == [3, 3]
    assert 'name="llem_first_verdict" value="fail"' in (directory / "junit.xml").read_text()
    saved = json.loads((pytester.path / "llem-baselines/main/gates.json").read_text())["experiments"]
    assert [len(run["values"]["output_tokens_per_s"]) for run in saved["hot"]["runs"]] == [3]
    again = run(pytester, *chosen, "--llem-resume")
    again.assert_outcomes(passed=6, failed=1, skipped=1)
    sources = [item["source_run"] for item in manifest(pytester)["confirming"]]
    assert sources == [directory.name] * 6


def test_a_saved_baseline_is_a_gate_for_the_next_run(pytester: pytest.Pytester, write: Write) -> None:
    write("compare: {fail_if: {output_tokens_per_s: -99%}}", cycles=5)
    saved = run(pytester, "--llem-save-baseline=main")
    saved.assert_outcomes(passed=5)
    saved.stdout.fnmatch_lines(["baseline saved: *llem-baselines/main/gates.json"])
    run(pytester, "--llem-baseline=main").assert_outcomes(passed=6)
    # What a narrow limit says depends on the machine.
    result = run(pytester, "--llem-baseline=main", "--llem-fail-if=e2el_p50_s:1%", "-k", "test_gate")
    assert sum(result.parseoutcomes().get(word, 0) for word in ("passed", "skipped", "failed")) == 1


def test_a_run_that_stopped_early_tells_what_it_planned_and_is_no_baseline(
    pytester: pytest.Pytester, write: Write
) -> None:
    """The table said 1/1, and its one cycle became the baseline."""
    write()
    (pytester.path / "conftest.py").write_text(STOP_AFTER_ONE)
    result = run(pytester, "--llem-save-baseline=main")
    result.stdout.fnmatch_lines(["* 1/3 *", "not in the baseline: gates *: 1 of 3 cycles"])
    (summary,) = pytester.path.glob("llem-results/*/summary.csv")
    assert ",1,3," in summary.read_text()


def test_a_baseline_that_is_not_there_is_a_usage_error(pytester: pytest.Pytester, write: Write) -> None:
    write()
    result = run(pytester, "--llem-baseline=missing")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llem-baseline=missing*no baseline 'missing'*", "*--llem-save-baseline*"])


@pytest.mark.parametrize("limit", ["nonsense:5%", "output_tokens_per_s", "output_tokens_per_s:often"])
def test_a_wrong_limit_is_a_usage_error(pytester: pytest.Pytester, write: Write, limit: str) -> None:
    write()
    result = run(pytester, f"--llem-fail-if={limit}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert limit in result.stderr.str()


def test_resume_measures_only_what_is_not_there_yet(pytester: pytest.Pytester, write: Write) -> None:
    write(models="none, exception")
    run(pytester, "-k", "c1 or c2").assert_outcomes(passed=2, failed=2)
    assert measured(pytester) == 2
    run(pytester, "--llem-resume").assert_outcomes(passed=3, failed=3)
    assert measured(pytester) == 3
    sources = [item["source_run"] for item in manifest(pytester)["items"] if item["state"] == "valid"]
    assert sorted(source is None for source in sources) == [False, False, True]


def test_optional_cycles_are_measured_until_the_headline_is_precise(pytester: pytest.Pytester, write: Write) -> None:
    write(execution=", target_ci: 0.99, max_cycles: 7, headline: output_tokens_per_s", seconds=0.5)
    result = run(pytester, "-rs")
    result.assert_outcomes(passed=5, skipped=2)
    assert measured(pytester) == 5
    result.stdout.fnmatch_lines(["*precise enough: output_tokens_per_s ±99.00% (95 %, scatter alone) after 5 cycles*"])
    # The experiment's value stands in JUnit with the cycle after which it stopped, and is that of all five.
    (directory,) = pytester.path.glob("llem-results/*/")
    (row,) = json.loads((directory / "summary.json").read_text())["experiments"]
    stated = re.findall(r'llem_experiment_output_tokens_per_s" value="([^"]+)', (directory / "junit.xml").read_text())
    assert [float(value) for value in stated] == [row["metrics"]["output_tokens_per_s"]["value"]]
    write(execution=", target_ci: 0.000001, max_cycles: 5, headline: output_tokens_per_s")
    run(pytester).assert_outcomes(passed=5)


def test_what_will_not_heal_is_not_tried_for_ever(pytester: pytest.Pytester, write: Write) -> None:
    write(models="missing", cycles=4)
    result = run(pytester)
    result.assert_outcomes(failed=4)
    assert result.stdout.str().count("not run: ") >= 2
    assert len(list(pytester.path.glob("llem-results/*/gates/*/c*/worker.log"))) == 2
    result = run(pytester, "--llem-no-breaker")
    assert "not run: " not in result.stdout.str()


def test_an_order_of_items_that_asks_gates_first_still_measures_once(pytester: pytest.Pytester, write: Write) -> None:
    write('expect: {output_tokens_per_s: ">= 1"}')
    gate, cycle = "gates.yaml::test_gate[model:none]", "gates.yaml::test_experiment[model:none-c2]"
    result = pytester.runpytest(gate, cycle)
    result.assert_outcomes(passed=2)
    assert measured(pytester) == 3


def test_github_gets_a_summary_and_annotations(
    pytester: pytest.Pytester, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    write('expect: {output_tokens_per_s: ">= 1000000"}', models="none, exception")
    result = run(pytester, "--llem-meter=none")
    text = summary.read_text()
    assert "| none | " in text
    assert "| model:none | output_tokens_per_s | ❌ fail |" in text
    assert "no energy was measured" in text
    errors = [line for line in result.outlines if line.startswith("::error file=gates.yaml,line=")]
    assert len(errors) == 4, "of three failed cycles and a gate; the other one could not be judged"
    assert "the faulty engine raised this" in errors[0]


def test_what_equal_runs_differ_by_is_measured_and_then_used(pytester: pytest.Pytester, write: Write) -> None:
    write("compare: {fail_if: {output_tokens_per_s: -60%}}", models="none")
    command = [sys.executable, "-m", "pytest_llem.cli", "aa", "gates.yaml", "--runs", "3"]
    done = pytester.run(*command, "--pytest=-q -p no:cacheprovider")
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        ["gates: 3 equal runs", "output_tokens_per_s *", "*kept in llem-baselines/gates.aa.json*"]
    )
    kept = json.loads((pytester.path / "llem-baselines/gates.aa.json").read_text())
    assert len(kept["runs"]) == 3
    assert kept["metrics"]["output_tokens_per_s"]["within_run"] > 0

    first = next((pytester.path / "llem-results").glob("*/run.json")).parent
    run(pytester, f"--llem-baseline={first}", "-p", "no:cacheprovider")
    gates = [json.loads(path.read_text()) for path in pytester.path.glob("llem-results/*/gates/*/gate.json")]
    assert {row["basis"].partition(" by ")[0] for gate in gates for row in gate["rows"]} == {
        "equal runs were measured to differ"
    }


def test_two_sides_are_measured_in_turn_and_judged_by_pairs(pytester: pytest.Pytester, write: Write) -> None:
    """The limit is far off, since a busy machine scatters the rates by half."""
    write("compare: {fail_if: {output_tokens_per_s: -99%}}", models="none")
    study = (
        (pytester.path / "gates.yaml")
        .read_text()
        .replace("sweep:\n  model: [none]", "experiments:\n  - {id: e, model: MODEL}")
    )
    (pytester.path / "a.yaml").write_text(study.replace("MODEL", "none"))
    (pytester.path / "b.yaml").write_text(study.replace("MODEL", "busy"))
    command = [sys.executable, "-m", "pytest_llem.cli", "ab", "a.yaml", "b.yaml", "--cycles", "3"]
    done = pytester.run(*command, "--a=-q", "--b=-q")
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        ["A, then B, in turn: 3 cycles each", "gates[[]e[]]: pass", "differs: model none -> busy"]
    )
    turns = [line.split(": ")[1] for line in done.stderr.lines if line.startswith("llem ab: ")]
    assert turns == ["A, cycle 1", "B, cycle 1", "B, cycle 2", "A, cycle 2", "A, cycle 3", "B, cycle 3"]
    (kept,) = pytester.path.glob("llem-results/ab-*/ab.json")
    (row,) = json.loads(kept.read_text())["reports"][0]["rows"]
    assert row["basis"] == "3 pairs of cycles in turn"


def earlier(pytester: pytest.Pytester, factor: float = 1.0) -> None:
    """Make the saved baseline one of another run, whose values are `factor` times as large and hardly scatter."""
    path = pytester.path / "llem-baselines" / "main" / "gates.json"
    data = json.loads(path.read_text())
    for experiment in data["experiments"].values():
        (old,) = experiment["runs"]
        level = old["values"]["output_tokens_per_s"][0] * factor
        old["values"] = {"output_tokens_per_s": [level, level * 1.001, level * 0.999]}
        old |= {"run_id": "earlier", "measurements": []}
    path.write_text(json.dumps(data))


def test_the_commonest_regression_is_named_in_a_line_of_gates(
    pytester: pytest.Pytester, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings under the same id gave a skip without a reason in the terminal, and exit code 0."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    entry = """\
compare: {{fail_if: {{output_tokens_per_s: -5%}}{match}}}
experiments: [{{id: mine, model: none, workload: {{prompts: {prompts}}}}}]"""
    write(entry.format(prompts=2, match=""), models="exception")
    run(pytester, "-k", "mine", "--llem-save-baseline=main")
    write(entry.format(prompts=3, match=""), models="exception")
    result = run(pytester, "-k", "mine", "--llem-baseline=main", "--junitxml=junit.xml")
    line = "gates: 1 not comparable (prompts 2 -> 3); baseline main (1 run of "
    result.stdout.fnmatch_lines([f"{line}*"])
    warnings = [line for line in result.outlines if line.startswith("::warning file=gates.yaml,line=")]
    assert len(warnings) == 1
    assert "prompts 2 -> 3" in warnings[0]
    assert f'<property name="llem_gates" value="{line}' in (pytester.path / "junit.xml").read_text().replace(
        "&gt;", ">"
    )
    assert result.ret == pytest.ExitCode.OK
    again = ("-k", "mine", "--llem-baseline=main", "--llem-resume")
    strict = run(pytester, *again, "--llem-strict", "--llem-save-baseline=renewed")
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
    strict.stdout.fnmatch_lines(["baseline saved: *renewed*"])  # else a strict run could never renew it
    work = "[prompts_hash, input_tokens, output_tokens]"
    write(entry.format(prompts=3, match=f", match: id, allow: {work}"), models="exception")
    earlier(pytester, 1000.0)
    result = run(pytester, *again)
    result.stdout.fnmatch_lines(["gates: 1 failed (mine); baseline main (1 run of *"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_limits_without_a_baseline_are_said_to_judge_nothing(pytester: pytest.Pytester, write: Write) -> None:
    write("compare: {fail_if: {output_tokens_per_s: -5%}}", cycles=1)
    run(pytester).stdout.fnmatch_lines(["gates: none judged: *--llem-baseline=NAME"])


@on_a_clock
def test_a_shift_of_the_whole_run_is_told_once(
    pytester: pytest.Pytester, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gate fails on its own, and the run says that they fail alike, where it printed a table per gate."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    seeds = "\n  workload.seed: [1, 2, 3, 4, 5, 6]\ncompare: {fail_if: {output_tokens_per_s: -5%}}"
    write(models=f"none]{seeds}\ntags: [all")
    run(pytester, "--llem-save-baseline=main")
    earlier(pytester, 1000.0)
    result = run(pytester, "--llem-baseline=main", "--llem-resume", "-k", "test_gate", "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=6)
    result.stdout.fnmatch_lines(
        [
            "gates: 6 failed (*, 3 more); baseline main (1 run of *",
            "the whole run is -99.9 % in output_tokens_per_s *6 of 6 failed gates*",
        ]
    )
    text = result.stdout.str()
    assert "gate  " not in text, "the tables are in gate.json"
    assert text.count("; the whole run is -99.9 %") == 6
    errors = [line for line in result.outlines if line.startswith("::error")]
    assert len(errors) == 1
    assert errors[0].startswith("::error file=gates.yaml,line=8,title=the whole run%3A output_tokens_per_s::")
    assert 'name="llem_common_shift"' in (pytester.path / "junit.xml").read_text()
    newest = max(pytester.path.glob("llem-results/*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    (told,) = (each for each in json.loads(newest.read_text())["findings"] if each["code"] == "common_shift")
    assert (told["failed"], told["explained"]) == (6, 6)
    gates = [json.loads(path.read_text()) for path in newest.parent.glob("*/*/gate.json")]
    assert all(gate["rows"][0]["common"] == told["value"] for gate in gates)
    assert "1 baseline run: " in gates[0]["rows"][0]["basis"]


def test_what_llem_aa_kept_and_cannot_be_read_stops_the_run_at_once(pytester: pytest.Pytester, write: Write) -> None:
    """It once failed every item after its measurement."""
    write(cycles=1)
    (pytester.path / "llem-baselines").mkdir()
    (pytester.path / "llem-baselines/gates.aa.json").write_text("{broken")
    result = run(pytester)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*gates.yaml:1:1: *gates.aa.json: not JSON*", "*fix: measure it again*"])
    assert measured(pytester) == 0
