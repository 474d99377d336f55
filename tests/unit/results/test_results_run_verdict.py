"""What a run's gates say together: one finding for what all experiments share, and one line with counts and causes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_llem.job.wire import decode, encode
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow, RunOfBaseline, gates_line
from pytest_llem.results.gates import Verdict, judge_ratio
from pytest_llem.results.run_verdict import RunFinding, explained, run_findings, with_common
from pytest_llem.results.statistics import first_autocorrelation

METRIC = "joules_per_output_token"


def cycles(rng: random.Random, level: float, noise: float = 0.01, rho: float = 0.0, count: int = 5) -> list[float]:
    state, values = rng.gauss(0, 1), []
    for _ in range(count):
        values.append(level * math.exp(noise * state))
        state = rho * state + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)
    return values


def gate(name: str, verdict: Verdict, limit: float, autocorrelation: float | None = None) -> GateReport:
    row = GateRow(
        metric=METRIC,
        kind="comparison",
        limit=f"{limit:+.0%}",
        baseline=1.0,
        current=verdict.ratio,
        limit_ratio=1 + limit,
        baseline_runs=1,
        autocorrelation=autocorrelation,
        **{name: value for name, value in vars(verdict).items() if name != "note"},
    )
    return GateReport("study", name, (row,), strict=False)


def study(
    count: int, shift: float, limit: float, own: Sequence[float] = (), seed: int = 1, rho: float = 0.0
) -> list[GateReport]:
    """Gates of a run that is `shift` times its baseline; `own` are further factors of the first experiments."""
    rng = random.Random(seed)
    reports = []
    for index in range(count):
        before = cycles(rng, 1.0, rho=rho)
        now = cycles(rng, shift * (own[index] if index < len(own) else 1.0), rho=rho)
        reports.append(gate(f"e{index}", judge_ratio(before, now, limit), limit, first_autocorrelation([before, now])))
    return reports


def shift_of(findings: Sequence[RunFinding]) -> RunFinding:
    (found,) = (finding for finding in findings if finding.code == "common_shift")
    return found


def test_a_shift_of_the_whole_run_is_one_finding_and_explains_all_failures() -> None:
    """It was 200 failures, each with a table, and nothing said that they were one."""
    reports = study(200, 1.081, 0.03)
    failed = sum(report.failed for report in reports)
    assert failed > 150
    found = shift_of(run_findings(reports))
    assert found.value == pytest.approx(1.081, abs=0.003)
    assert found.low < 1.081 < found.high
    assert (found.failed, found.explained) == (failed, failed)
    assert found.message.startswith("the whole run is +8.")
    assert f"it accounts for {failed} of {failed} failed gates" in found.message
    assert "1 baseline run cannot tell" in found.message
    for report in reports:
        told = with_common(report, [found])
        assert told.status == report.status, "a verdict does not depend on which other gates ran"
        assert told.rows[0].common == found.value
        if report.failed:
            assert explained(told)
            assert "the whole run is +8." in told.rows[0].reason
        assert decode(GateReport, encode(told)) == told
        assert with_common(told, [found]) == told


def test_one_experiments_own_regression_is_told_from_the_runs_shift() -> None:
    reports = study(30, 1.04, 0.05, own=[1.3])
    found = shift_of(run_findings(reports))
    assert found.value == pytest.approx(1.04, abs=0.006)
    worse = with_common(reports[0], [found])
    assert worse.failed
    assert not explained(worse)
    assert "the rest exceeds it as well" in worse.rows[0].reason
    assert found.explained == found.failed - 1


def test_equal_runs_share_no_shift_and_a_few_experiments_tell_nothing() -> None:
    found = [run_findings(study(20, 1.0, 0.03, seed=seed)) for seed in range(40)]
    assert sum(bool(findings) for findings in found) <= 6, "95 % intervals, one for the shift and one for the cycles"
    assert run_findings(study(5, 1.2, 0.03)) == []


def test_higher_is_better_reads_the_other_way() -> None:
    verdict = Verdict("fail", 0.8, 0.78, 0.82, "slower")
    reports = [gate(f"e{index}", verdict, -0.05) for index in range(8)]
    found = shift_of(run_findings(reports))
    assert found.explained == 8
    assert "the whole run is -20.0 %" in found.message


def test_cycles_that_follow_one_another_are_found_over_a_run() -> None:
    """Five cycles cannot tell by themselves that they correlate, and a run of 60 experiments can."""
    found = [finding.code for finding in run_findings(study(60, 1.0, 0.03, rho=0.6))]
    assert "cycles_correlated" in found


def test_the_line_of_gates_counts_and_names_causes() -> None:
    unequal = Verdict("not_comparable", None, None, None, "batch_size 4 -> 1; dtype unset -> float16")
    wide = Verdict("inconclusive", 1.0, 0.9, 1.1, "a change between -10 % and +10 % is too wide to tell")
    few = Verdict("inconclusive", None, None, None, "this run has 2 usable cycles, a verdict needs 3 (not used: c3)")
    passed = Verdict("pass", 1.0, 0.99, 1.01, "")
    verdicts = [passed, passed, passed, Verdict("fail", 2.0, 1.9, 2.1, ""), unequal, unequal, wide, wide, few]
    reports = [gate(f"e{index}", verdict, 0.05) for index, verdict in enumerate(verdicts)]
    assert gates_line(reports[:6]) == "gates: 3 passed, 1 failed (e3), 2 not comparable (batch_size 4 -> 1)"
    assert gates_line(reports[6:]) == (
        "gates: 3 inconclusive (2 × too noisy; 1 × this run has 2 usable cycles, a verdict needs 3)"
    )
    assert gates_line([]) == "gates: none judged"
    failed = [gate(f"e{index}", Verdict("fail", 2.0, 1.9, 2.1, ""), 0.05) for index in range(5)]
    assert gates_line(failed) == "gates: 5 failed (e0, e1, e2, 2 more)"


def test_the_line_of_gates_names_the_baseline_with_its_runs_of_all_experiments() -> None:
    """Whoever saw a red line had to look up what it was red against."""
    old = RunOfBaseline("r1", "2026-11-01T08:00:00+00:00", "4f2a91c07")
    new = RunOfBaseline("r2", "2026-11-20T08:00:00+00:00", "b1b1b1b1b", dirty=True)
    passed = gate("e", Verdict("pass", 1.0, 0.99, 1.01, ""), 0.05)
    reports = [replace(passed, baseline=BaselineNamed("main", runs)) for runs in ((old,), (old, new), ())]
    named = "main (2 runs, the newest of 2026-11-20, commit b1b1b1b with changes)"
    assert gates_line(reports) == f"gates: 3 passed; baseline {named}"
    assert gates_line(reports[:1]).endswith("; baseline main (1 run of 2026-11-01, commit 4f2a91c)")
    assert gates_line(reports[2:]).endswith("; baseline main (no run)")


def test_an_older_gate_file_loads() -> None:
    row = {"metric": METRIC, "kind": "comparison", "status": "pass", "limit": "+5 %", "reason": ""}
    row |= dict.fromkeys(("baseline", "current", "ratio", "ci_low", "ci_high"), 1.0)  # type: ignore[arg-type]
    old = decode(GateReport, {"study": "s", "experiment_id": "e", "rows": [row], "strict": False})
    assert old.rows[0].common is None
    assert not explained(old)


def test_a_budget_beside_a_comparison_is_no_second_experiment() -> None:
    """Three experiments with a budget and a limit on one metric: six rows, and too few experiments to find anything."""
    reports = study(3, 1.0, 0.05, rho=0.9)
    reports = [replace(each, rows=(replace(each.rows[0], kind="budget"), *each.rows)) for each in reports]
    assert run_findings(reports) == []
    twelve = study(12, 1.0, 0.05, rho=0.9)
    doubled = [replace(each, rows=(replace(each.rows[0], kind="budget"), *each.rows)) for each in twelve]
    assert run_findings(doubled) == run_findings(twelve)
    assert [finding.experiments for finding in run_findings(twelve) if finding.code == "cycles_correlated"] == [12]
