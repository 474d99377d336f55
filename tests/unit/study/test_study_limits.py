"""Limits as they are written: percent, or a change in the metric's own unit; never a bare number."""

from __future__ import annotations

import pytest

from pytest_llem.errors import SettingsError
from pytest_llem.job.metric_names import check_condition
from pytest_llem.study.limits import FailIf, overriding, parse_fail_if


@pytest.mark.parametrize(
    ("metric", "text", "limit", "absolute", "shown"),
    [
        ("joules_per_output_token", "5%", 0.05, False, "joules_per_output_token: +5 %"),
        ("ttft_p99_s", "0.05 s", 0.05, True, "ttft_p99_s: +0.05 s"),
        ("ttft_p99_s", "+0.05s", 0.05, True, "ttft_p99_s: +0.05 s"),
        ("output_tokens_per_s", "-20/s", -20.0, True, "output_tokens_per_s: -20/s"),
        ("output_tokens_per_s", "-20 1/s", -20.0, True, "output_tokens_per_s: -20/s"),
    ],
)
def test_a_limit_is_percent_or_in_the_metrics_unit(
    metric: str, text: str, limit: float, absolute: bool, shown: str
) -> None:
    parsed = parse_fail_if(metric, text)
    assert parsed == FailIf(metric, limit, None, absolute)
    assert str(parsed) == shown


@pytest.mark.parametrize(
    ("metric", "text", "fix"),
    [
        ("ttft_p99_s", "+0.05", "ttft_p99_s: +0.05%, or the change in its unit: ttft_p99_s: +0.05 s"),
        ("ttft_p99_s", 0.05, "ttft_p99_s: 0.05 s"),
        ("ttft_p99_s", "50 ms", "ttft_p99_s: 50 s"),
        ("ttft_p99_s", "5 J", "5 s"),
        ("mfu", "0.05", "mfu: 0.05%"),
        ("output_tokens_per_s", "20/s", "turn the sign"),
        ("ttft_p99_s", "-0.1 s", "resolution: {ttft_p99_s: 0.01 s}"),
        ("joules_per_output_token", "nan%", "write percent: joules_per_output_token: 5%"),
        ("joules_per_output_token", "-150%", "write percent: joules_per_output_token: 5%"),
    ],
)
def test_what_could_be_misread_is_refused_with_both_spellings(metric: str, text: object, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_fail_if(metric, text)
    assert fix in str(caught.value.fix)


def test_a_resolution_is_written_as_its_limit_is() -> None:
    assert parse_fail_if("ttft_p99_s", "-0.1 s", "0.01 s") == FailIf("ttft_p99_s", -0.1, 0.01, True)
    with pytest.raises(SettingsError, match="not of the limit's kind"):
        parse_fail_if("ttft_p99_s", "-0.1 s", "1%")


def test_the_command_line_keeps_a_resolution_of_its_own_kind_only() -> None:
    study = parse_fail_if("ttft_p99_s", "0%", "1%")
    assert overriding(study, "ttft_p99_s", "2%") == FailIf("ttft_p99_s", 0.02, 0.01)
    assert overriding(study, "ttft_p99_s", "0.1 s") == FailIf("ttft_p99_s", 0.1, None, True)


def test_an_absolute_limit_as_a_fraction_of_the_baseline() -> None:
    assert FailIf("ttft_p99_s", 0.05, 0.01, True).relative_to(0.5) == FailIf("ttft_p99_s", 0.1, 0.02)


def test_an_unknown_condition_gets_a_suggestion() -> None:
    check_condition("engine_version")
    with pytest.raises(SettingsError) as caught:
        check_condition("engine_versoin")
    assert caught.value.fix == "did you mean 'engine_version'?"
