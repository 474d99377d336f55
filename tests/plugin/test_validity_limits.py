"""Limits of validity on their way from the study to the meter and into the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def test_a_studys_limits_reach_the_job_and_are_recorded(pytester: pytest.Pytester, faults: Callable[..., Path]) -> None:
    study = faults("none")
    study.write_text(study.read_text().replace("{min_duration_s", "{validity: {clocks_rel: 0.5}, min_duration_s"))

    pytester.runpytest_inprocess(f"--llem-study={study.name}").assert_outcomes(passed=1)

    (result,) = pytester.path.glob("llem-results/*/faults/*/c1/result.json")
    job = json.loads((result.parent / "job.json").read_text())
    assert job["meter"]["thresholds"] == {"clocks_rel": 0.5}
    assert json.loads(result.read_text())["validity"]["thresholds"] == {"clocks_rel": 0.5}
    assert json.loads(result.read_text())["runner"]["facts"]["concurrent_workers"] == 1
