"""Limits as they are written: percent, or a change in the metric's own unit; never a bare number."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pytest_llem.errors import SettingsError, StudyError
from pytest_llem.job.condition_names import check_condition
from pytest_llem.study.experiments import Study
from pytest_llem.study.limits import FailIf, overriding, parse_budget, parse_fail_if, parse_limit


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
        ("output_tokens_per_s", "20/s", "turn the sign (output_tokens_per_s: -20/s), or"),
        ("joules_per_output_token", "-5%", "turn the sign (joules_per_output_token: 5%), or"),
        ("joules_per_output_token", "0%", "turn the sign, or"),
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


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [("-1 point", -0.01, "-1 point"), ("-2 points", -0.02, "-2 points"), ("-0.5point", -0.005, "-0.5 points")],
)
def test_a_loss_of_right_answers_is_in_points(text: str, limit: float, shown: str) -> None:
    """A point is one of a hundred answers; -0.029 read as -0.028999999999999998 would not be written back."""
    parsed = parse_fail_if("accuracy", text)
    assert parsed == FailIf("accuracy", limit, None, True)
    assert str(parsed) == f"accuracy: {shown}"
    assert parse_limit(f"accuracy:{text}") == parse_fail_if("accuracy", shown) == parsed
    assert parse_fail_if("slo_met_share", text).relative_to(0.5).limit == limit / 0.5


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("-1%", "'-1%' may be percent of the answers, or of the accuracy", "write accuracy: -1 point"),
        ("-2.5%", "percent of the answers", "write accuracy: -2.5 points"),
        ("-0.01", "'-0.01' is not a change in points", "write accuracy: -1 point"),
        (-0.01, "is not a change in points", "write accuracy: -1 point"),
        ("-100 points", "is not a change in points", "write accuracy: -1 point"),
        (
            "1 point",
            "allows no worsening at all",
            "turn the sign (accuracy: -1 point), or state the smallest change that matters",
        ),
    ],
)
def test_a_percent_of_the_accuracy_is_refused_because_a_point_was_meant(text: object, message: str, fix: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        parse_fail_if("accuracy", text)
    assert caught.value.fix is not None
    assert caught.value.fix.startswith(fix)


def test_points_are_for_shares_alone() -> None:
    with pytest.raises(SettingsError, match="is not a change"):
        parse_fail_if("joules_per_correct_answer", "1 point")


def test_a_budget_of_right_answers_is_a_share() -> None:
    assert parse_budget("accuracy", ">= 62%") == parse_budget("accuracy", ">= 0.62")
    with pytest.raises(SettingsError, match="is no share of answers") as caught:
        parse_budget("accuracy", ">= 62")
    assert caught.value.fix == 'write percent: ">= 62%"'


@pytest.mark.parametrize(
    ("text", "place", "setting"),
    [
        ("expect: {accuracy: '>= 62%'}\n", "4:10", "expect.accuracy"),
        ("compare: {fail_if: {joules_per_correct_answer: 5%}}\n", "4:21", "compare.fail_if.joules_per_correct_answer"),
    ],
)
def test_right_answers_that_nothing_scores_are_refused_where_they_are_asked_for(
    load: Callable[[str], Study], text: str, place: str, setting: str
) -> None:
    """The gate was undecided, and said so only after everything was measured."""
    study = "model: builtin:tiny-llama\nengine: transformers\nworkload: {dataset: synthetic}\n"
    with pytest.raises(StudyError) as caught:
        load(study + text)
    assert f"study.yaml:{place}: {setting} counts right answers, and none are scored in" in str(caught.value)
    scored = study.replace("dataset: synthetic", "dataset: q.jsonl, column: q, answer_column: a, score: exact")
    load(scored + text)


@pytest.mark.parametrize("text", ["expect: {itl_p50_s: '<= 1'}", "compare: {fail_if: {ttft_mean_s: 5%}}"])
def test_latencies_of_tokens_that_nobody_sees_are_refused_where_they_are_asked_for(
    load: Callable[[str], Study], text: str
) -> None:
    """The gate was undecided, and said so only after everything was measured."""
    study = "model: m\nengine: openai\nopenai: {{base_url: 'http://127.0.0.1:8000', stream: {stream}}}\n"
    with pytest.raises(StudyError, match=r"study\.yaml:4:\d+: \S+ takes the moments at which tokens come"):
        load(study.format(stream="false") + text)
    load(study.format(stream="true") + text)
