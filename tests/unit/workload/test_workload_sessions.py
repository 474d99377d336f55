"""Which requests a loop sends when: arrivals, places for so many at a time, turns behind the answers before them."""

from __future__ import annotations

import asyncio
import time

import pytest

from pytest_llem.engines.sending import send_all
from pytest_llem.job.request import Request
from pytest_llem.workload.arrivals import Schedule
from pytest_llem.workload.sessions import Replay

S = 1_000_000_000


def alone(count: int) -> list[Request]:
    return [Request(index, (1,), 1) for index in range(count)]


def turns(*names: str, think_s: float = 0.0) -> list[Request]:
    """A request for each name, which is that of its session: the turns come in this order."""
    return [
        Request(index, (1,), 1, session=name, turn=names[: index + 1].count(name), think_s=think_s)
        for index, name in enumerate(names)
    ]


def test_requests_become_due_as_time_passes() -> None:
    replay = Replay(alone(3), Schedule([0.0, 1.0, 2.0]), 0)
    assert list(replay.due(S // 2)) == [(0, 0)]
    assert replay.next_ns() == S
    assert list(replay.due(5 * S // 2)) == [(1, S), (2, 2 * S)]
    assert (list(replay.due(9 * S)), replay.next_ns()) == ([], None)


def test_without_a_schedule_all_are_sent_and_none_was_due() -> None:
    assert list(Replay(alone(3), Schedule([0.0] * 3), 7).due(7)) == [(0, None), (1, None), (2, None)]


def test_a_concurrency_is_never_exceeded() -> None:
    replay = Replay(alone(4), Schedule([0.0] * 4, in_flight=2), 0)
    assert [place for place, _ in replay.due(0)] == [0, 1]
    assert (list(replay.due(9 * S)), replay.next_ns()) == ([], None)
    replay.ended(1, 9 * S)
    assert replay.next_ns() == 0
    assert [place for place, _ in replay.due(9 * S)] == [2]


def test_a_turn_is_due_after_the_answer_before_it_and_its_think_time() -> None:
    replay = Replay(turns("a", "a", "b", "a", think_s=2.0), Schedule([0.0] * 4), 0)
    assert [place for place, _ in replay.due(0)] == [0, 2]
    assert replay.next_ns() is None, "nothing is due before an answer has ended"
    replay.ended(0, 5 * S)
    assert replay.next_ns() == 7 * S
    assert (list(replay.due(6 * S)), list(replay.due(8 * S))) == ([], [(1, 7 * S)])
    replay.ended(1, 9 * S)
    assert list(replay.due(11 * S)) == [(3, 11 * S)]


def test_turns_keep_their_order_wherever_they_stand_in_the_file() -> None:
    first, second, third = turns("a", "a", "a")
    replay = Replay([third, first, second], Schedule([0.0] * 3), 0)
    order = []
    for now_ns in range(3):
        ((place, _),) = replay.due(now_ns)
        order.append(place)
        replay.ended(place, now_ns)
    assert order == [1, 2, 0]


def test_sessions_that_overlap_begin_when_they_were_recorded() -> None:
    """A file holds one session after the other; a later one may begin before the turns of the one before it."""
    replay = Replay(turns("a", "a", "b"), Schedule([0.0, 100.0, 50.0]), 0)
    assert list(replay.due(0)) == [(0, 0)]
    replay.ended(0, S)
    assert list(replay.due(60 * S)) == [(2, 50 * S)]
    assert replay.next_ns() == 100 * S


def test_a_place_is_a_sessions_until_its_last_answer() -> None:
    replay = Replay(turns("a", "a", "b", think_s=1.0), Schedule([0.0] * 3, in_flight=1), 0)
    assert list(replay.due(0)) == [(0, None)]
    replay.ended(0, 0)
    assert list(replay.due(S)) == [(1, S)]
    replay.ended(1, 2 * S)
    assert list(replay.due(2 * S)) == [(2, None)]


def test_an_event_loop_sends_each_request_once_when_it_is_due() -> None:
    sent: list[tuple[int, bool]] = []

    async def send(place: int, due_ns: int | None) -> None:
        sent.append((place, due_ns is not None and due_ns <= time.monotonic_ns()))
        await asyncio.sleep(0.03 if place == 0 else 0.0)

    requests = [*turns("a", "a", think_s=0.005), *alone(1)]
    asyncio.run(send_all(requests, Schedule([0.0, 0.0, 0.01]), send))
    assert sent == [(0, True), (2, True), (1, True)]


def test_the_first_request_that_cannot_be_sent_ends_the_rest() -> None:
    """An engine that died would else be asked for every turn to come, and a request that hangs be waited for."""
    sent: list[int] = []

    async def send(place: int, _due_ns: int | None) -> None:
        sent.append(place)
        await asyncio.sleep(60.0 if place == 2 else 0.0)
        raise RuntimeError("dead")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="dead"):
        asyncio.run(send_all(turns("a", "a", "b"), Schedule([0.0] * 3), send))
    assert (sent, time.monotonic() - began < 50.0) == ([0, 2], True)
