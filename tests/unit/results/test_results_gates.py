"""Gates: a regression beyond the limit is found, noise is not, and what cannot be told is said to be so."""

from __future__ import annotations

import math

import pytest

from pytest_llem.errors import SettingsError
from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.gates import inverted, judge_budget, judge_ratio, judge_runs
from pytest_llem.results.statistics import mean_interval, ratio_interval, within_runs

QUIET = [1.00, 1.01, 0.99, 1.005, 0.995]


def times(factor: float, values: list[float] = QUIET) -> list[float]:
    return [factor * value for value in values]


@pytest.mark.parametrize(
    ("factor", "limit", "status"),
    [
        (1.0, 0.05, "pass"),
        (1.20, 0.05, "fail"),
        (0.5, 0.05, "pass"),
        (1.07, 0.05, "inconclusive"),
        (1.06, 0.05, "pass"),
    ],
)
def test_verdicts_follow_the_bounds(factor: float, limit: float, status: str) -> None:
    noisy = [1.00, 1.03, 0.97, 1.015, 0.985] if status == "inconclusive" else QUIET
    verdict = judge_ratio(noisy, times(factor, noisy), limit)
    assert verdict.status == status
    assert verdict.ratio == pytest.approx(factor)
    assert verdict.ci_low is not None
    assert verdict.ci_high is not None
    assert verdict.ci_low < factor < verdict.ci_high


def test_each_bound_has_the_stated_level() -> None:
    """Student's t at 8 degrees times the pooled standard error; one less where a trend is taken out."""
    base, now = [0.9, 1.1, 1.0, 1.1, 0.9], [1.0, 1.2, 0.9, 1.1, 1.0]
    interval, wide = ratio_interval([base], now, 0.05), ratio_interval([base], now, 0.01)
    assert within_runs([logs(base), logs(now)])[1] == 8
    assert wide.half_width / interval.half_width == pytest.approx(2.896 / 1.860, rel=1e-3)
    assert within_runs([logs(sorted(base)), logs(sorted(now))])[1] == 7


def logs(values: list[float]) -> list[float]:
    return [math.log(value) for value in values]


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 6.3138), (2, 2.9200), (7, 1.8946), (30, 1.6973)])
def test_student_quantiles_match_the_tables(degrees: float, quantile: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(quantile, abs=1e-4)


def test_values_without_any_spread_do_not_make_a_verdict_certain() -> None:
    """Five equal readings say nothing about another run: a change of 1 % is not beyond a limit of 0.5 %."""
    verdict = judge_ratio([1.0] * 5, [1.01] * 5, 0.005)
    assert verdict.status == "inconclusive"
    assert verdict.ci_low == pytest.approx(1.01 * math.exp(-0.01645), rel=1e-4)


def test_a_common_drift_does_not_hide_a_regression() -> None:
    warming = [1.00, 1.02, 1.04, 1.06, 1.08]
    assert judge_ratio(warming, times(1.06, warming), 0.03).status == "fail"
    shaken = [1.04, 1.00, 1.08, 1.02, 1.06]
    assert judge_ratio(shaken, times(1.06, shaken), 0.03).status == "inconclusive"


@pytest.mark.parametrize(
    ("baseline", "current"),
    [(QUIET[:2], QUIET), (QUIET, QUIET[:2]), ([], QUIET), (QUIET, [1.0, 0.0, 1.0]), (QUIET, [1.0, math.nan, 1.0])],
)
def test_too_few_or_unusable_values_are_inconclusive(baseline: list[float], current: list[float]) -> None:
    verdict = judge_ratio(baseline, current, 0.05)
    assert verdict.status == "inconclusive"
    assert verdict.ratio is None
    assert verdict.reason


def test_a_limit_that_allows_nothing_needs_a_resolution() -> None:
    with pytest.raises(SettingsError, match="needs a resolution"):
        judge_ratio(QUIET, QUIET, 0.0)
    assert judge_ratio(QUIET, QUIET, 0.0, resolution=0.05).status == "pass"
    assert judge_ratio(QUIET, times(1.1), 0.0, resolution=0.05).status == "fail"
    assert judge_ratio(QUIET, times(0.8), -0.1, resolution=0.05).status == "pass"
    assert judge_ratio(QUIET, QUIET, -0.1, resolution=0.05).status == "fail"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_an_absurd_error_rate_is_refused(alpha: float) -> None:
    with pytest.raises(SettingsError, match="alpha"):
        judge_ratio(QUIET, QUIET, 0.05, alpha=alpha)


def test_limits_of_better_when_higher_are_inverted() -> None:
    assert inverted(-0.05) == pytest.approx(1 / 0.95 - 1)


def test_runs_that_differ_among_themselves_widen_the_bound() -> None:
    alike = judge_runs([QUIET, QUIET, QUIET], times(1.05), 0.03)
    apart = judge_runs([times(0.96), QUIET, times(1.04)], times(1.05), 0.03)
    assert alike.status == "fail"
    assert apart.status == "inconclusive"


def test_correlated_cycles_count_as_one() -> None:
    noisy = [1.00, 1.02, 0.98, 1.01, 0.99]
    assert judge_runs([noisy], times(1.07, noisy), 0.03).status == "fail"
    assert judge_runs([noisy], times(1.07, noisy), 0.03, correlated=True).status == "inconclusive"


@pytest.mark.parametrize(
    ("level", "upper", "status"),
    [(0.9, True, "pass"), (1.1, True, "fail"), (1.0, True, "inconclusive"), (1.1, False, "pass"), (0.9, False, "fail")],
)
def test_budgets(level: float, upper: bool, status: str) -> None:
    verdict = judge_budget(times(level), 1.0, upper=upper)
    assert verdict.status == status
    assert verdict.ratio == pytest.approx(level, rel=1e-3)


def test_a_budget_bound_is_never_closer_than_one_run_tells() -> None:
    assert mean_interval([2.0] * 5, 0.05).high == pytest.approx(2 * math.exp(1.645 * 0.01 / 2**0.5), rel=1e-4)
    with pytest.raises(SettingsError):
        judge_budget(QUIET, 0.0)
