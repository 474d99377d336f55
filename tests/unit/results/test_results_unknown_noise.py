"""Gates while nobody knows how much runs differ: never red because of noise, and what decides it is said."""

from __future__ import annotations

import math
import random

import pytest

from pytest_llem.results.gate_report import GateReport
from pytest_llem.results.gate_rows import compared_row, judge_change
from pytest_llem.results.gates import judge_ratio, judge_runs
from pytest_llem.results.metrics import metric
from pytest_llem.results.statistics import RunSpread
from pytest_llem.study.limits import FailIf

QUIET = [1.00, 1.01, 0.99, 1.005, 0.995]
EXPERIMENTS = 20
STUDIES = 300


def worse(by: float, runs: list[float] = QUIET) -> list[float]:
    return [value * (1 + by) for value in runs]


@pytest.mark.parametrize(
    ("baselines", "by", "status", "more_runs"),
    [
        (1, 0.02, "pass", 0),
        (1, 0.06, "inconclusive", 2),
        (2, 0.06, "inconclusive", 1),
        (3, 0.06, "fail", 0),
        (1, 0.13, "fail", 0),
        (2, 0.11, "fail", 0),
    ],
)
def test_what_noise_of_two_percent_may_do_waits_for_three_runs(
    baselines: int, by: float, status: str, more_runs: int
) -> None:
    verdict = judge_runs([QUIET] * baselines, worse(by), 0.03, doubt=True)
    assert (verdict.status, verdict.more_runs) == (status, more_runs)


def test_the_reason_says_what_decides_it() -> None:
    reason = judge_runs([QUIET], worse(0.06), 0.03, doubt=True).reason
    assert "how much runs differ is not known; 2 more baseline runs decide it, or llem aa" in reason
    assert "1 more baseline run decides it" in judge_runs([QUIET] * 2, worse(0.06), 0.03, doubt=True).reason


def test_what_llem_aa_found_is_not_doubted() -> None:
    known = RunSpread(0.0, 0.005, 5)
    assert judge_runs([QUIET], worse(0.06), 0.03, spread=known, doubt=True).status == "fail"


def test_a_run_of_too_few_cycles_is_none_of_the_three() -> None:
    """Two cycles are no baseline run, so two more are needed and not one."""
    assert judge_runs([QUIET, QUIET[:2]], worse(0.06), 0.03, doubt=True).more_runs == 2


def test_a_limit_that_asks_for_less_fails_without_it() -> None:
    """Energy must fall by 10 %: that it stayed equal is no noise, and a rule against equal runs would never fail."""
    verdict = judge_runs([QUIET], QUIET, -0.10, resolution=0.02, doubt=True)
    assert verdict.status == "fail"


def test_the_public_function_takes_the_noise_as_assumed() -> None:
    """`judge_ratio` keeps its error rates; who knows better says so."""
    assert judge_ratio(QUIET, worse(0.06), 0.03) == judge_ratio(QUIET, worse(0.06), 0.03, between_runs=0.01)
    assert judge_ratio(QUIET, worse(0.06), 0.03).status == "fail"
    assert judge_ratio(QUIET, worse(0.06), 0.03, between_runs=0.03).status == "inconclusive"
    still = [1.0] * 5
    for between_runs in (0.01, 0.02):
        low = judge_ratio(still, still, 0.03, between_runs=between_runs).ci_low
        assert low == pytest.approx(math.exp(-1.6449 * between_runs), rel=1e-4)


def test_a_gate_reads_so_in_the_sign_of_its_metric() -> None:
    """Throughput that fell: both sides are inverted, and the doubt stays."""
    limit = FailIf("output_tokens_per_s", -0.03)
    verdict = judge_change(metric("output_tokens_per_s"), limit, [QUIET], worse(-0.06), 0.05)
    assert (verdict.status, verdict.more_runs) == ("inconclusive", 2)
    row = compared_row(limit, verdict)
    assert row.cause() == "needs 2 more baseline runs"
    assert GateReport("s", "e", (row,), strict=True).failed
    assert not GateReport("s", "e", (row,), strict=False).failed


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("runs", [1, 2])
def test_one_study_in_a_hundred_alarms_at_two_percent(runs: int, shared: bool) -> None:
    """62.8 % of studies did, of 20 experiments, 5 cycles, noise of 2 % in a run and between them, and a limit of 3 %.

    `shared`: all that runs differ by is common to a run. The benchmark has the rates.
    """
    rng = random.Random(19)
    alarmed = 0
    for _ in range(STUDIES):
        common = [rng.gauss(0, 0.02) for _ in range(runs + 1)]
        for _ in range(EXPERIMENTS):
            own = common if shared else [rng.gauss(0, 0.02) for _ in range(runs + 1)]
            *before, now = [[(1 + level) * rng.gauss(1, 0.02) for _ in range(5)] for level in own]
            if judge_runs(before, now, 0.03, doubt=True).status == "fail":
                alarmed += 1
                break
    assert alarmed <= 0.01 * STUDIES + 2 * math.sqrt(0.01 * STUDIES)
