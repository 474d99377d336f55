"""Arrival schedules: rates, bursts, ramps, recorded times and concurrency as asked for."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Arrival, Lengths, WorkloadSettings
from pytest_llem.job.request import Request
from pytest_llem.workload.arrivals import Schedule, schedule
from pytest_llem.workload.build import OUTPUT_STREAM, Workload, build_workload, draw_lengths
from tests.unit.workload.test_workload_build import WordTokenizer


def requests_of(count: int) -> list[Request]:
    return [Request(index, (1,), 1) for index in range(count)]


def plan_of(arrival: Arrival | None, count: int, seed: int = 0) -> Schedule:
    return schedule(WorkloadSettings(arrival=arrival, seed=seed), requests_of(count))


def gaps_of(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def test_without_an_arrival_process_all_come_at_once() -> None:
    assert plan_of(None, 3) == Schedule([0.0] * 3)


def test_constant_rate() -> None:
    assert plan_of(Arrival("constant", rate_per_s=4.0), 4).times_s == [0.0, 0.25, 0.5, 0.75]


def test_bursts_keep_the_rate() -> None:
    assert plan_of(Arrival("burst", rate_per_s=2.0, burst_size=4), 9).times_s == [0.0] * 4 + [2.0] * 4 + [4.0]


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    times = plan_of(Arrival("poisson", rate_per_s=10.0), 20_000, seed=1).times_s
    assert statistics.fmean(gaps_of(times)) == pytest.approx(0.1, rel=0.03)
    assert statistics.stdev(gaps_of(times)) == pytest.approx(0.1, rel=0.03)
    assert times == plan_of(Arrival("poisson", rate_per_s=10.0), 20_000, seed=1).times_s
    assert times != plan_of(Arrival("poisson", rate_per_s=10.0), 20_000, seed=2).times_s


def test_a_seed_gives_the_times_that_it_always_gave() -> None:
    """Results of earlier versions are compared with those of this one: another schedule would be another load."""
    times = plan_of(Arrival("poisson", rate_per_s=10.0), 5, seed=7).times_s
    assert times == pytest.approx([0.0, 0.02555490967, 0.06996525994, 0.2305263465, 0.55330870233], abs=1e-11)


@pytest.mark.parametrize("process", ["poisson", "ramp"])
@pytest.mark.parametrize("seed", [None, 1])
def test_gaps_do_not_follow_lengths(process: Literal["poisson", "ramp"], seed: int | None) -> None:
    """A long pause behind each long prompt kept queues short: at a load of 0.9 requests waited a sixth as long."""
    end = 10.0 if process == "ramp" else None
    workload = WorkloadSettings(arrival=Arrival(process, rate_per_s=10.0, end_rate_per_s=end, seed=seed))
    gaps = gaps_of(schedule(workload, requests_of(2001)).times_s)
    for stream in (0, OUTPUT_STREAM):
        lengths = draw_lengths(Lengths("uniform", 1, 1000), 2000, workload.seed + stream)
        assert abs(statistics.correlation(lengths, gaps)) < 0.1


@pytest.mark.parametrize("burstiness", [0.25, 0.9, 2.0, 16.0])
def test_gamma_gaps_have_the_mean_of_the_rate_and_the_spread_of_their_shape(burstiness: float) -> None:
    """The coefficient of variation of a gamma distribution is 1/sqrt(shape), its skewness 2/sqrt(shape)."""
    arrival = Arrival("gamma", rate_per_s=10.0, burstiness=burstiness)
    gaps = gaps_of(plan_of(arrival, 20_001, seed=3).times_s)
    mean, spread = statistics.fmean(gaps), statistics.stdev(gaps)
    skewness = statistics.fmean(((gap - mean) / spread) ** 3 for gap in gaps)
    assert mean == pytest.approx(0.1, rel=0.03)
    assert spread / mean == pytest.approx(burstiness**-0.5, rel=0.03)
    assert skewness == pytest.approx(2 * burstiness**-0.5, rel=0.12)


def test_a_burstiness_of_one_is_poisson() -> None:
    gamma = plan_of(Arrival("gamma", rate_per_s=10.0, burstiness=1.0), 50, seed=5)
    assert gamma.times_s == plan_of(Arrival("poisson", rate_per_s=10.0), 50, seed=5).times_s


@pytest.mark.parametrize(("rate", "end"), [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0)])
def test_a_ramp_goes_from_one_rate_to_the_other_in_a_straight_line_of_time(rate: float, end: float) -> None:
    """`vllm bench serve` draws a straight line over the requests instead, which is a curve of time."""
    count = 20_000
    times = plan_of(Arrival("ramp", rate_per_s=rate, end_rate_per_s=end), count, seed=2).times_s
    duration = 2 * count / (rate + end)
    assert times[-1] == pytest.approx(duration, rel=0.02)
    for tenth in range(10):
        arrived = sum(tenth <= time / duration * 10 < tenth + 1 for time in times)
        assert arrived / (duration / 10) == pytest.approx(rate + (end - rate) * (tenth + 0.5) / 10, rel=0.1)


def test_recorded_times_count_from_the_first_one() -> None:
    """A log's times may be of any clock: the time before its first request is nobody's load."""
    settings = WorkloadSettings(arrival=Arrival("schedule"))
    recorded = [Request(index, (1,), 1, due_s=due_s) for index, due_s in enumerate((1000.0, 1000.5, 1003.0))]
    assert schedule(settings, recorded).times_s == [0.0, 0.5, 3.0]
    with pytest.raises(WorkloadError, match="request 1 has none"):
        schedule(settings, [recorded[0], Request(1, (1,), 1)])


def test_a_files_times_are_those_of_the_requests_and_part_of_the_work(tmp_path: Path) -> None:
    """The settings name the file: what it holds would not be compared."""
    path = tmp_path / "times.txt"
    path.write_text("4\r\n4\r\n\r\n5.5\r\n9\r\n")

    def built(speed: float) -> Workload:
        arrival = Arrival("schedule", file=str(path))
        settings = WorkloadSettings(prompts=3, input_tokens=4, arrival=arrival, speed=speed)
        workload = build_workload(settings, WordTokenizer())
        assert schedule(settings, workload.requests).times_s == [0.0, 0.0, 1.5 / speed]
        return workload

    first = built(1.0)
    assert first.arrivals_hash == built(1.0).arrivals_hash
    assert first.arrivals_hash != built(2.0).arrivals_hash
    path.write_text("4\n4\n")
    with pytest.raises(WorkloadError, match="has 2 times, and 3 were asked for"):
        built(1.0)


def test_sessions_arrive_and_their_turns_with_them() -> None:
    turns = [("a", 1), ("a", 2), ("b", 1), (None, None), ("b", 2)]
    requests = [Request(index, (1,), 1, session=name, turn=turn) for index, (name, turn) in enumerate(turns)]
    settings = WorkloadSettings(arrival=Arrival("constant", rate_per_s=2.0))
    assert schedule(settings, requests).times_s == [0.0, 0.0, 0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    "arrival",
    [
        Arrival("constant"),
        Arrival("poisson", rate_per_s=0.0),
        Arrival("burst", rate_per_s=1.0),
        Arrival("gamma", rate_per_s=1.0),
        Arrival("ramp", rate_per_s=1.0),
        Arrival("concurrency"),
    ],
)
def test_a_process_without_its_numbers_is_refused(arrival: Arrival) -> None:
    with pytest.raises(WorkloadError, match="needs a positive"):
        plan_of(arrival, 1)
