"""What a gate found, in the direction of its metric, and in the sign and unit of its limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llem.results.gate_report import GateReport, GateRow
from pytest_llem.results.gate_rows import judge_change
from pytest_llem.results.gates import Verdict, judge_budget
from pytest_llem.results.metrics import metric
from pytest_llem.results.verdict_text import budgeted, compared, in_unit, percent
from pytest_llem.study.limits import parse_budget, parse_fail_if

BEFORE = [100.0, 102.0, 98.0, 101.0, 99.0]


def found(name: str, text: str, level: float, before: list[float] = BEFORE) -> str:
    limit, mean = parse_fail_if(name, text), sum(before) / len(before)
    relative = limit.relative_to(mean)
    verdict = judge_change(metric(name), relative, [before], [value * level for value in before], 0.05)
    return compared(verdict, metric(name), limit, relative, mean, 0.05)


@pytest.mark.parametrize(
    ("level", "text"),
    [
        (0.115, "fell by 88.5 % (90 % interval -88.7 % to -88.3 %), the limit is -30 %"),
        (0.99, "fell by 1.0 % (90 % interval -2.8 % to +0.9 %), the limit is -30 %"),
        (0.7, "fell by 30.0 % (90 % interval -31.3 % to -28.7 %), the limit is -30 %: -46.2 % is excluded"),
        (1.0, "did not change (90 % interval -1.8 % to +1.9 %), the limit is -30 %"),
        (1.2, "rose by 20.0 % (90 % interval +17.8 % to +22.3 %), the limit is -30 %"),
    ],
)
def test_where_higher_is_better_signs_are_still_those_of_the_metric(level: float, text: str) -> None:
    """A limit of -30 % was answered with `+768.1 %, the limit is +42.9 %`: the judged inverse."""
    assert found("output_tokens_per_s", "-30%", level) == text


def test_a_limit_in_the_metrics_unit_is_answered_in_it() -> None:
    """A limit of 0.05 s was answered with a percentage that the user had to take back to seconds."""
    seconds = [value / 1000 for value in BEFORE]
    assert found("ttft_p50_s", "0.05 s", 2.0, seconds) == (
        "rose by 0.1 s (90 % interval +0.09631 s to +0.1038 s), the limit is +0.05 s"
    )
    assert found("output_tokens_per_s", "-20/s", 0.5) == (
        "fell by 50/s (90 % interval -50.92/s to -49.06/s), the limit is -20/s"
    )


def test_what_could_not_be_told_says_what_would_have_to_be_excluded() -> None:
    text = found("joules_per_output_token", "5%", 1.05, [100.0, 120.0, 80.0, 110.0, 90.0])
    assert text.startswith("rose by 5.0 % (90 % interval -")
    assert text.endswith("the limit is +5 %: too wide to tell, to pass +10.0 % must be excluded; measure more cycles")


def test_a_budget_is_answered_in_its_unit_with_its_operator() -> None:
    budget = parse_budget("output_tokens_per_s", ">= 120")
    verdict = judge_budget(BEFORE, 120.0, upper=False)
    assert budgeted(verdict, budget, 0.05, 0.0) == (
        "is 99.99/s (90 % interval 98.49/s to 101.5/s), the budget is >= 120/s"
    )
    joules = parse_budget("joules_per_output_token", "<= 0.5")
    verdict = judge_budget([value / 100 for value in BEFORE], 0.5, systematic=0.05)
    assert ", widened by 5.0 % for gain and sensor), the budget is <= 0.5 J" in budgeted(verdict, joules, 0.05, 0.05)


def test_a_table_has_changes_and_bounds_in_the_sign_and_unit_of_the_limit() -> None:
    """The table said `0.115`, `0.11 .. 0.12` and `-30 %` in one row."""
    row = GateRow("output_tokens_per_s", "comparison", "fail", "-30 %", 100.0, 11.5, 0.115, 0.11, 0.12, "fell")
    assert row.cells()[2:] == ("100/s", "11.5/s", "-88.5 %", "-89.0 % .. -88.0 %", "-30 %")
    assert replace(row, limit="-20/s").cells()[4:] == ("-88.5/s", "-89/s .. -88/s", "-20/s")
    budget = replace(row, kind="budget", limit=">= 120", baseline=None)
    assert budget.cells()[2:] == ("-", "11.5/s", "-", "13.2/s .. 14.4/s", ">= 120")


def test_a_report_begins_with_what_failed() -> None:
    """pytest's short summary shows the first line of a failure, and that was the name of the item again."""
    fell = "fell by 88.5 % (90 % interval -89.0 % to -88.0 %), the limit is -30 %"
    row = GateRow("output_tokens_per_s", "comparison", "fail", "-30 %", 100.0, 11.5, 0.115, 0.11, 0.12, fell)
    absent = GateRow("ttft_p50_s", "comparison", "not_comparable", "+5 %", None, None, None, None, None, "dtype a -> b")
    first, second, *_ = GateReport("s", "e", (absent, row), strict=False).text().splitlines()
    assert first == f"output_tokens_per_s {fell}"
    assert second == "ttft_p50_s: not comparable: dtype a -> b"


def test_the_note_on_cycles_that_follow_one_another_stays() -> None:
    verdict = Verdict("pass", 1.0, 0.99, 1.01, "worse", "; cycles follow one another")
    limit = parse_fail_if("energy_j", "5%")
    assert compared(verdict, metric("energy_j"), limit, limit, 1.0, 0.05).endswith("+5 %; cycles follow one another")


def test_large_values_are_written_as_a_budget_is() -> None:
    assert in_unit("output_tokens_per_s", 1_234_567.0) == "1235000/s"
    assert in_unit("peak_memory_bytes", 8e9) == "8000000000 B"
    assert in_unit("mfu", 0.5) == "0.5"


def test_nothing_changes_by_minus_zero() -> None:
    assert (percent(0.9999), percent(1.0), percent(1.0001)) == ("+0.0 %", "+0.0 %", "+0.0 %")
    assert percent(0.998) == "-0.2 %"
