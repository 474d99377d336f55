"""A study with `optimize`, run in every way: its items, its answer, and that this is the same however it came about.

The metrics are computed from what is asked and the cycle's number, so that the answer is known before anything runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_llem.results.layout import run_directories
from pytest_llem.results.optimize_record import path_of, read_record
from pytest_llem.results.report.content import gather_content

STUDY = """\
name: race
model: none
engine: faulty
workload: {{prompts: 2, input_tokens: 8}}
measurement: {{min_duration_s: 0.02, idle: {{duration_s: 0.02}}, warmup: {{max_repeats: 1}}}}
measurement.validity.cpu_contended_rel: 1
sweep: {{workload.output_tokens: [4, 8, 16, 32]}}
execution: {{retries: 0, cooldown: 0}}
optimize:
  {{minimize: planned_cost, subject_to: {{planned_delay: "<= {delay}"}}, max_cycles: {cycles}, regret: {regret}}}
"""
METRICS = """
import hashlib

from pytest_llem import Metric

COSTS = {4: 1.0, 8: 1.03, 16: 1.4, 32: 0.5}


def tokens(result):
    return result.experiment.config["workload"]["output_tokens"]


def noisy(value, result):
    drawn = hashlib.sha256(f"{tokens(result)} {result.cycle}".encode()).digest()[0]
    return value * (1 + 0.02 * (drawn / 255 - 0.5))


COST = Metric("planned_cost", "1", False, "Cost", False, of=lambda result: noisy(COSTS[tokens(result)], result))
DELAY = Metric("planned_delay", "s", False, "Delay", False, of=lambda result: noisy(tokens(result), result))
"""
OWN_TESTS = """
import pytest

@pytest.mark.llem_study("race.yaml")
def test_each(llem_result):
    assert llem_result.cycle

@pytest.mark.llem_study("race.yaml")
def test_all(llem_results):
    print("cycles of", llem_results[0].experiment.id, len(llem_results))
"""
BEST, NEAR, DROPPED, BEYOND = (f"output_tokens:{tokens}" for tokens in (4, 8, 16, 32))


@pytest.fixture
def metrics(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two metrics of a package that is installed for this test alone."""
    (pytester.path / "planned.py").write_text(METRICS)
    facts = pytester.path / "planned-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: planned\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[pytest_llem.metrics]\nplanned_cost = planned:COST\nplanned_delay = planned:DELAY\n"
    )
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), os.environ["PYTHONPATH"]]))


def write(pytester: pytest.Pytester, *, delay: float = 20, cycles: int = 5, regret: str = "1%") -> None:
    (pytester.path / "race.yaml").write_text(STUDY.format(delay=delay, cycles=cycles, regret=regret))


def answer(pytester: pytest.Pytester) -> bytes:
    """The bytes of the newest run's record."""
    return newest(pytester).read_bytes()


def newest(pytester: pytest.Pytester) -> Path:
    """The record of the newest run; several begin within a second."""
    return path_of(run_directories(pytester.path / "llem-results")[0], "race")


def measured(pytester: pytest.Pytester) -> int:
    """Cycles that the newest run has measured itself, of which each has a log."""
    return len(list(newest(pytester).parent.glob("*/c*/worker.log")))


def test_a_race_comes_to_one_answer_in_all_ways_of_running(pytester: pytest.Pytester, metrics: None) -> None:
    """A decision that looked at anything but results of earlier rounds would differ between these.

    The first run is killed, the second takes its results over and measures the rest; the others measure nothing.
    """
    write(pytester)
    arguments = [sys.executable, "-m", "pytest", "--llem-study=race.yaml", "-p", "no:cacheprovider"]
    killed = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=pytester.path)
    until = time.monotonic() + 120
    while len(list(pytester.path.glob("llem-results/*/race/*/c*/result.json"))) < 5:
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    resumed = pytester.runpytest("--llem-study=race.yaml", "--llem-resume", "-rs")
    record = read_record(newest(pytester))
    assert (record.status, record.recommended, record.rounds) == ("found", BEST, record.settings[BEST].fate.cycles)
    assert {id: each.fate.state for id, each in record.settings.items()} == {
        BEST: "in",
        NEAR: record.settings[NEAR].fate.state,
        DROPPED: "dropped",
        BEYOND: "infeasible",
    }
    needed = sum(each.fate.cycles for each in record.settings.values())
    assert needed == record.measured < record.grid == 20
    assert 0 < measured(pytester) < needed, "the killed run's cycles are taken over, and only needed ones measured"
    resumed.assert_outcomes(passed=needed + 1, skipped=20 - needed)
    resumed.stdout.fnmatch_lines(
        [
            "best setting, minimize planned_cost subject to planned_delay <= 20:*",
            f"infeasible: {BEYOND}: *",
            f"{needed} of 20 cycles (*",
            "SKIPPED*beyond planned_delay <= 20: *",
            "SKIPPED*cannot be the best: *",
        ]
    )
    expected = answer(pytester)
    run = newest(pytester).parents[1]
    junit = (run / "junit.xml").read_text()
    assert f'name="llem_optimum" value="{BEST}"' in junit
    assert 'name="llem_optimum_status" value="found"' in junit

    rows = json.loads((run / "summary.json").read_text())["experiments"]
    assert {row["best"] for row in rows} == {None}, "100 % of being the best, of a setting beyond the limit"
    assert {row.best for row in gather_content([run]).experiments} == {None}

    several = pytester.runpytest_subprocess("--llem-study=race.yaml", "--llem-resume", "-n2")
    several.assert_outcomes(passed=needed + 1, skipped=20 - needed)
    assert (answer(pytester), measured(pytester)) == (expected, 0)

    pytester.makepyfile(test_own=OWN_TESTS)
    own = pytester.runpytest("test_own.py", "--llem-resume", "-s")
    own.assert_outcomes(passed=needed + 4, skipped=20 - needed)
    own.stdout.fnmatch_lines([f"*cycles of {BEYOND} {record.settings[BEYOND].fate.cycles}*"])
    assert (answer(pytester), measured(pytester)) == (expected, 0)

    some = pytester.runpytest("--llem-study=race.yaml", "--llem-resume", "-k", "tokens:4 or tokens:16")
    among = read_record(newest(pytester))
    assert (set(among.settings), set(among.left_out)) == ({BEST, DROPPED}, {NEAR, BEYOND})
    some.stdout.fnmatch_lines(["* among 2 of 4 settings"])

    # Budgets change which cycles are needed, and no measurement: the answer is another one.
    write(pytester, cycles=2, regret="0.0001%")
    answered = ("--llem-study=race.yaml", "--llem-resume", "-k", "test_optimum", "-rs")
    pytester.runpytest(*answered).stdout.fnmatch_lines(["SKIPPED*inconclusive: *"])
    write(pytester, delay=1)
    none = pytester.runpytest(*answered)
    none.assert_outcomes(failed=1, deselected=20)
    none.stdout.fnmatch_lines(["best setting, minimize planned_cost subject to planned_delay <= 1: none"])
    assert measured(pytester) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--llem-shard=1/2"], "*race.yaml:4:1: optimize cannot be combined with --llem-shard*"),
        (["--llem-cycles=1"], "*race.yaml:4:1: optimize: the run asks for 1 of the 2 cycles*"),
        (["--llem-order=sequential"], "*race.yaml:4:1: optimize cannot be combined with the order sequential*"),
        (["--llem-meter=none"], "*race.yaml:4:12: optimize.minimize needs a meter*"),
    ],
)
def test_options_without_an_answer_are_refused_before_anything_runs(
    pytester: pytest.Pytester, options: list[str], said: str
) -> None:
    text = "model: none\nengine: faulty\nsweep: {seed: [1, 2]}\noptimize: {minimize: energy_j}\n"
    (pytester.path / "race.yaml").write_text(text)
    result = pytester.runpytest("--llem-study=race.yaml", "--collect-only", *options)
    result.stdout.fnmatch_lines([said])


def test_a_race_that_ends_before_its_first_round_says_so(pytester: pytest.Pytester, metrics: None) -> None:
    """It left no record: summary and report had no word of a race, and its later rounds were not among what is left."""
    write(pytester)
    pytester.makeconftest("def pytest_runtest_call(item):\n    raise KeyboardInterrupt\n")
    result = pytester.runpytest_subprocess("--llem-study=race.yaml")
    result.stdout.fnmatch_lines(["at least 4 of 4 cycles left; *"])
    record = read_record(newest(pytester))
    assert (record.status, record.recommended, record.rounds, len(record.needed)) == ("running", None, 0, 4)
    summary = json.loads((newest(pytester).parents[1] / "summary.json").read_text())
    assert [race["status"] for race in summary["optimize"]] == ["running"]


def test_a_setting_that_cannot_run_is_named_wherever_the_answer_stands(
    pytester: pytest.Pytester, metrics: None
) -> None:
    write(pytester, cycles=2, regret="5%")
    beams = "{id: beams, engine: transformers, transformers: {num_beams: 3, continuous_batching: true}}"
    with (pytester.path / "race.yaml").open("a") as study:
        study.write(f"on_invalid: skip\nexperiments: [{beams}]\n")
    result = pytester.runpytest_subprocess("--llem-study=race.yaml", "-n2", "--llem-html=report.html")
    result.stdout.fnmatch_lines(["left out: beams: cannot run: *", "8 of 8 cycles (100%) in 2 rounds among 4 of 5 *"])
    run = newest(pytester).parents[1]
    (race,) = json.loads((run / "summary.json").read_text())["optimize"]
    assert [*race["left_out"]] == ["beams"]
    assert 'name="llem_optimum_left_out" value="1"' in (run / "junit.xml").read_text()
    assert "1 setting did not take part" in (pytester.path / "report.html").read_text()


def test_a_race_of_which_nothing_is_selected_leaves_no_record(pytester: pytest.Pytester, metrics: None) -> None:
    """It would be said not to be over, of a run that never meant to begin it."""
    write(pytester)
    pytester.makepyfile("def test_other():\n    pass\n")
    pytester.runpytest(
        "--llem-study=race.yaml", "test_a_race_of_which_nothing_is_selected_leaves_no_record.py", "-k", "other"
    )
    assert not [*pytester.path.glob("llem-results/*/race")]
