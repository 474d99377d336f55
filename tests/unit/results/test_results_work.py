"""Where sampling may end an answer, its length is an outcome and not part of the work's identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_llem.job.measurement import Measurement
from pytest_llem.results.comparability import conditions, differences
from pytest_llem.results.derive import compare_work, derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import metric
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import Scored
from pytest_llem.scoring.texts import TEXT_SCORERS
from tests.unit.results.conftest import REPORT, Bench

Derive = Callable[[Measurement], Result]


@pytest.fixture(params=["sampled", "greedy", "sampled to a fixed length"])
def decoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def derive(bench: Bench, key: CycleKey, decoding: str) -> Derive:
    job = bench.job(key)
    config = replace(
        job.config,
        decoding=replace(job.config.decoding, do_sample=decoding != "greedy"),
        workload=replace(job.config.workload, ignore_eos=decoding == "sampled to a fixed length"),
    )
    job = replace(job, config=config)
    return lambda measurement: derive_result(job, measurement, REPORT, study=key.study, environment={})


def codes(result: Result) -> list[str]:
    return [reason.code for reason in result.validity.reasons]


def test_a_cycle_with_other_output_lengths(bench: Bench, derive: Derive, decoding: str) -> None:
    """From its second cycle on, a sampled study that may end at EOS was invalid."""
    first, second = derive(bench.measurement(output_tokens=4)), derive(bench.measurement(output_tokens=5))
    assert codes(compare_work(second, {1: first})) == ([] if decoding == "sampled" else ["work_differs"])


def test_a_repeat_with_other_output_lengths(bench: Bench, derive: Derive, decoding: str) -> None:
    measurement = bench.measurement()
    short = replace(measurement.requests[-1], output_tokens=2)
    result = derive(replace(measurement, requests=(*measurement.requests[:-1], short)))
    assert codes(result) == ([] if decoding == "sampled" else ["work_differs"])


def test_scored_answers_may_have_other_lengths_to_the_same_questions(bench: Bench, key: CycleKey) -> None:
    """Engines are not deterministic to the last bit, and a word more or less refused the whole cycle."""
    job = bench.job(key)
    settings = replace(job.config.workload, ignore_eos=False, score="exact", answer_column="answer")
    job = replace(job, config=replace(job.config, workload=settings))
    scored = Scored(TEXT_SCORERS["exact"], ())

    def derived(measurement: Measurement) -> Result:
        return derive_result(job, measurement, REPORT, study=key.study, environment={}, scored=scored)

    first, longer = derived(bench.measurement(output_tokens=4)), derived(bench.measurement(output_tokens=5))
    compared = compare_work(longer, {1: first})
    assert codes(compared) == []
    assert [note.code for note in compared.warnings] == [*(note.code for note in longer.warnings), "answers_differ"]
    measurement = bench.measurement()
    short = replace(measurement.requests[-1], output_tokens=2)
    assert codes(derived(replace(measurement, requests=(*measurement.requests[:-1], short)))) == []
    assert codes(compare_work(derived(bench.measurement(prompts_hash="q")), {1: first})) == ["work_differs"]
    more = replace(measurement.requests[-1], input_tokens=9)
    assert codes(derived(replace(measurement, requests=(*measurement.requests[:-1], more)))) == ["work_differs"]


def test_a_cycle_whose_requests_came_at_other_times(bench: Bench, derive: Derive, decoding: str) -> None:
    """The settings name a file of times; what it holds is not among them."""
    first, second = (derive(replace(bench.measurement(), arrivals_hash=name)) for name in ("a", "b"))
    assert codes(compare_work(second, {1: first})) == ["work_differs"]
    found = differences(conditions(first), conditions(second), metric("energy_j"), limit=0.05)
    assert found == ["arrivals_hash: a -> b"]


def test_a_baseline_with_other_output_lengths(bench: Bench, derive: Derive, decoding: str) -> None:
    before, now = (conditions(derive(bench.measurement(output_tokens=count))) for count in (4, 5))
    found = differences(before, now, metric("energy_j"), limit=0.05)
    assert found == ([] if decoding == "sampled" else ["output_tokens: 12 -> 15"])


def test_other_input_is_other_work_however_long_the_answers(bench: Bench, derive: Derive) -> None:
    measurement = bench.measurement()
    longer = replace(measurement.requests[-1], input_tokens=9)
    first = derive(measurement)
    assert codes(derive(replace(measurement, requests=(*measurement.requests[:-1], longer)))) == ["work_differs"]
    assert codes(compare_work(derive(bench.measurement(prompts_hash="q")), {1: first})) == ["work_differs"]
