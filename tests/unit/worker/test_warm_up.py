"""Warm-up of real repeats: how many it takes, and what it says about how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.job.config import WarmupSettings
from pytest_llem.job.events import EventLog
from pytest_llem.job.measurement import WarmupOutcome
from pytest_llem.worker.heartbeat import Heartbeat
from pytest_llem.worker.repeats import RepeatRunner
from tests.timed import on_a_clock
from tests.unit.worker.scripted import ScriptedEngine

pytestmark = on_a_clock


class BatchEngine(ScriptedEngine):
    """Answers with five batches of one length a repeat."""

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        start = time.monotonic_ns()
        time.sleep(0.03)
        return [Completion(i, 8, (1,), start + i * 10**6, start + (i + 1) * 10**6, "length") for i in range(5)]


WarmUp = Callable[[Sequence[float | None] | None], WarmupOutcome]


@pytest.fixture
def warm_up(tmp_path: Path) -> Iterator[WarmUp]:
    events = EventLog(tmp_path / "events.jsonl")
    settings = WarmupSettings(min_repeats=1, max_repeats=8, max_s=60.0, cv=0.5, window=3)

    def run(powers: Sequence[float | None] | None) -> WarmupOutcome:
        readings = iter(powers or ())
        runner = RepeatRunner(BatchEngine(), (), events, Heartbeat(events, 60.0))
        return runner.warm_up(settings, None if powers is None else lambda: next(readings))

    yield run
    events.close()


def test_one_repeat_is_no_convergence_however_steady_its_batches(warm_up: WarmUp) -> None:
    """It was: after one repeat there is one power reading, whose scatter was unknown and so did not count."""
    outcome = warm_up([100.0, 300.0, 500.0, 500.0, 500.0, 500.0, 500.0, 500.0])
    assert (outcome.repeats, outcome.reason) == (4, "converged")
    assert outcome.judged_by == "latency and power"


def test_a_power_reading_that_comes_late_is_waited_for(warm_up: WarmUp) -> None:
    assert warm_up([None, None, 500.0, 500.0, 500.0, 500.0, 500.0, 500.0]).repeats == 5


@pytest.mark.parametrize("powers", [None, [None] * 8])
def test_latency_alone_is_stated_as_such(warm_up: WarmUp, powers: Sequence[float | None] | None) -> None:
    outcome = warm_up(powers)
    assert (outcome.repeats, outcome.converged, outcome.judged_by) == (3, True, "latency")
