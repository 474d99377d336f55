"""Limits of validity on their way from the study to the meter and into the result."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.timed import on_a_clock

pytestmark = pytest.mark.engine


def test_a_studys_limits_reach_the_job_and_are_recorded(pytester: pytest.Pytester, faults: Callable[..., Path]) -> None:
    study = faults("none")
    study.write_text(study.read_text().replace("{min_duration_s", "{validity: {clocks_rel: 0.5}, min_duration_s"))

    pytester.runpytest_inprocess(f"--llem-study={study.name}").assert_outcomes(passed=1)

    (result,) = pytester.path.glob("llem-results/*/faults/*/c1/result.json")
    job = json.loads((result.parent / "job.json").read_text())
    of_the_user = {"cpu_contended_rel": 1.0}  # the test session's own settings: see the project's conftest.py
    assert job["meter"]["thresholds"] == {"clocks_rel": 0.5, **of_the_user}
    assert json.loads(result.read_text())["validity"]["thresholds"] == {"clocks_rel": 0.5, **of_the_user}
    assert json.loads(result.read_text())["runner"]["facts"]["concurrent_workers"] == 1


def _spin() -> None:
    while True:
        pass


@pytest.fixture
def one_busy_cpu() -> Iterator[None]:
    """This process, and what it starts, may use a single CPU, on which two others compute."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    others = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(2)]
    for other in others:
        other.start()
    yield
    for other in others:
        other.kill()
        other.join()
    os.sched_setaffinity(0, before)


@on_a_clock
@pytest.mark.usefixtures("one_busy_cpu")
def test_a_cycle_that_shares_its_cpu_is_invalid(pytester: pytest.Pytester, faults: Callable[..., Path]) -> None:
    """It gets a third of the CPU, or half where the kernel shares it between sessions first (autogroups)."""
    study = faults("busy")
    limits = "{validity: {cpu_contended_rel: 0.2}, min_duration_s: 1.0"
    study.write_text(study.read_text().replace("{min_duration_s: 0.05", limits))

    ran = pytester.runpytest_inprocess(f"--llem-study={study.name}", "-rs")

    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["*cpu_contended: the measured processes ran *waited *OMP_NUM_THREADS*"])
    (path,) = pytester.path.glob("llem-results/*/faults/*/c1/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["cpu"]["cpus"]) == ("invalid", 1)
    assert result["cpu"]["contended_rel"] > 0.4
