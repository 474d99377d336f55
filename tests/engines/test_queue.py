"""Against a queue of known service times the client's latencies, goodput and verdict on the load are the planted ones.

tests/benchmarks/queue_proof.py does the same with whole studies; docs/servers.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from statistics import quantiles
from urllib.request import urlopen

import pytest

from pytest_llem.job.config import Arrival, SloSettings, WorkloadSettings
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.request import Completion
from pytest_llem.results.saturation import offered_load
from pytest_llem.results.sections.performance import RequestLatency
from pytest_llem.results.sections.slo import is_good
from tests.engines.servers.bench import Bench, bench, run, texts
from tests.queue_server import Queue, between, running
from tests.timed import on_a_clock

__all__ = ["bench"]

pytestmark = pytest.mark.engine

QUEUE = Queue(places=1, prefill_s=0.012, step_s=0.004)
TOKENS = 8
CAPACITY_PER_S = QUEUE.places / QUEUE.service_s(TOKENS)


def measured(bench: Bench, queue: Queue, arrival: Arrival, count: int) -> tuple[list[RequestRecord], list[list[int]]]:
    """The requests of one repeat against such a queue, and when it wrote each one's tokens."""
    workload = WorkloadSettings(prompts=count, output_tokens=TOKENS, arrival=arrival)
    requests = texts(count, output=TOKENS)
    with running(queue) as url:
        done = run(bench.engine(url, {"workload": workload}), requests)
        with urlopen(f"{url}/served") as answer:
            served = json.load(answer)
    shared = {field.name for field in fields(RequestRecord)} & {field.name for field in fields(Completion)}
    records = [
        RequestRecord(repeat=0, output_tokens=one.generated, **{n: getattr(one, n) for n in shared - {"output_tokens"}})
        for one in done
    ]
    return records, [served[request.text][-1] for request in requests]


@on_a_clock
def test_latencies_and_goodput_are_those_of_the_server(bench: Bench) -> None:
    arrival = Arrival("poisson", rate_per_s=0.8 * CAPACITY_PER_S)
    records, written = measured(bench, QUEUE, arrival, 48)
    seen = [RequestLatency.of(record) for record in records]
    ttft = [(times[0] - record.start_ns) / 1e9 for record, times in zip(records, written, strict=True)]
    tpot = [(times[-1] - times[0]) / 1e9 / (TOKENS - 1) for times in written]
    e2el = [(times[-1] - record.start_ns) / 1e9 for record, times in zip(records, written, strict=True)]
    assert off([of.ttft_s for of in seen], ttft) < 0.001
    assert off([of.tpot_s for of in seen], tpot) < 0.001
    assert off([of.e2el_s for of in seen], e2el) < 0.001

    limit, good = between(ttft)
    assert sum(bool(is_good(SloSettings(ttft_s=limit), record)) for record in records) == good
    load = offered_load(records, arrival)
    assert load is not None
    assert load.saturated is False


def off(seen: Sequence[float | None], true: Sequence[float]) -> float:
    """How far the nearer quarter is from the truth: a machine that others use delays the rest itself."""
    return quantiles([abs(value - truth) for value, truth in zip(seen, true, strict=True) if value is not None])[0]


@on_a_clock
def test_a_level_above_the_capacity_is_refused(bench: Bench) -> None:
    arrival = Arrival("constant", rate_per_s=1.5 * CAPACITY_PER_S)
    records, _ = measured(bench, QUEUE, arrival, 40)
    load = offered_load(records, arrival)
    assert load is not None
    assert load.saturated
    assert load.served_per_s == pytest.approx(CAPACITY_PER_S, rel=0.05)


@on_a_clock
def test_an_open_loop_does_not_wait_for_answers(bench: Bench) -> None:
    """A client that waits sends less than it says, just where the server is slow: its latencies look better there."""
    records, _ = measured(bench, Queue(64, prefill_s=1.0), Arrival("gamma", 100.0, burstiness=0.5), 48)
    first_answer_ns = min(record.end_ns for record in records)
    for record in records:
        assert record.due_ns is not None
        assert record.sent_ns is not None
        assert record.due_ns <= record.sent_ns < min(record.due_ns + 50e6, first_answer_ns)
