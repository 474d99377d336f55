"""Gates on good requests: shares of all and of none, and baselines with other limits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.job.config import SloSettings
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.results.baselines import Baseline, baseline_of
from pytest_llem.results.compare import compare
from pytest_llem.results.compared_sides import side_of
from pytest_llem.results.derive import derive_result
from pytest_llem.results.gate_report import GateRow
from pytest_llem.results.gates import judge_share
from pytest_llem.results.judging import judge_experiment, judge_in_turn
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import metric
from pytest_llem.results.proportion import binomial_interval, effective_count, pooled
from pytest_llem.results.reading import Results
from pytest_llem.results.state import Outcome
from pytest_llem.results.uncertainty import budget_of_experiment
from pytest_llem.study.limits import Budget, Comparison, FailIf
from tests.unit.results.conftest import REPORT, Bench

MS = 1_000_000
COUNT = 400
Cycles = Callable[..., list[Outcome]]
METRICS = (
    "goodput_requests_per_s",
    "goodput_output_tokens_per_s",
    "joules_per_good_request",
    "good_requests_per_joule",
)


def request(index: int, good: bool) -> RequestRecord:
    """One request that answers with two tokens after 100 ms, or after a second."""
    start, first = index * MS, (100 if good else 1000) * MS
    times = (start + first, start + first + MS)
    return RequestRecord(0, index, 8, 2, start, times[-1], "length", times)


@pytest.fixture
def cycles(bench: Bench, key: CycleKey, tmp_path: Path) -> Cycles:
    """Valid cycles of `COUNT` requests each, of which so many are late, spread over the cycle."""

    def make(run_id: str, late: Sequence[int], *, ttft_s: float = 0.5) -> list[Outcome]:
        job = bench.job(key)
        job = replace(job, run_id=run_id, config=replace(job.config, slo=SloSettings(ttft_s=ttft_s)))
        outcomes = []
        for cycle, count in enumerate(late, 1):
            bad = {place * COUNT // count for place in range(count)}
            records = tuple(request(index, index not in bad) for index in range(COUNT))
            noise = 1 + (cycle % 3 - 1) / 100
            measurement = replace(bench.measurement(10 * noise), requests=records, invalid=())
            of_cycle = replace(job, cycle=cycle)
            result = derive_result(of_cycle, measurement, REPORT, study=key.study, environment={})
            valid = replace(result.validity, valid=True, reasons=())
            result = result.model_copy(update={"status": "valid", "validity": valid})
            outcomes.append(Outcome("valid", replace(key, cycle=cycle), tmp_path, result, None, 1, ()))
        return outcomes

    return make


def baseline(outcomes: Sequence[Outcome]) -> Baseline:
    return baseline_of("before", Results(tuple(o.result for o in outcomes if o.result is not None)))


def budget(cycles: list[Outcome], name: str, op: str, limit: float) -> GateRow:
    (row,) = judge_experiment(cycles, [Budget(name, op, limit)]).rows  # type: ignore[arg-type]
    return row


def test_all_good_in_all_cycles_passes_and_says_how_sure_it_is(cycles: Cycles) -> None:
    """Logarithms of 1, 1, 1 have no scatter, and an assumed 1.2 % between runs left every gate at 99 % undecided."""
    row = budget(cycles("now", [0, 0, 0]), "slo_met_share", ">=", 0.99)
    assert row.status == "pass"
    assert row.reason == "is 1 (90 % interval 0.9925 to 1), the budget is >= 0.99"


def test_more_cycles_of_the_same_few_requests_do_not_tell_more_of_the_load(cycles: Cycles) -> None:
    """Counted together, ten cycles of 400 would show 99.9 %."""
    row = budget(cycles("now", [0] * 10), "slo_met_share", ">=", 0.999)
    assert row.status == "inconclusive"
    assert row.reason.endswith("too wide to tell; raise workload.prompts")


@pytest.mark.parametrize(
    ("late", "op", "limit", "status"),
    [
        ([40, 44, 36], ">=", 0.99, "fail"),
        ([4, 4, 4], ">=", 0.99, "inconclusive"),
        ([COUNT] * 3, ">=", 0.99, "fail"),
        ([40, 44, 36], "<=", 0.95, "pass"),
        ([0, 0, 200], ">=", 0.5, "inconclusive"),  # cycles that differ by more than chance
        ([0, 0], ">=", 0.9, "inconclusive"),  # fewer than three cycles
    ],
)
def test_a_share_is_judged_by_what_its_requests_can_tell(
    cycles: Cycles, late: list[int], op: str, limit: float, status: str
) -> None:
    assert budget(cycles("now", late), "slo_met_share", op, limit).status == status


@pytest.mark.parametrize("name", METRICS)
def test_no_good_request_in_any_cycle_fails_every_gate_on_them(cycles: Cycles, name: str) -> None:
    """A zero has no logarithm, and joules for none are null: the server was down, and the gate was skipped."""
    worse = metric(name).higher_is_better
    limit = FailIf(name, -0.05 if worse else 0.05)
    report = judge_experiment(
        cycles("now", [COUNT] * 3),
        [Budget(name, ">=" if worse else "<=", 5.0)],
        Comparison((limit,)),
        baseline(cycles("before", [0, 0, 0])),
    )
    assert [row.status for row in report.rows] == ["fail", "fail"]
    assert {row.reason for row in report.rows} == {"no request was good in c1, c2, c3"}
    assert f"{name}: fail: no request was good" in report.text()


@pytest.mark.parametrize("name", METRICS)
def test_some_cycles_without_a_good_request_are_not_left_out(cycles: Cycles, name: str) -> None:
    """Left out, the cycles that went well would pass alone."""
    worse = metric(name).higher_is_better
    late = [0, 0, 0, COUNT]
    row = budget(cycles("now", late), name, ">=" if worse else "<=", 1e-6 if worse else 1e6)
    assert (row.status, row.reason) == ("inconclusive", "no request was good in c4")


def test_none_before_and_none_now_is_no_change(cycles: Cycles) -> None:
    limits = Comparison((FailIf("goodput_requests_per_s", -0.05),))
    (row,) = judge_experiment(cycles("now", [COUNT] * 3), (), limits, baseline(cycles("before", [COUNT] * 3))).rows
    assert row.status == "inconclusive"
    assert "nor in the baseline" in row.reason


@pytest.mark.parametrize(
    ("before", "status", "said"),
    [
        ({"late": [40, 44, 36]}, "fail", "no request was good in c1, c2, c3"),
        ({"late": [COUNT] * 3}, "inconclusive", "no request was good in c1, c2, c3, nor before"),
        ({"late": [COUNT] * 3, "ttft_s": 2.0}, "not_comparable", "slo: ttft_s 2, at 0.99 -> ttft_s 0.5, at 0.99"),
    ],
)
def test_in_turn_no_good_request_is_worse_than_some_and_no_worse_than_none(
    cycles: Cycles, before: dict[str, object], status: str, said: str
) -> None:
    """It failed beside a side that had none either, and beside one that was held against other limits."""
    first, second = ([o.result for o in side if o.result] for side in (cycles("a", **before), cycles("b", [COUNT] * 3)))
    limits = tuple(FailIf(name, -0.05 if metric(name).higher_is_better else 0.05) for name in METRICS)

    report = judge_in_turn(first, second, Comparison(limits))

    assert {(row.status, row.reason) for row in report.rows} == {(status, said)}


def test_a_change_is_judged_against_a_baseline(cycles: Cycles) -> None:
    limits = Comparison((FailIf("good_requests_per_joule", -0.05), FailIf("slo_met_share", -0.05)))
    before = baseline(cycles("before", [0, 0, 0]))
    alike = judge_experiment(cycles("now", [0, 1, 0]), (), limits, before)
    worse = judge_experiment(cycles("now", [100, 99, 101]), (), limits, before)
    assert [row.status for row in alike.rows] == ["pass", "pass"]
    assert [row.status for row in worse.rows] == ["fail", "fail"]


@pytest.mark.parametrize(
    ("late", "shown"),
    [
        ([COUNT] * 3, {"goodput_requests_per_s": (0.0, "lower"), "joules_per_good_request": (None, "absent")}),
        ([0, 0, COUNT], {"goodput_requests_per_s": (None, "absent"), "joules_per_good_request": (None, "absent")}),
    ],
)
def test_a_comparison_shows_that_nothing_was_good(
    cycles: Cycles, late: list[int], shown: dict[str, tuple[float | None, str]]
) -> None:
    """Of two cycles that went well and one that did not it showed those two, as if they were all."""
    before, now = (
        side_of(name, Results(tuple(o.result for o in cycles(name, count) if o.result is not None)))
        for name, count in (("before", [0, 0, 0]), ("now", late))
    )
    rows = {row.metric: row for row in compare(before, [now], metrics=list(shown))}
    assert {name: (row.current, row.verdict) for name, row in rows.items()} == shown
    assert all(row.reason.startswith("no request was good in c") for row in rows.values())


def test_other_limits_are_another_goodput_and_the_same_throughput(cycles: Cycles) -> None:
    limits = Comparison((FailIf("goodput_requests_per_s", -0.05), FailIf("output_tokens_per_s", -0.05)))
    before = baseline(cycles("before", [0, 0, 0]))
    now = cycles("now", [0, 0, 0], ttft_s=0.2)
    goodput, plain = judge_experiment(now, (), limits, before).rows
    assert (goodput.status, plain.status) == ("not_comparable", "pass")
    assert "slo: ttft_s 0.5, at 0.99 -> ttft_s 0.2, at 0.99" in goodput.reason
    allowed = judge_experiment(now, (), limits, before, allow=["slo"]).rows
    assert [row.status for row in allowed] == ["pass", "pass"]


def test_the_share_of_an_experiment_has_an_uncertainty_of_its_requests(cycles: Cycles) -> None:
    """By its scatter over cycles it was 100 % ± 0, and by half of its interval it did not reach that one's end."""
    results = [outcome.result for outcome in cycles("now", [0, 0, 0]) if outcome.result is not None]
    found = budget_of_experiment(metric("slo_met_share"), results)
    assert found is not None
    assert (found.value, found.unknown) == (1.0, None)
    low, high = binomial_interval(COUNT, COUNT, 0.9545)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert found.uncertainty == pytest.approx(1 - low, rel=1e-3)


def test_a_cycle_without_a_good_request_leaves_no_mean_of_the_others(cycles: Cycles) -> None:
    """The summary stated the joules of two cycles that went well as those of all three."""
    results = [outcome.result for outcome in cycles("now", [0, COUNT, 0]) if outcome.result is not None]
    assert budget_of_experiment(metric("joules_per_good_request"), results) is None
    assert budget_of_experiment(metric("joules_per_good_request"), results[::2]) is not None
    assert budget_of_experiment(metric("good_requests_per_joule"), results) is not None, "0 is a number"


def test_requests_that_are_late_together_count_as_fewer() -> None:
    """A queue that builds up once makes forty neighbours late: forty independent ones would be a surprise."""
    spread = [float(index % 10 != 0) for index in range(400)]
    together = [float(not 100 <= index < 140) for index in range(400)]
    assert effective_count(spread, 400) == 400
    assert effective_count(together, 400) < 25


def test_repeats_that_go_alike_count_once_and_others_in_full() -> None:
    draw = random.Random(17)
    alike = [float(draw.random() < 0.9) for _ in range(400)]
    assert effective_count(alike, 4 * 400) == pytest.approx(400, rel=0.6)
    differing = [sum(draw.random() < 0.9 for _ in range(4)) / 4 for _ in range(400)]
    assert effective_count(differing, 4 * 400) == pytest.approx(1600, rel=0.6)


def test_the_interval_of_independent_requests_holds_their_share() -> None:
    draw, held = random.Random(17), 0
    for _ in range(300):
        outcomes = [float(draw.random() < 0.97) for _ in range(200)]
        count = effective_count(outcomes, 200)
        low, high = binomial_interval(sum(outcomes) / 200 * count, count)
        held += low <= 0.97 <= high
    assert held / 300 >= 0.95


def test_cycles_that_differ_by_more_than_chance_widen_the_interval() -> None:
    assert list(pooled([0.9, 0.9, 0.9], [400.0] * 3)) == pytest.approx([0.9, 400.0])
    assert pooled([1.0, 1.0, 0.7], [400.0] * 3)[1] < 15


def test_a_share_above_one_is_no_budget() -> None:
    with pytest.raises(Exception, match="a share of 99 cannot be judged"):
        judge_share([1.0] * 3, [400.0] * 3, 99)
