"""SLOs: which requests are good, how sure their share is, and what each of them cost."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.config import SloSettings
from pytest_llem.job.measurement import Measurement, RequestRecord
from pytest_llem.results.derive import derive_result
from pytest_llem.results.exports.vllm_bench import bench_result
from pytest_llem.results.metrics import metric, why_absent
from pytest_llem.results.performance_schema import SloSection
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.slo import is_good, kept
from tests.unit.results.conftest import REPORT

if TYPE_CHECKING:
    from pytest_llem.results.layout import CycleKey
    from tests.unit.results.conftest import Bench

MS = 1_000_000


def request(*token_ms: int, **changes: object) -> RequestRecord:
    """A request that starts at 0 and whose tokens arrive at these milliseconds."""
    times = tuple(time * MS for time in token_ms)
    record = RequestRecord(0, 0, 8, len(times), 0, times[-1] if times else MS, "length", times)
    return replace(record, **changes)  # type: ignore[arg-type]


def served(bench: Bench, key: CycleKey, slo: SloSettings, requests: Iterable[RequestRecord]) -> Result:
    """The result of 20 J over 2 s with these requests."""
    job = bench.job(key)
    job = replace(job, config=replace(job.config, slo=slo))
    measurement: Measurement = replace(bench.measurement(), requests=tuple(requests))
    return derive_result(job, measurement, REPORT, study=key.study, environment={})


def section(result: Result) -> SloSection:
    assert result.slo is not None
    return result.slo


IN_TIME, LATE, SLOW = request(100, 120, 140), request(600, 620, 640, 660), request(100, 200, 700)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        (SloSettings(ttft_s=0.1), True),  # a limit is kept when it is just met, as in vllm bench
        (SloSettings(ttft_s=0.0999), False),
        (SloSettings(tpot_s=0.035), True),  # (170 - 100) / 2
        (SloSettings(tpot_s=0.0349), False),
        (SloSettings(itl_s=0.05), True),  # the longest gap, not their mean
        (SloSettings(itl_s=0.0499), False),
        (SloSettings(e2el_s=0.17), True),
        (SloSettings(e2el_s=0.1699), False),
        (SloSettings(ttft_s=0.1, e2el_s=0.1699), False),  # all limits, not one of them
    ],
)
def test_a_request_is_good_when_it_keeps_every_limit(limits: SloSettings, good: bool) -> None:
    assert is_good(limits, request(100, 120, 170)) is good


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    """As None, its tpot made every such request bad, or the whole share unknown."""
    for one in (request(100), request(100, token_times_ns=None)):
        assert kept(SloSettings(tpot_s=0.001, itl_s=0.001), one) == {"tpot_s": True, "itl_s": True}


@pytest.mark.parametrize("bad", [request(100, error="HTTP 500"), request()], ids=["failed", "empty"])
def test_what_was_not_answered_is_late_for_every_limit(bad: RequestRecord) -> None:
    assert is_good(SloSettings(e2el_s=1000), bad) is False


def test_goodput_counts_good_requests_and_all_of_the_energy(bench: Bench, key: CycleKey) -> None:
    """Joules of requests that came too late, or failed, were not free."""
    slo = SloSettings(ttft_s=0.5, e2el_s=0.65, at=0.4)
    result = served(bench, key, slo, [IN_TIME] * 6 + [SLOW, LATE] + [request(error="HTTP 500")] * 2)
    found = section(result)
    assert (found.requests, found.good, found.share) == (10, 6, 0.6)
    assert found.met == {"ttft_s": 0.7, "e2el_s": 0.6}
    assert found.reason is None
    expected = {
        "goodput_requests_per_s": 3.0,
        "goodput_output_tokens_per_s": 9.0,
        "joules_per_good_request": 20 / 6,
        "good_requests_per_joule": 6 / 20,
        "slo_met_share": 0.6,
    }
    assert {name: metric(name).of(result) for name in expected} == pytest.approx(expected)
    assert found.joules_per_good_request_uncertainty == pytest.approx(0.3 / 6)
    assert found.good_requests_per_joule_uncertainty == pytest.approx(0.3 / 20 * 6 / 20)


def test_the_export_in_vllms_format_has_its_goodput(bench: Bench, key: CycleKey) -> None:
    result = served(bench, key, SloSettings(ttft_s=0.5), [IN_TIME] * 6 + [LATE] * 2)
    assert bench_result(result)["request_goodput"] == 3.0
    assert bench_result(served(bench, key, SloSettings(), [IN_TIME]))["request_goodput"] is None


def test_without_one_good_request_a_joule_for_it_is_not_infinite_but_null(bench: Bench, key: CycleKey) -> None:
    result = served(bench, key, SloSettings(ttft_s=0.5), [LATE] * 4)
    assert metric("joules_per_good_request").of(result) is None
    assert why_absent("joules_per_good_request", result) == "none of 4 requests was good, so no energy was spent on one"
    zeros = ("goodput_requests_per_s", "goodput_output_tokens_per_s", "good_requests_per_joule", "slo_met_share")
    assert [metric(name).of(result) for name in zeros] == [0, 0, 0, 0]


def test_a_time_that_is_not_known_of_one_request_judges_none(bench: Bench, key: CycleKey) -> None:
    """A share of the others would be that of a selection, e.g. of the answers that came in token by token."""
    unknown = replace(IN_TIME, token_times_ns=None)
    found = section(served(bench, key, SloSettings(ttft_s=0.5, e2el_s=1), [IN_TIME, unknown]))
    assert found.met == {"ttft_s": None, "e2el_s": 1.0}
    assert (found.good, found.share, found.reached, found.goodput_requests_per_s) == (None, None, None, None)
    assert found.reason == "the engine did not tell the times that ttft_s needs, of every request"


def test_neighbours_are_those_that_came_one_after_the_other(bench: Bench, key: CycleKey) -> None:
    """Neither by their index nor as they ended: a queue that built up once would look like bad luck here and there."""
    indices = random.Random(17).sample(range(400), 400)
    arrived = [
        replace(LATE if 100 <= place < 140 else IN_TIME, index=index, start_ns=place)
        for place, index in enumerate(indices)
    ]
    found = section(served(bench, key, SloSettings(ttft_s=0.5), sorted(arrived, key=lambda each: each.index)))
    assert found.share == 0.9
    assert found.effective_requests is not None
    assert found.effective_requests < 25


def test_without_limits_there_is_no_slo(bench: Bench, key: CycleKey) -> None:
    result = served(bench, key, SloSettings(), [IN_TIME])
    assert result.slo is None
    assert metric("slo_met_share").of(result) is None
    assert "sets none" in why_absent("slo_met_share", result)


@pytest.mark.parametrize(
    ("good", "at", "reached"), [(1000, 0.99, True), (960, 0.99, False), (989, 0.99, None), (995, 0.99, None)]
)
def test_a_share_is_reached_when_its_interval_says_so(
    bench: Bench, key: CycleKey, good: int, at: float, reached: bool | None
) -> None:
    late = {n * 1000 // (1000 - good) for n in range(1000 - good)}
    requests = [replace(LATE if n in late else IN_TIME, index=n) for n in range(1000)]
    assert section(served(bench, key, SloSettings(ttft_s=0.5, at=at), requests)).reached is reached


@pytest.mark.parametrize(("good", "count"), [(3, 10), (99, 100), (990, 1000)])
def test_at_the_bounds_what_was_found_has_a_chance_of_one_in_forty(good: int, count: int) -> None:
    """The definition of the exact interval, by the binomial sum itself."""

    def chance(counts: range, share: float) -> float:
        return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in counts)

    low, high = binomial_interval(good, count)
    assert 1 - chance(range(good), low) == pytest.approx(0.025, rel=1e-6)
    assert 1 - chance(range(good + 1, count + 1), high) == pytest.approx(0.025, rel=1e-6)


def test_none_or_all_leave_one_side_open() -> None:
    none, all_of_them = binomial_interval(0, 10), binomial_interval(10, 10)
    assert list(none) == pytest.approx([0.0, 1 - 0.025**0.1])
    assert list(all_of_them) == pytest.approx([0.025**0.1, 1.0])
