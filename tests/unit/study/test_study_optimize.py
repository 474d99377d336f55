"""A race over a study's settings: how it is written, what follows from it, and what is refused before anything runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.study import Overrides, Study
from pytest_llem.study.limits import Budget

Load = Callable[..., Study]

SWEPT = "model: m\nengine: transformers\nsweep: {transformers.batch_size: [1, 4], dtype: [float32, bfloat16]}\n"
RACE = "optimize: {minimize: joules_per_output_token}\n"


def test_a_race_is_written_in_words_of_metrics_limits_and_shares(load: Load) -> None:
    swept = SWEPT.replace("[1, 4]", "[1, 4, 16]")
    study = load(
        f"{swept}optimize: {{maximize: output_tokens_per_s, subject_to: {{ttft_p99_9_s: '<= 0.5'}}, confidence: 99%, "
        "regret: 2%, max_cycles: 12, assume: additive}\n"
    )
    goal = study.optimize
    assert goal is not None
    assert (goal.metric, goal.lower_is_better, goal.confidence, goal.regret) == (
        "output_tokens_per_s",
        False,
        0.99,
        0.02,
    )
    assert goal.subject_to == (Budget("ttft_p99_9_s", "<=", 0.5),)
    assert (goal.max_cycles, goal.assume, study.last_cycle) == (12, "additive", 12)
    assert 99.9 in study.percentiles, "the limit is judged by results that state it"
    assert pickle.loads(pickle.dumps(goal)) == goal, "workers of xdist get studies pickled"


def test_a_race_runs_in_rounds_and_shows_what_it_optimises_first(load: Load) -> None:
    execution = load(SWEPT + "optimize: {minimize: e2el_p50_s}\n").execution
    assert (execution.order, execution.cycles, execution.headline) == ("shuffled", 1, "e2el_p50_s")
    execution = load(SWEPT + RACE + "execution: {order: balanced, headline: avg_power_w}\n").execution
    assert (execution.order, execution.headline) == ("balanced", "avg_power_w")


def test_a_users_defaults_give_way_to_a_race(load: Load) -> None:
    """They are for all studies: one that races must not fail on a file that it does not see."""
    below = {"cycles": 5, "target_ci": 0.01, "isolation": "load", "order": "sequential"}
    execution = load(SWEPT + RACE, execution=below).execution
    assert (execution.cycles, execution.target_ci, execution.isolation) == (1, None, "process")
    assert execution.order == "shuffled"


def test_what_a_cache_spares_may_be_limited_from_either_side(load: Load) -> None:
    """Much of it is no merit where users' prompts will not hit the cache: a limit from above was refused."""
    study = load(f"{SWEPT}optimize: {{minimize: energy_j, subject_to: {{cached_input_share: '<= 5%'}}}}\n")
    assert study.optimize is not None
    assert study.optimize.subject_to == (Budget("cached_input_share", "<=", 0.05),)
    study = load(f"{SWEPT}optimize: {{minimize: energy_j, subject_to: {{cached_input_share: '>= 0.5'}}}}\n")
    assert study.optimize is not None
    with pytest.raises(StudyError, match=r"'<= 5' is no share of prompt tokens .*write percent: \"<= 5%\""):
        load(f"{SWEPT}optimize: {{minimize: energy_j, subject_to: {{cached_input_share: '<= 5'}}}}\n")


def test_a_race_changes_no_hash(load: Load) -> None:
    assert [each.config_hash for each in load(SWEPT + RACE).experiments] == [
        each.config_hash for each in load(SWEPT).experiments
    ]


def test_null_takes_away_the_race_of_a_base(load: Load) -> None:
    """Written where no base has one it was no race either, and the whole grid was measured without a word."""
    load(SWEPT + RACE, name="raced.yaml")
    assert load("base: raced.yaml\n").optimize is not None
    assert load("base: raced.yaml\noptimize: null\n").optimize is None


def test_cycles_of_the_command_line_are_those_of_a_setting(load: Load) -> None:
    study = load(SWEPT + RACE, overrides=Overrides(cycles=6))
    assert (study.last_cycle, study.execution.cycles) == (6, 1)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("optimize: {}", r"study\.yaml:4:1: optimize names no metric"),
        ("optimize:", r"study\.yaml:4:1: optimize names no metric .*write optimize: \{minimize: "),
        ("optimize: {minimize: energy_j, maximize: mfu}", r"study\.yaml:4:1: optimize names both"),
        (
            "optimize: {minimise: energy_j}",
            r"study\.yaml:4:12: unknown setting optimize\.minimise.*\(did you mean .*minimize",
        ),
        ("optimize: {minimize: joules_per_tokn}", r"study\.yaml:4:22: optimize\.minimize: unknown metric"),
        (
            "optimize: {minimize: output_tokens_per_s}",
            r"study\.yaml:4:12: .*higher is better.*write maximize: output_to",
        ),
        ("optimize: {maximize: accuracy}", r"study\.yaml:4:22: .*nothing of the noise of accuracy"),
        ("optimize: {minimize: energy_j, max_cycles: 1}", r"study\.yaml:4:44: optimize\.max_cycles: .*equal to 2"),
        ("optimize: {minimize: energy_j, confidence: 95}", r"study\.yaml:4:44: optimize\.confidence.*95%"),
        (
            "optimize: {minimize: energy_j, subject_to: {ttft_s: '<= 1'}}",
            r"study\.yaml:4:45: .*unknown metric 'ttft_s'",
        ),
        ("optimize: {minimize: energy_j, subject_to: {e2el_p99_s: 1}}", r"study\.yaml:4:57: .*is not a budget"),
        ("optimize: {minimize: energy_j, subject_to: {energy_j: '<= 1'}}", r"study\.yaml:4:45: .*is what is optimised"),
        ("optimize: {minimize: energy_j, subject_to: {accuracy: '>= 60%'}}", r"study\.yaml:4:45: .*none are scored in"),
        (
            "optimize: {minimize: energy_j, subject_to: {ttft_p99_s: '>= 0.5'}}",
            r"study\.yaml:4:57: .*of ttft_p99_s lower is better.*write \"<= 0\.5\"",
        ),
        (
            "optimize: {maximize: mfu, subject_to: {tokens_per_joule: '< 2'}}",
            r"study\.yaml:4:58: .*of tokens_per_joule higher is better.*write \">= 2\"",
        ),
        (
            "transformers: {num_beams: 4}\noptimize: {minimize: energy_j, subject_to: {itl_p99_s: '<= 1'}}",
            r"study\.yaml:5:45: optimize\.subject_to\.itl_p99_s takes the moments at which tokens come, and nobody",
        ),
        ("optimize: {minimize: joules_per_good_request}", r"study\.yaml:4:12: .*limits of slo, and there are none"),
        (RACE + "execution: {cycles: 5}", r"study\.yaml:5:13: execution\.cycles cannot be combined with optimize"),
        (RACE + "execution: {target_ci: 1%}", r"study\.yaml:5:13: execution\.target_ci cannot be combined"),
        (RACE + "execution: {order: sequential}", r"study\.yaml:5:20: execution\.order sequential cannot"),
        (RACE + "execution: {isolation: load}", r"study\.yaml:5:24: execution\.isolation load cannot"),
        (RACE + "expect: {energy_j: '<= 5'}", r"study\.yaml:5:1: expect cannot be combined.*subject_to"),
        (RACE + "compare: {fail_if: {energy_j: 5%}}", r"study\.yaml:5:11: compare\.fail_if cannot be combined"),
    ],
)
def test_what_no_race_can_do_is_refused_where_it_stands(load: Load, written: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        load(f"{SWEPT}{written}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"model: m\n{RACE}", r"study\.yaml:2:1: optimize has one setting to choose from"),
        (
            "model: m\nsweep: {dtype: [float32, bfloat16]}\noptimize: {minimize: energy_j, assume: monotone}\n",
            r"study\.yaml:3:40: optimize\.assume: monotone needs an axis of three numbers",
        ),
        (
            "model: m\nsweep: {dtype: [float32, bfloat16]}\noptimize: {minimize: energy_j, assume: additive}\n",
            r"study\.yaml:3:40: optimize\.assume: additive needs two axes",
        ),
        (
            "model: m\nsweep: {dtype: [float32, bfloat16], seed: [1, 2]}\n"
            "optimize: {minimize: energy_j, assume: additive}\n",
            r"study\.yaml:3:40: optimize\.assume: additive needs 5 settings of these axes",
        ),
        (
            "model: m\nsweep: {dtype: [float32, bfloat16], seed: [1, 2]}\n"
            "optimize: {minimize: energy_j, assume: monotone}\n",
            r"study\.yaml:3:40: optimize\.assume: monotone needs an axis of three numbers or more",
        ),
        (
            "model: m\nexperiments: [{id: a}, {id: b, dtype: float16}]\n"
            "optimize: {minimize: energy_j, assume: additive}\n",
            r"study\.yaml:3:40: optimize\.assume: additive needs every setting on the axes of a sweep",
        ),
        (
            "model: m\nengine: openai\nopenai: {base_url: 'http://127.0.0.1:1/v1'}\nslo: {ttft_s: 1}\n"
            "sweep: {workload.arrival.rate_per_s: {search: {low: 1, high: 9}}, seed: [1, 2]}\n"
            "optimize: {minimize: energy_j}\n",
            r"study\.yaml:6:1: optimize cannot be combined with a searched load",
        ),
    ],
)
def test_settings_that_cannot_race_are_refused(load: Load, text: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        load(text)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (Overrides(cycles=1), r"study\.yaml:4:1: optimize: the run asks for 1 of the 2 cycles"),
        (Overrides(order="sequential"), r"study\.yaml:4:1: optimize cannot be combined with the order sequential"),
        (Overrides(fail_if={"energy_j": "5%"}), r"study\.yaml:4:1: optimize cannot be combined with --llem-fail-if"),
    ],
)
def test_options_that_no_race_can_follow_are_refused(load: Load, overrides: Overrides, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        load(SWEPT + RACE, overrides=overrides)
