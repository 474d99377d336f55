"""Settings that the installed engine does not take are found before its first cycle, and fail only their own items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


@pytest.mark.engine
def test_a_setting_that_the_engine_lacks_fails_its_own_items_with_place_and_suggestion(
    pytester: pytest.Pytester,
) -> None:
    (pytester.path / "checked.yaml").write_text(STUDY)

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
