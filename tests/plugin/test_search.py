"""A search of the largest load under an SLO, against a server that is a queue, over real sockets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.job.files import read_json
from pytest_llem.results.reading import load
from tests.plugin.serving.bench import SERVER, left
from tests.timed import on_a_clock

CAPACITY = 40.0
"""Requests per second of a queue that serves one in 25 ms."""

STUDY = f"""\
name: found
model: builtin:tiny-llama
engine: openai
workload: {{prompts: 40, input_tokens: 8, output_tokens: 2, arrival: {{process: constant}}}}
slo: {{ttft_s: 0.15, at: 90%}}
measurement:
  min_duration_s: 0.05
  idle: {{duration_s: 0}}
  warmup: {{max_repeats: 0}}
  validity: {{cpu_contended_rel: 1}}
openai:
  command: ["{sys.executable}", "{SERVER}", --model, "{{model}}", --port, "{{port}}", --service, "0.025"]
  enable_prefix_caching: false
sweep:
  workload.arrival.rate_per_s: {{search: {{low: 10, high: 300, tolerance: 50%, max_windows: 6}}}}
expect: {{max_rate_under_slo: ">= 1"}}
execution: {{cycles: 1, cooldown: 0}}
"""


@on_a_clock
def test_a_search_finds_the_load_that_a_queue_can_serve(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are items that take their load from those before them, whichever process measured these.

    A run that went on from an interrupted one measured all again, because saturated windows are not valid.
    """
    monkeypatch.setenv("LLEM_TEST_MARK", str(pytester.path))
    (pytester.path / "found.yaml").write_text(STUDY)

    pytester.runpytest("found.yaml", "--llem-strict", "--llem-meter=none", "-k", "search-2")

    [found] = searches(pytester.path)
    assert [each["step"] for each in found["cycles"]["1"]["windows"]] == [1, 2], "the one before was measured for it"

    second = pytester.runpytest_subprocess(
        "found.yaml", "-v", "-rs", "--llem-resume", "--llem-strict", "--llem-meter=none", "-n", "2"
    )

    _, found = searches(pytester.path)
    cycle = found["cycles"]["1"]
    windows = cycle["windows"]
    assert cycle["ending"] == "found", cycle
    assert cycle["answer_low"] <= cycle["answer"] <= cycle["answer_high"]
    assert cycle["answer"] == pytest.approx(CAPACITY, rel=0.4)
    reused = [read_json(run_of(pytester.path) / each["directory"] / "state.json") for each in windows[:2]]
    assert all(state["source_run"] for state in reused), "windows of the run before are reused, saturated ones too"
    assert len(windows) < 6
    second.stdout.fnmatch_lines(["*not needed: the largest load under the SLO is * requests/s (*"])
    assert "test_experiment" not in "".join(line for line in second.outlines if "FAILED" in line)

    [result] = load(run_of(pytester.path))
    assert result.experiment.id == "rate_per_s:search"
    assert result.search is not None
    assert result.search.max_rate_per_s == cycle["answer"]
    assert result.slo is not None
    assert result.slo.share is not None
    assert result.slo.share >= 0.9, "the result is that of a window that kept the SLO"
    [row] = json.loads((run_of(pytester.path) / "summary.json").read_text())["experiments"]
    assert row["metrics"]["max_rate_under_slo"]["value"] == pytest.approx(cycle["answer"])
    assert left(pytester.path) == []


def test_a_window_that_is_selected_alone_says_that_those_before_it_failed(pytester: pytest.Pytester) -> None:
    """It was skipped as not needed, so that a run in which nothing could be measured was green; and so was its gate."""
    before, swept = STUDY.partition("openai:\n")[0], STUDY.partition("sweep:")[2]
    nowhere = "openai: {base_url: http://127.0.0.1:9/v1, ready_timeout_s: 0.1}"
    (pytester.path / "found.yaml").write_text(f"{before}{nowhere}\nsweep:{swept}")

    run = pytester.runpytest("found.yaml", "--llem-meter=none", "-k", "search-5 or test_gate")

    run.assert_outcomes(failed=2)
    run.stdout.fnmatch_lines(["*found[[]rate_per_s:search-c1[]]: failed*", "*nothing answers at*"])
    [found] = searches(pytester.path)
    assert found["cycles"]["1"]["ending"] == "given_up"


def run_of(path: Path) -> Path:
    return max(path.glob("llem-results/*/run.json")).parent


def searches(path: Path) -> list[Any]:
    """The searches of the runs so far, in their order."""
    return [read_json(each) for each in sorted(path.glob("llem-results/*/found/*/search.json"))]
