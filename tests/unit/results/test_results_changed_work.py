"""What changed the work without being a fault is in the result and said: cuts, rows passed over, answers cut off."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llem.job.measurement import Measurement, TruncatedPrompts
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from tests.unit.results.conftest import REPORT, Bench

KEY = CycleKey("study", "batch_size:1", "0123456789abcdef", 1)


def of(bench: Bench, measurement: Measurement, *, ignore_eos: bool = True) -> Result:
    job = bench.job(KEY)
    workload = replace(job.config.workload, dataset="p.jsonl", ignore_eos=ignore_eos)
    job = replace(job, config=replace(job.config, workload=workload))
    return derive_result(job, measurement, REPORT, study=KEY.study, environment={})


def told(result: Result) -> dict[str, str]:
    return {warning.code: warning.message for warning in result.warnings}


def test_cut_prompts_are_counted_with_their_tokens(bench: Bench) -> None:
    result = of(bench, replace(bench.measurement(), prompts_truncated=TruncatedPrompts(2, 591, 256)))
    assert result.workload.prompts_truncated == TruncatedPrompts(2, 591, 256)
    assert told(result) == {
        "prompts_truncated": "2 of 3 prompts were cut to workload.input_tokens: their 591 tokens became 256"
    }
    assert result.status == "valid"


def test_nothing_cut_or_passed_over_is_zero_and_unsaid(bench: Bench) -> None:
    result = of(bench, replace(bench.measurement(), prompts_truncated=TruncatedPrompts(), rows_skipped=0))
    assert (result.workload.prompts_truncated, result.workload.rows_skipped) == (TruncatedPrompts(0, 0, 0), 0)
    assert told(result) == {}


def test_rows_without_text_are_counted(bench: Bench) -> None:
    result = of(bench, replace(bench.measurement(), rows_skipped=7))
    assert result.workload.rows_skipped == 7
    assert "7 rows of p.jsonl" in told(result)["rows_skipped"]


@pytest.mark.parametrize(
    ("reasons", "ignore_eos", "message"),
    [
        (("length",) * 6, True, None),
        (("stop",) * 6, False, None),
        (
            ("stop", "stop", "length", "content_filter", "length", "stop"),
            False,
            "1 ended by content_filter, 2 ended by length",
        ),
    ],
)
def test_answers_that_did_not_reach_their_end_are_counted(
    bench: Bench, reasons: tuple[str, ...], ignore_eos: bool, message: str | None
) -> None:
    measurement = bench.measurement()
    pairs = zip(measurement.requests, reasons, strict=True)
    measurement = replace(measurement, requests=tuple(replace(r, finish_reason=reason) for r, reason in pairs))
    result = of(bench, measurement, ignore_eos=ignore_eos)
    assert result.workload.finish_reasons == {reason: reasons.count(reason) for reason in set(reasons)}
    if message is None:
        assert told(result) == {}
    else:
        assert message in told(result)["outputs_truncated"]
