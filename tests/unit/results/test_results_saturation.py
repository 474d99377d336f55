"""A load that is not kept up with is found, and no other is; tests/benchmarks/saturation.py has all rates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.config import Arrival
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import Measurement, RequestRecord
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.saturation import offered_load
from pytest_llem.results.schema import Result
from tests.benchmarks.saturation import ARRIVALS, PLACES, QUEUES, fixed, in_order, measured, shares
from tests.unit.results.conftest import REPORT

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

POISSON = ARRIVALS["poisson"]
TRIALS = 40


@pytest.mark.parametrize("queue", QUEUES)
def test_a_stable_queue_is_not_called_saturated_however_loaded(queue: str) -> None:
    """At 0.9 a queue grows for long stretches by itself, and long answers are outstanding from the start."""
    called, _ = shares(QUEUES[queue], POISSON, 0.9, requests=256, repeats=1, trials=TRIALS)
    assert called <= 1 / TRIALS


@pytest.mark.parametrize("queue", [name for name in QUEUES if name != "no queue"])
def test_an_overload_is_found(queue: str) -> None:
    called, _ = shares(QUEUES[queue], POISSON, 1.5, requests=256, repeats=1, trials=TRIALS)
    assert called >= 0.9
    called, _ = shares(QUEUES[queue], POISSON, 20, requests=512, repeats=1, trials=10)
    assert called == 1


@pytest.mark.parametrize("arrivals", ["gamma, burstiness 0.25", "bursts of 8", "constant"])
def test_bursts_and_even_arrivals_are_judged_alike(arrivals: str) -> None:
    called, _ = shares(fixed, ARRIVALS[arrivals], 0.9, requests=512, repeats=1, trials=TRIALS)
    assert called <= 1 / TRIALS
    called, _ = shares(fixed, ARRIVALS[arrivals], 1.3, requests=512, repeats=1, trials=TRIALS)
    assert called >= 0.8


def test_rates_are_those_of_the_window_and_not_of_its_tail() -> None:
    load = offered_load(measured(fixed, ARRIVALS["constant"], 1.25, 400, 1, 0), ARRIVALS["constant"])
    assert load is not None
    assert load.saturated
    assert load.offered_per_s == 1.0
    assert load.served_per_s == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize(("requests", "utilisation"), [(12, 2.0), (PLACES, 1.0), (64, 0.9)])
def test_what_is_too_short_is_left_open(requests: int, utilisation: float) -> None:
    """All answers of a short window outlast it, whether the server would keep up or not."""
    _, open_ = shares(QUEUES["32 places, fixed"], POISSON, utilisation, requests, repeats=3, trials=10)
    assert open_ >= 0.5


@pytest.mark.parametrize("arrival", [None, Arrival("concurrency", concurrency=2), Arrival("ramp", 1.0, 3.0)])
def test_a_load_without_a_rate_to_hold_is_not_judged(arrival: Arrival | None) -> None:
    """With all requests there at once, or a fixed number in flight, a queue says nothing about a rate."""
    assert offered_load(measured(fixed, POISSON, 3.0, 256, 1, 0), arrival) is None


def records(arrived: list[float], ended: list[float], **more: object) -> list[RequestRecord]:
    return [
        RequestRecord(0, index, 1, 1, round(begin * 1e9), round(end * 1e9), "length", **more)  # type: ignore[arg-type]
        for index, (begin, end) in enumerate(zip(arrived, ended, strict=True))
    ]


@pytest.mark.parametrize(("service_s", "saturated"), [(0.9, False), (1.2, True)])
def test_recorded_times_are_held_against_what_came(service_s: float, saturated: bool) -> None:
    """A schedule names no rate; half of this one came twice as fast."""
    arrived = [float(index) for index in range(300)]
    load = offered_load(records(arrived, in_order(arrived, [service_s] * 300, 1)), Arrival("schedule"))
    assert load is not None
    assert load.saturated is saturated
    assert load.offered_per_s == pytest.approx(1.0, rel=0.01)


def test_sessions_arrive_and_their_later_turns_do_not() -> None:
    """Turns wait for an answer: those after the last session came are the tail, however long it lasts."""
    arrived = [float(index) for index in range(64)]
    begun = records(arrived, [time + 0.5 for time in arrived], session="s", turn=1)
    later = [time + 40 for time in arrived]
    turns = records(later, [time + 0.5 + index / 10 for index, time in enumerate(later)], session="s", turn=2)
    load = offered_load([*begun, *turns], POISSON)
    assert load is not None
    assert load.saturated is False
    assert load.offered_per_s > 1.2


def test_the_rate_of_two_requests_of_a_trace_is_not_nought() -> None:
    """The warning asked whether 0 requests per second can be kept up: both ends of the time lie outside the blocks."""
    load = offered_load(records([0.0, 4.0], [1.0, 5.0]), Arrival("schedule"))
    assert load is not None
    assert load.saturated is None
    assert load.offered_per_s == pytest.approx(0.25)


def result(bench: Bench, key: CycleKey, arrival: Arrival, requests: list[RequestRecord]) -> Result:
    job: Job = bench.job(key)
    job = replace(job, config=replace(job.config, workload=replace(job.config.workload, arrival=arrival)))
    measurement: Measurement = replace(bench.measurement(), requests=tuple(requests), load_shape=arrival.process)
    return derive_result(job, measurement, REPORT, study=key.study, environment={})


def test_a_saturated_cycle_is_invalid_and_says_both_rates(bench: Bench, key: CycleKey) -> None:
    found = result(bench, key, POISSON, measured(fixed, POISSON, 2.0, 256, 2, 0))
    (reason,) = [reason for reason in found.validity.reasons if reason.code == "saturated"]
    assert reason.message.startswith("1 requests per second arrived and 0.496 were served")
    assert "saturation_unknown" not in {warning.code for warning in found.warnings}


def test_a_window_that_is_too_short_to_tell_is_valid_with_a_warning(bench: Bench, key: CycleKey) -> None:
    found = result(bench, key, POISSON, measured(fixed, POISSON, 0.5, 12, 2, 0))
    assert found.validity.valid
    (warning,) = [warning for warning in found.warnings if warning.code == "saturation_unknown"]
    assert "whether 1 requests per second can be kept up is not known" in warning.message


def test_a_load_that_is_kept_up_with_is_not_mentioned(bench: Bench, key: CycleKey) -> None:
    found = result(bench, key, POISSON, measured(fixed, POISSON, 0.5, 256, 2, 0))
    assert found.validity.valid
    assert not [warning for warning in found.warnings if "saturat" in warning.code]
