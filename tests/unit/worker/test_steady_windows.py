"""Where the steady state of a serving load begins and ends."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.engines.protocol import Capabilities, Completion, Progress, Request
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Arrival
from pytest_llem.worker.steady import concurrency_limit, ml_energy_span, steady_span, steady_windows
from tests.unit.worker.scripted import RecordingMeter, ScriptedEngine, make_job, meter, run

__all__ = ["meter"]


def served(*spans: tuple[int, int, int]) -> list[Completion]:
    """One completion per (handed over, first token, last token)."""
    return [
        Completion(index, 4, (7, 7), start, end, "length", token_times_ns=(first, end))
        for index, (start, first, end) in enumerate(spans)
    ]


QUEUED = served((0, 10, 50), (0, 12, 60), (0, 55, 90), (0, 65, 110))


def test_it_lasts_from_the_full_engine_to_the_first_place_that_stays_empty() -> None:
    assert steady_span(QUEUED, 2) == (12, 90)


@pytest.mark.parametrize("limit", [None, 4, 5])
def test_an_engine_with_room_for_all_has_none(limit: int | None) -> None:
    """All at once and nothing waits: the tail begins with the first answer."""
    assert steady_span(QUEUED, limit) is None


def test_places_that_were_never_filled_give_none() -> None:
    """A cache too small for `max_num_seqs` requests holds fewer at once than the limit says."""
    assert steady_span(served((0, 1, 5), (0, 6, 9), (0, 10, 12)), 2) is None


def test_failed_requests_fill_no_place() -> None:
    failed = [Completion(9, 4, (), 0, 1, "error", error="aborted")]
    assert steady_span([*QUEUED, *failed], 2) == (12, 90)
    assert steady_span(failed, 1) is None


def test_arrivals_at_a_rate_are_steady_from_the_first_answer_to_the_last_arrival() -> None:
    rated = served((0, 5, 20), (10, 15, 30), (25, 28, 60), (40, 45, 80))
    assert steady_span(rated, 64, Arrival("poisson", rate_per_s=1.0)) == (20, 40)
    assert steady_span(rated, 64, Arrival("concurrency", concurrency=64)) is None


def test_later_turns_arrive_by_themselves_and_keep_no_steady_state_open() -> None:
    """While the last sessions talk on, nobody comes any more: their turns are the tail."""
    rated = served((0, 5, 20), (10, 15, 30), (25, 28, 60), (70, 75, 90))
    assert steady_span(rated, 64, Arrival("poisson", rate_per_s=1.0)) == (20, 70)
    assert steady_span(rated, 64, Arrival("poisson", rate_per_s=1.0), {3}) == (20, 25)
    assert steady_span(rated, 64, Arrival("poisson", rate_per_s=1.0), {2, 3}) is None


def test_an_overloaded_engine_is_steady_until_its_queue_is_empty() -> None:
    assert steady_span(QUEUED, 2, Arrival("constant", rate_per_s=1e9)) == (12, 90)


def test_a_fixed_concurrency_below_the_engines_places_is_the_limit() -> None:
    assert concurrency_limit(Arrival("concurrency", concurrency=3), {"max_num_seqs": 8}) == 3
    assert concurrency_limit(Arrival("concurrency", concurrency=30), {"max_num_seqs": 8}) == 8
    assert concurrency_limit(None, {"max_num_seqs": 8}) == 8
    assert concurrency_limit(None, {}) is None


def test_each_repeat_has_its_own_window_by_its_index() -> None:
    windows = steady_windows([QUEUED[:1], QUEUED], 2, None, "full")
    assert [(w.name, w.index, w.start_ns, w.end_ns, w.quiet_before_s) for w in windows] == [
        ("steady_state", 1, 12, 90, None)
    ]


def test_ml_energy_counts_first_tokens_and_answers_whatever_runs_at_once() -> None:
    """Two places and four requests: from the second first token until 4 - 2 - 1 have ended; one place: until 2 have."""
    assert ml_energy_span(QUEUED, 2) == (12, 50)
    assert ml_energy_span(QUEUED, 1) == (10, 60)
    assert ml_energy_span([*QUEUED, Completion(9, 4, (), 0, 1, "error", error="aborted")], 2) == (12, 50)


@pytest.mark.parametrize("limit", [None, 3, 4])
def test_ml_energy_has_none_where_the_tail_begins_with_the_ramp(limit: int | None) -> None:
    assert ml_energy_span(QUEUED, limit) is None


class ServingEngine(ScriptedEngine):
    """Two places for four requests, each answered a while after the one before; counts its own steps."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = Capabilities(token_times=True, serves=True)
        self.read_back = {"dtype": "float32", "max_num_seqs": 2}
        self.steps = 0

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        now = time.monotonic_ns()
        self.on_generate()
        self.steps += 1
        spans = ((10, 50), (12, 60), (55, 90), (65, 110))
        return [
            Completion(
                r.index, len(r.token_ids), (7,) * 3, now, now + b, "length", (now + a, now + (a + b) // 2, now + b)
            )
            for r, (a, b) in zip(requests, spans, strict=True)
        ]

    def reset_statistics(self) -> None:
        self.steps = 0

    def statistics(self) -> Mapping[str, JsonValue]:
        return {"steps": self.steps}

    def load_times(self) -> Mapping[str, float | None]:
        return {"compile_s": 0.25}


def test_a_study_may_ask_for_the_window_of_ml_energy(
    monkeypatch: pytest.MonkeyPatch, meter: RecordingMeter, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: ServingEngine())
    job = make_job(settings={})
    settings = replace(job.config.measurement, steady_state="ml_energy")
    measurement = run(make_job(settings={}, measurement=settings), tmp_path)
    steady = [window for window in measurement.windows if window.name == "steady_state"]
    assert {window.end_ns - window.start_ns for window in steady} == {50 - 12}


def test_a_cycle_meters_the_steady_state_of_every_repeat_and_keeps_what_the_engine_counted(
    monkeypatch: pytest.MonkeyPatch, meter: RecordingMeter, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: ServingEngine())
    measurement = run(make_job(settings={}), tmp_path)
    steady = [window for window in measurement.windows if window.name == "steady_state"]
    assert [window.index for window in steady] == [repeat.index for repeat in measurement.repeats]
    assert {window.end_ns - window.start_ns for window in steady} == {90 - 12}
    told = {window.name: window.step_s for window in measurement.windows}
    assert told["measure"] == told["steady_state"] == pytest.approx(21e-9), "the counter may keep in step with it"
    assert meter.stops == [measurement.windows]
    assert measurement.engine.statistics == {"steps": len(measurement.repeats)}
    assert measurement.timing["compile_s"] == 0.25
