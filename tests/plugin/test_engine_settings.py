"""Settings that the installed engine does not take are found before its first cycle, and fail only their own items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pytest_llem.runners.process
from pytest_llem.runners.process import WorkerProcess, WorkerStarter
from pytest_llem.runners.settings_check import check_here
from pytest_llem.study import load_study

STUDY = """\
name: checked
model: builtin:tiny-llama
engine: transformers
dtype: float32
decoding: {do_sample: true}
workload: {prompts: 1, input_tokens: 8, output_tokens: 2}
measurement: {min_duration_s: 0.05, idle: {duration_s: 0}, warmup: {max_repeats: 0}}
experiments:
  - {id: right, transformers: {extra: {typical_p: 0.9}}}
  - id: renamed
    transformers:
      extra: {typical_q: 0.9}
execution: {cycles: 1, retries: 0, timeout_s: 120}
meter: none
"""


def test_a_comparison_that_ends_badly_is_told_and_not_taken_for_consent(tmp_path: Path) -> None:
    starter = WorkerStarter(tmp_path)
    config = load_study(study_file(tmp_path)).experiments[0].config

    def broken(arguments: tuple[str, str], log: Path) -> WorkerProcess:
        return starter.start_check("nothing", ("one", "two"), log)

    report = check_here([config], tmp_path, broken)

    assert report.problems == ()
    assert report.unchecked is not None
    assert "ended with exit code 1: see" in report.unchecked
    assert "No such file" in (tmp_path / "check.log").read_text()


def study_file(directory: Path) -> Path:
    path = directory / "checked.yaml"
    path.write_text(STUDY)
    return path


@pytest.mark.engine
def test_a_setting_that_the_engine_lacks_fails_its_own_items_with_place_and_suggestion(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is imported once, by the fork server: a comparison in an interpreter of its own took seconds more."""
    monkeypatch.setattr(pytest_llem.runners.process, "SpawnedProcess", None)
    study_file(pytester.path)

    result = pytester.runpytest("--llem-study=checked.yaml")

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*checked.yaml:12:15: transformers.extra.typical_q: the installed engine has no argument*",
            "*did you mean 'typical_p'?*",
        ]
    )
    [run] = (pytester.path / "llem-results").glob("*/run.json")
    states = {item["experiment_id"]: item["state"] for item in json.loads(run.read_text())["items"]}
    assert states == {"right": "valid", "renamed": "failed"}
    assert not list(run.parent.glob("checked/renamed*/c1/events.jsonl")), "nothing was started for it"
    assert result_of(run.parent, "right")["energy"]["meter"] == "none"


def result_of(run: Path, experiment: str) -> dict[str, dict[str, object]]:
    [path] = run.glob(f"checked/{experiment}*/c1/result.json")
    data: dict[str, dict[str, object]] = json.loads(path.read_text())
    return data
