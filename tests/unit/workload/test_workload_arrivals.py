"""Arrival schedules: rates, bursts and concurrency as asked for."""

from __future__ import annotations

import itertools
import statistics

import pytest

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Arrival
from pytest_llem.workload.arrivals import schedule


def test_without_an_arrival_process_all_come_at_once() -> None:
    assert schedule(None, 3, seed=0).due(sent=0, finished=0, elapsed_s=0.0) == 3


def test_constant_rate() -> None:
    assert schedule(Arrival("constant", rate_per_s=4.0), 4, seed=0).times_s == [0.0, 0.25, 0.5, 0.75]


def test_bursts_keep_the_rate() -> None:
    assert schedule(Arrival("burst", rate_per_s=2.0, burst_size=4), 9, seed=0).times_s == [0.0] * 4 + [2.0] * 4 + [4.0]


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    times = schedule(Arrival("poisson", rate_per_s=10.0), 20_000, seed=1).times_s
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.03)
    assert times == schedule(Arrival("poisson", rate_per_s=10.0), 20_000, seed=1).times_s
    assert times != schedule(Arrival("poisson", rate_per_s=10.0), 20_000, seed=2).times_s


def test_concurrency_is_never_exceeded() -> None:
    plan = schedule(Arrival("concurrency", concurrency=2), 5, seed=0)
    assert plan.due(sent=0, finished=0, elapsed_s=0.0) == 2
    assert plan.due(sent=2, finished=0, elapsed_s=9.0) == 0
    assert plan.due(sent=2, finished=1, elapsed_s=9.0) == 1
    assert plan.due(sent=4, finished=4, elapsed_s=9.0) == 1


def test_requests_become_due_as_time_passes() -> None:
    plan = schedule(Arrival("constant", rate_per_s=1.0), 3, seed=0)
    assert [plan.due(1, 0, elapsed) for elapsed in (0.5, 1.0, 2.5)] == [0, 1, 2]
    assert plan.next_s(1) == 1.0
    assert plan.next_s(3) is None


@pytest.mark.parametrize(
    "arrival",
    [Arrival("constant"), Arrival("poisson", rate_per_s=0.0), Arrival("burst", rate_per_s=1.0), Arrival("concurrency")],
)
def test_a_process_without_its_numbers_is_refused(arrival: Arrival) -> None:
    with pytest.raises(WorkloadError, match="needs a positive"):
        schedule(arrival, 1, seed=0)
