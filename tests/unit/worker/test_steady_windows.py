"""Where the steady state of a serving load begins and ends."""

from __future__ import annotations

import pytest

from pytest_llem.engines.protocol import Completion
from pytest_llem.job import Arrival
from pytest_llem.worker.steady import concurrency_limit, steady_span, steady_windows


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


def test_an_overloaded_engine_is_steady_until_its_queue_is_empty() -> None:
    assert steady_span(QUEUED, 2, Arrival("constant", rate_per_s=1e9)) == (12, 90)


def test_a_fixed_concurrency_below_the_engines_places_is_the_limit() -> None:
    assert concurrency_limit(Arrival("concurrency", concurrency=3), {"max_num_seqs": 8}) == 3
    assert concurrency_limit(Arrival("concurrency", concurrency=30), {"max_num_seqs": 8}) == 8
    assert concurrency_limit(None, {"max_num_seqs": 8}) == 8
    assert concurrency_limit(None, {}) is None


def test_each_repeat_has_its_own_window_by_its_index() -> None:
    windows = steady_windows([QUEUED[:1], QUEUED], 2, None)
    assert [(w.name, w.index, w.start_ns, w.end_ns, w.quiet_before_s) for w in windows] == [
        ("steady_state", 1, 12, 90, None)
    ]
