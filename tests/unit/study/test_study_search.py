"""A searched load in a sweep: what it makes, what identifies it, and what is refused at its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.study import Study
from pytest_llem.study.search import Search

Load = Callable[..., Study]

STUDY = """\
model: m
engine: openai
openai: {base_url: "http://127.0.0.1:1/v1"}
slo: {ttft_s: 0.5}
sweep:
  workload.arrival.rate_per_s: {search: {low: 1, high: 200, tolerance: 5%, max_windows: 6}}
  dtype: [float32, bfloat16]
"""


def test_a_search_is_one_experiment_per_point_of_the_other_axes(load: Load) -> None:
    """An axis of eight loads would make eight experiments, whose cycles have different loads each."""
    study = load(STUDY)

    assert [each.id for each in study.experiments] == [
        "dtype:float32-rate_per_s:search",
        "dtype:bfloat16-rate_per_s:search",
    ]
    assert study.experiments[0].search == Search("workload.arrival.rate_per_s", 1.0, 200.0, 0.05, 6)
    assert study.point(study.experiments[1]) == ("bfloat16", "search")


def test_a_window_has_its_load_and_the_hash_of_the_search(load: Load) -> None:
    search = load(STUDY).experiments[0]
    window = search.under(9.5, seed=7)

    arrival = window.config.workload.arrival
    assert arrival is not None
    assert (arrival.process, arrival.rate_per_s, arrival.seed) == ("poisson", 9.5, 7)
    assert window.config_hash == search.config_hash


def test_more_windows_are_the_same_search_and_another_bracket_is_not(load: Load) -> None:
    """With more windows a search goes on where it ended: `--llem-resume` needs the same hash for it."""
    first = load(STUDY).experiments[0].config_hash

    assert load(STUDY.replace("max_windows: 6", "max_windows: 12")).experiments[0].config_hash == first
    assert load(STUDY.replace("high: 200", "high: 100")).experiments[0].config_hash != first
    assert load(STUDY.replace("ttft_s: 0.5", "ttft_s: 0.6")).experiments[0].config_hash != first


def test_the_rest_of_the_arrivals_is_the_study_s(load: Load) -> None:
    text = STUDY.replace("slo:", "workload: {arrival: {process: gamma, burstiness: 0.5}}\nslo:")

    arrival = load(text).experiments[0].under(20.0, seed=1).config.workload.arrival

    assert arrival is not None
    assert (arrival.process, arrival.burstiness, arrival.rate_per_s) == ("gamma", 0.5, 20.0)


def test_requests_in_flight_are_whole_numbers(load: Load) -> None:
    text = STUDY.replace("workload.arrival.rate_per_s", "openai.concurrency")

    window = load(text).experiments[0].under(16.0, seed=1)

    assert window.config.settings["concurrency"] == 16
    assert window.config.workload.arrival is None


BRACKET = "{search: {low: 1, high: 200, tolerance: 5%, max_windows: 6}}"
RATE = "workload.arrival.rate_per_s"


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("slo: {ttft_s: 0.5}", "slo: {}", "slo sets no limit (write slo: {ttft_s: 0.5, at: 99%})"),
        (BRACKET, "{search: {low: 1}}", ":6:41: sweep: a search needs high"),
        (BRACKET, "{search: {low: 9, high: 3}}", ":6:47: sweep: low 9 is not below high 3"),
        (BRACKET, "{search: {low: 0, high: 3}}", ":6:47: sweep: low 0 is not a number above 0"),
        (BRACKET, "{search: {low: 1, high: 3, tolerance: 5}}", "tolerance 5 is no share from 1% to 100%"),
        (BRACKET, "{search: {low: 1, high: 3, max_windows: 0}}", "0 is no number of windows"),
        (BRACKET, "{search: {low: 1, high: 3, lower: 2}}", "did you mean 'low'?"),
        (BRACKET, f"[4, {BRACKET}]", "a search cannot stand among other values"),
        (RATE, "workload.prompts", "workload.prompts cannot be searched"),
        (
            f"{RATE}: {BRACKET}",
            "openai.concurrency: {search: {low: 1.5, high: 8}}",
            "low 1.5 is not a whole number from 1 on",
        ),
        ("  dtype: [float32, bfloat16]", f"  openai.concurrency: {BRACKET}", f"and {RATE} is as well"),
        (
            "slo:",
            "workload: {arrival: {process: concurrency, concurrency: 4}}\nslo:",
            "use process constant or poisson",
        ),
        ("engine: openai", "engine: transformers", "it does not serve: use vllm or openai"),
    ],
)
def test_what_cannot_be_searched_is_refused_where_it_is_written(
    load: Load, written: str, instead: str, said: str
) -> None:
    assert written in STUDY
    with pytest.raises(StudyError) as error:
        load(STUDY.replace(written, instead, 1))

    assert said in str(error.value)
    assert "study.yaml:" in str(error.value)


def test_two_searches_are_one_problem(load: Load) -> None:
    """It was told twice, first as a setting `search` of two axes, which nobody had written."""
    with pytest.raises(StudyError) as error:
        load(STUDY.replace("  dtype: [float32, bfloat16]", f"  openai.concurrency: {BRACKET}"))

    assert "two axes" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("expect: {max_rate_under_slo: '>= 9'}\n", "expect.max_rate_under_slo"),
        ("compare: {fail_if: {max_rate_under_slo: -5%}}\n", "compare.fail_if.max_rate_under_slo"),
        ("execution: {headline: max_rate_under_slo}\n", "execution.headline"),
    ],
)
def test_the_answer_of_a_search_is_not_judged_without_one(load: Load, text: str, setting: str) -> None:
    """The gate would be undecided for ever, and say so only after everything was measured."""
    load(STUDY + text)
    with pytest.raises(StudyError) as error:
        load(STUDY.replace(BRACKET, "[4, 8]") + text)

    assert f"{setting} is the answer of a search, and no load is searched in rate_per_s:4" in str(error.value)
    assert "rate_per_s: {search: {low: 1, high: 200" in str(error.value)
