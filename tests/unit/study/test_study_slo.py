"""SLOs in a study: how limits and shares are written, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.job.config import SloSettings
from pytest_llem.study import Overrides, Study

Load = Callable[..., Study]

SERVED = "model: m\nengine: openai\nopenai: {base_url: 'http://127.0.0.1:1/v1'}\n"


@pytest.mark.parametrize(
    ("written", "share"), [("99%", 0.99), ("99.9 %", 0.999), ("'95%'", 0.95), ("0.95", 0.95), ("1", 1.0), ("100%", 1.0)]
)
def test_a_share_is_a_number_or_percent_and_means_the_same(load: Load, written: str, share: float) -> None:
    """99.9 / 100 is 0.9990000000000001, another hash and another limit."""
    study = load(f"{SERVED}slo: {{e2el_s: 1, at: {written}}}\n")
    assert study.experiments[0].config.slo == SloSettings(e2el_s=1.0, at=share)
    plain = load(f"{SERVED}slo: {{e2el_s: 1.0, at: {share}}}\n")
    assert study.experiments[0].config_hash == plain.experiments[0].config_hash


def test_any_share_may_be_in_percent(load: Load) -> None:
    study = load("model: m\nengine: vllm\nvllm: {gpu_memory_utilization: 90%}\nexecution: {target_ci: 2%}\n")
    assert study.experiments[0].config.settings["gpu_memory_utilization"] == 0.9
    assert study.execution.target_ci == 0.02


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("99", r"study\.yaml:4:11: slo\.at: .*got the number 99 .*write 99%, or 0\.99"),
        ("120%", r"study\.yaml:4:11: slo\.at: .*less than or equal to 1"),
        ("most", r"study\.yaml:4:11: slo\.at: expected a number"),
        ("0%", r"study\.yaml:4:11: slo\.at: .*greater than 0"),
    ],
)
def test_what_is_no_share_is_refused_where_it_stands(load: Load, written: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        load(f"{SERVED}slo: {{at: {written}, e2el_s: 1}}\n")


def test_limits_are_shared_swept_and_set_by_one_experiment(load: Load) -> None:
    swept = load(
        f"{SERVED}slo: {{at: 95%}}\nsweep: {{slo.ttft_s: [0.2, 0.5], load: [{{slo.e2el_s: 4}}, {{seed: 1}}]}}\n"
    )
    assert [each.config.slo for each in swept.experiments] == [
        SloSettings(ttft_s=ttft, e2el_s=e2el, at=0.95) for ttft in (0.2, 0.5) for e2el in (4.0, None)
    ]
    listed = load(f"{SERVED}slo: {{ttft_s: 1}}\nexperiments: [{{slo: {{ttft_s: 0.2, at: 90%}}}}, {{seed: 1}}]\n")
    assert [each.config.slo for each in listed.experiments] == [
        SloSettings(ttft_s=0.2, at=0.9),
        SloSettings(ttft_s=1.0),
    ]


def test_a_share_without_a_limit_does_nothing_and_says_so(load: Load) -> None:
    study = load(f"{SERVED}slo: {{at: 95%}}\n")
    assert study.experiments[0].config_hash == load(SERVED).experiments[0].config_hash
    assert [notice.message for notice in study.notices] == ["slo.at does nothing without a limit beside it in slo"]


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (
            f"{SERVED}openai.stream: false\nslo: {{ttft_s: 1}}\n",
            "5:15",
            "slo.ttft_s cannot be judged: with openai.stream",
        ),
        (f"{SERVED}openai.stream: false\nslo: {{tpot_s: 1}}\n", "5:15", "leave openai.stream on, or limit slo.e2el_s"),
        ("model: m\ntransformers: {num_beams: 4}\nslo: {itl_s: 1}\n", "3:14", "transformers.num_beams 4"),
        (f"{SERVED}slo: {{itl_s: 1}}\nsweep: {{openai.stream: [true, false]}}\n", "5:31", "slo.itl_s cannot be judged"),
    ],
)
def test_a_limit_on_a_time_that_the_engine_does_not_tell_is_refused(
    load: Load, text: str, place: str, said: str
) -> None:
    """Each cycle would be measured, and its SLO be null at the end."""
    with pytest.raises(StudyError) as caught:
        load(text)
    assert f"study.yaml:{place}: " in str(caught.value)
    assert said in str(caught.value)


def test_the_whole_answer_is_timed_without_a_stream_too(load: Load) -> None:
    assert load(f"{SERVED}openai.stream: false\nslo: {{e2el_s: 1}}\n").experiments[0].config.slo.e2el_s == 1


@pytest.mark.parametrize(
    ("text", "place", "setting"),
    [
        ("expect: {slo_met_share: '>= 99%'}\n", "4:10", "expect.slo_met_share"),
        ("compare: {fail_if: {joules_per_good_request: 5%}}\n", "4:21", "compare.fail_if.joules_per_good_request"),
        ("execution: {headline: goodput_requests_per_s}\n", "4:13", "execution.headline"),
        ("experiments: [{seed: 1, expect: {slo_met_share: '> 0.9'}}]\n", "4:34", "expect.slo_met_share"),
    ],
)
def test_goodput_without_limits_is_refused_where_it_is_asked_for(
    load: Load, text: str, place: str, setting: str
) -> None:
    """The gate would be undecided for ever, and say so only after everything was measured."""
    with pytest.raises(StudyError) as caught:
        load(SERVED + text)
    assert f"study.yaml:{place}: {setting} counts requests that keep the limits of slo" in str(caught.value)
    assert "slo: {ttft_s: 0.5, at: 99%}" in str(caught.value)
    load(f"{SERVED}slo: {{e2el_s: 1}}\n{text}")


def test_a_limit_of_the_command_line_needs_an_slo_too(load: Load) -> None:
    with pytest.raises(StudyError, match=r"compare\.fail_if\.goodput_requests_per_s counts"):
        load(SERVED, overrides=Overrides(fail_if={"goodput_requests_per_s": "-5%"}))


def test_only_the_points_without_limits_are_named(load: Load) -> None:
    with pytest.raises(StudyError, match=r"none for seed:1 \("):
        load(f"{SERVED}expect: {{slo_met_share: '> 0.9'}}\nsweep: {{load: [{{slo.e2el_s: 4}}, {{seed: 1}}]}}\n")


def test_a_budget_of_a_share_may_be_in_percent(load: Load) -> None:
    study = load(f"{SERVED}slo: {{e2el_s: 1}}\nexpect: {{slo_met_share: '>= 99%'}}\n")
    assert [str(budget) for budget in study.experiments[0].expect] == ["slo_met_share >= 0.99"]
    study = load(f"{SERVED}slo: {{e2el_s: 1}}\nexpect: {{slo_met_share: '>= 99.9%'}}\n")
    assert study.experiments[0].expect[0].limit == 0.999, "999 of 1000 are 99.9 %"
    with pytest.raises(StudyError, match=r"study\.yaml:5:25: .*'>= 99' is no share of requests .*>= 99%"):
        load(f"{SERVED}slo: {{e2el_s: 1}}\nexpect: {{slo_met_share: '>= 99'}}\n")
    with pytest.raises(StudyError, match="'<= 5%' is not a budget"):
        load(f"{SERVED}expect: {{joules_per_request: '<= 5%'}}\n")
