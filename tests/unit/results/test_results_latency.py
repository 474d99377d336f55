"""Latencies: when a request ends, what lies between two tokens, and how many values a percentile takes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.measurement import Measurement, RequestRecord
from pytest_llem.results.exports.mlperf import summary
from pytest_llem.results.exports.otel import metrics_data
from pytest_llem.results.exports.vllm_bench import bench_result
from pytest_llem.results.metrics import METRICS, why_absent
from pytest_llem.results.performance_schema import Distribution
from pytest_llem.results.sections.performance import distribution, latency

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

MS = 1_000_000


def request(*token_ms: int, **changes: object) -> RequestRecord:
    """A request that starts at 0 and whose tokens arrive at these milliseconds."""
    times = tuple(time * MS for time in token_ms)
    record = RequestRecord(0, 0, 8, len(times), 0, times[-1], "length", times)
    return replace(record, **changes)  # type: ignore[arg-type]


def of(found: Distribution | None) -> Distribution:
    assert found is not None
    return found


def test_itl_is_per_token_and_beside_it_per_arrival_as_vllm_counts() -> None:
    """Three tokens in each arrival: vLLM's benchmark has an entry per arrival, not two zeros more."""
    bunched = [request(100, 100, 100, 130, 130, 130, 160, 160, 160)] * 20
    found = latency(bunched)
    assert of(found.itl_s).mean == pytest.approx(0.06 / 8)
    assert of(found.itl_s).p50 == 0
    assert of(found.itl_chunk_s).mean == pytest.approx(0.03)
    assert of(found.itl_chunk_s).n == 40


def test_arrivals_count_where_the_times_of_tokens_are_not_known() -> None:
    """Text in other pieces than tokens: nobody knows the gaps between tokens, and each arrival was seen."""
    pieces = request(100, 130, 160, token_times_ns=None, first_token_ns=100 * MS, output_tokens=9)
    found = latency([replace(pieces, chunk_times_ns=(100 * MS, 130 * MS, 160 * MS))] * 2)
    assert found.itl_s is None
    assert of(found.itl_chunk_s).mean == pytest.approx(0.03)
    assert of(found.itl_chunk_s).n == 4
    assert latency([pieces]).itl_chunk_s is None


def test_a_percentile_takes_as_many_values_as_leave_one_beyond_it() -> None:
    """p99 of 8 latencies was 93 % of the way from the seventh to the eighth: no percentile but nearly the largest."""
    eight, ten, ninety_nine, hundred = (of(distribution([float(v) for v in range(n)])) for n in (8, 10, 99, 100))
    assert (eight.n, eight.p50) == (8, 3.5)
    assert ten.p90 == pytest.approx(8.1)
    assert hundred.p99 == pytest.approx(98.01)
    assert [eight.p90, eight.p99, ten.p99, ninety_nine.p99] == [None] * 4


def few(bench: Bench) -> Measurement:
    """Six latencies of the fixture, none enough for a p90."""
    return bench.measurement()


def test_a_percentile_of_too_few_is_not_measured_and_the_reason_says_what_it_takes(bench: Bench) -> None:
    result = bench.result(few(bench))
    assert METRICS["ttft_p99_s"].of(result) is None
    assert METRICS["ttft_p50_s"].of(result) is not None
    assert why_absent("ttft_p99_s", result) == (
        "ttft_p99_s takes at least 100 values, and there were 6: more workload.prompts, or a longer "
        "measurement.min_duration_s"
    )
    assert why_absent("mfu", result) == "this run did not measure it"


def test_exports_state_no_percentile_of_too_few_values(bench: Bench) -> None:
    result = bench.result(few(bench))
    theirs = bench_result(result)
    assert theirs["median_ttft_ms"] is not None
    assert [theirs[key] for key in ("p90_ttft_ms", "p99_ttft_ms", "p99_e2el_ms")] == [None] * 3
    assert {value for key, value in summary(result).items() if key.startswith("99.00")} == {None}
    points = json.dumps(metrics_data(result))
    assert '"p50"' in points
    assert '"p99"' not in points
    assert '"n"' not in points


def test_power_in_otel_is_over_the_time_that_its_energy_is(bench: Bench) -> None:
    """Half a second of resets at 4 W in a window of 2 s and 20 J."""
    plain = bench.measurement()
    windows = tuple(replace(w, reset_s=0.5) if w.name == "measure" else w for w in plain.windows)
    result = bench.result(replace(plain, windows=windows))
    metrics = json.loads(json.dumps(metrics_data(result)))["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    (power,) = (m["gauge"]["dataPoints"] for m in metrics if m["name"] == "hw.power")
    assert power[0]["asDouble"] == pytest.approx((20 - 4 * 0.5) / 1.5)
    assert result.energy.avg_power_w == pytest.approx((20 - 4 * 0.5) / 1.5)


def test_the_export_in_vllms_format_has_its_itl(bench: Bench) -> None:
    plain = bench.measurement()
    records = tuple(
        replace(r, token_times_ns=tuple(t for t in (r.token_times_ns or ())[:2] for _ in range(2)))
        for r in plain.requests
    )
    assert bench_result(bench.result(replace(plain, requests=records)))["mean_itl_ms"] == pytest.approx(10.0)
