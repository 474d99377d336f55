"""Results of servers: answers without a time for each token, requests that failed, settings nobody can verify."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_llem.engines.protocol import Completion
from pytest_llem.job.job import Job, MeterSettings
from pytest_llem.job.measurement import Measurement
from pytest_llem.job.report import RunReport
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from pytest_llem.worker.repeats import outputs_hash

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

KEY = CycleKey("study", "a:1", "0123456789abcdef", 1)


def derived(job: Job, measurement: Measurement) -> Result:
    run = RunReport(name="local", source="default", isolation="process", start_method="spawn")
    return derive_result(job, measurement, run, study="study", environment={})


def with_failures(bench: Bench, *indices: int) -> Measurement:
    measurement = bench.measurement()
    requests = [
        replace(request, output_tokens=0, error="http_429: no", failure="http_429", token_times_ns=None)
        if number in indices
        else request
        for number, request in enumerate(measurement.requests)
    ]
    return replace(measurement, requests=tuple(requests))


def test_without_times_of_tokens_itl_is_null_and_the_others_are_not(bench: Bench) -> None:
    measurement = bench.measurement()
    told = bench.result(measurement).latency
    requests = [
        replace(request, token_times_ns=None, first_token_ns=(request.token_times_ns or (0,))[0])
        for request in measurement.requests
    ]
    latency = bench.result(replace(measurement, requests=tuple(requests))).latency
    assert latency.itl_s is None
    assert told.itl_s is not None
    assert (latency.ttft_s, latency.tpot_s, latency.e2el_s) == (told.ttft_s, told.tpot_s, told.e2el_s)


def test_one_answer_without_a_first_token_leaves_no_distribution(bench: Bench) -> None:
    measurement = bench.measurement()
    blind = replace(measurement.requests[0], token_times_ns=None)
    latency = bench.result(replace(measurement, requests=(blind, *measurement.requests[1:]))).latency
    assert (latency.ttft_s, latency.tpot_s, latency.itl_s) == (None, None, None)
    assert latency.e2el_s is not None


def test_failures_are_counted_by_class(bench: Bench) -> None:
    result = bench.result(with_failures(bench, 0, 4))
    assert (result.workload.failed_requests, result.workload.failures) == (2, {"http_429": 2})
    assert [reason.code for reason in result.validity.reasons] == ["failed_requests"]
    assert "2 of 6 requests failed (2 http_429)" in result.validity.reasons[0].message


@pytest.mark.parametrize(("allowed", "status"), [(0.1, "invalid"), (0.2, "valid")])
def test_a_study_may_allow_a_share_of_failures(bench: Bench, allowed: float, status: str) -> None:
    """One of six; a request that failed in one repeat makes the repeats no different work."""
    job = replace(bench.job(KEY), meter=MeterSettings(thresholds={"failed_requests_rel": allowed}))
    result = derived(job, with_failures(bench, 2))
    assert result.status == status
    assert "failed_requests" in [warning.code for warning in result.warnings]
    assert result.tokens.output == 20


def test_what_a_running_server_decides_itself_is_not_taken_for_granted(bench: Bench) -> None:
    job = bench.job(KEY)
    config = replace(job.config, engine="openai", dtype="bfloat16", settings={"base_url": "http://127.0.0.1:8000"})
    measurement = bench.measurement()
    engine = replace(measurement.engine, effective={"dtype": None})
    result = derived(replace(job, config=config), replace(measurement, engine=engine))
    said = {warning.code: warning.message for warning in result.warnings}
    assert "dtype bfloat16" in said["settings_not_verified"]
    told = replace(measurement, engine=replace(engine, effective={"dtype": "bfloat16"}))
    result = derived(replace(job, config=config), told)
    assert "settings_not_verified" not in [warning.code for warning in result.warnings]


def test_texts_stand_in_for_tokens_in_the_hash_of_the_outputs() -> None:
    def answer(text: str, ids: tuple[int, ...] = ()) -> Completion:
        return Completion(0, 4, ids, 0, 1, "length", output_tokens=2, text=text)

    assert outputs_hash([answer("ab")]) == outputs_hash([answer("ab")]) != outputs_hash([answer("ac")])
    assert outputs_hash([answer("ab", (7, 8))]) == outputs_hash([answer("ac", (7, 8))])
