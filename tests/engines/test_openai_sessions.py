"""Sessions at a scripted server: the order of their turns, think times, and what keeps them together."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pytest_llem.engines.openai.client import Client, SentRequest
from pytest_llem.engines.openai.settings import ClientSettings
from pytest_llem.engines.protocol import Completion, Request
from pytest_llem.job.config import Arrival
from pytest_llem.workload.arrivals import Schedule
from pytest_llem.workload.build import build_workload
from tests.engines.servers.bench import WORKLOAD, Bench, bench, run
from tests.timed import on_a_clock

__all__ = ["bench"]

pytestmark = pytest.mark.engine


def sessions(count: int, turns: int, think_s: float = 0.0) -> list[Request]:
    """Requests of sessions `s0`, `s1`, ... of so many turns each, turn by turn, as users would mix them."""
    places = [(name, turn) for turn in range(1, turns + 1) for name in range(count)]
    return [
        Request(index, (), 3, text=f"s{name} t{turn}", session=f"s{name}", turn=turn, think_s=think_s)
        for index, (name, turn) in enumerate(places)
    ]


def by_session(requests: list[Request], done: list[Completion]) -> dict[str | None, list[Completion]]:
    turns: dict[str | None, list[Completion]] = defaultdict(list)
    for request, completion in zip(requests, done, strict=True):
        assert request.index == completion.index
        turns[request.session].append(completion)
    return turns


def test_a_turn_waits_for_the_answer_before_it_whatever_becomes_of_that(bench: Bench) -> None:
    """A turn sent early asks about an answer that nobody has read, and finds no cache of it."""
    server = bench.server("ok", "500", "drop", "ok", "no_end", "429", "malformed", piece_s=0.002)
    requests = sessions(12, 4)
    # In a file the turns of a session may stand in any order.
    done = run(bench.engine(server, stream=True), [*requests[24:], *requests[:24]])
    open_now: dict[str, int] = defaultdict(int)
    for what, key in server.seen:
        open_now[key] += 1 if what == "begin" else -1
        assert open_now[key] in (0, 1), "two turns of a session were open at a time"
    order: dict[str, list[str]] = defaultdict(list)
    for body in server.measured:
        name, turn = body["prompt"].split()
        order[name].append(turn)
    # Messages are replayed as they were recorded, so that the turns behind a failed one are the same work.
    assert dict(order) == {f"s{name}": ["t1", "t2", "t3", "t4"] for name in range(12)}
    assert {c.failure for c in done} == {None, "http_5xx", "http_429", "dropped", "malformed"}


@on_a_clock
def test_a_turn_is_due_when_its_think_time_has_passed_and_sent_then(bench: Bench) -> None:
    server = bench.server("ok", "500", piece_s=0.01, usage_s=0.02)
    requests = sessions(20, 4, think_s=0.05)
    done = run(bench.engine(server), requests)
    late = []
    for turns in by_session(requests, done).values():
        assert turns[0].due_ns is None
        for before, turn in pairwise(turns):
            assert turn.due_ns is not None
            assert turn.sent_ns is not None
            assert turn.sent_ns >= turn.due_ns >= before.end_ns + 50_000_000
            assert turn.start_ns == turn.due_ns
            late.append((turn.sent_ns - turn.due_ns) / 1e6)
    # Of hundreds, on a machine that does nothing else: tests/benchmarks/replay_precision.py.
    assert median(late) < 5.0


def test_the_recorded_time_of_a_later_turn_is_a_lower_bound(bench: Bench) -> None:
    """A server that is slower than the recorded one puts turns off; one that is faster does not bring them forward."""
    server = bench.server("ok", piece_s=0.1)
    turns = [Request(n, (), 2, text="a", session="s", turn=n + 1, think_s=0.01) for n in range(3)]
    client = Client(ClientSettings(f"{server.url}/v1"))
    going = [SentRequest(turn, b'{"prompt": "a", "max_tokens": 2, "stream": true}', 1, timed=False) for turn in turns]
    try:
        done = client.serve(
            going, f"{server.url}/v1/completions", Schedule([0.0, 0.6, 0.6]), lambda _done, _total: None
        )
    finally:
        client.close()
    begun = done[0].start_ns
    due = [((c.due_ns or 0) - begun) / 1e9 for c in done]
    assert due[1] == pytest.approx(0.6, abs=0.01)
    assert due[2] > due[1] + 0.2


def test_sessions_do_not_wait_for_each_other(bench: Bench) -> None:
    """An open loop: one that hangs holds up its own turns alone."""
    server = bench.server("hang", *["ok"] * 11)
    workload = replace(WORKLOAD, arrival=Arrival("constant", rate_per_s=50.0))
    requests = sessions(4, 3)
    done = run(bench.engine(server, {"workload": workload}, request_timeout_s=2.0), requests)
    hanging, *others = by_session(requests, done).values()
    assert hanging[0].failure == "timeout"
    assert max(turn.end_ns for turns in others for turn in turns) < hanging[0].end_ns < hanging[1].start_ns


def test_a_concurrency_is_that_of_sessions(bench: Bench) -> None:
    """A user who thinks holds a place, as with a fixed number of users; no session begins beside."""
    server = bench.server(piece_s=0.002)
    run(bench.engine(server, concurrency=2), sessions(6, 3, think_s=0.01))
    begun: list[str] = []
    left = {key: 3 for _, key in server.seen}
    for what, key in server.seen:
        if what == "begin" and key not in begun:
            begun.append(key)
            assert sum(left[other] > 0 for other in begun) <= 2
        left[key] -= what == "end"


def test_messages_go_as_recorded_and_a_key_keeps_a_session_together(bench: Bench) -> None:
    """Names of recorded sessions may tell of people: the key in the header does not."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Oslo"}'}}
    messages: tuple[dict[str, Any], ...] = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "no"},
        {"role": "user", "content": "And tomorrow?"},
    )
    turns = [
        Request(0, (1, 2), 3, session="ada@example.org", turn=1, messages=messages[:2]),
        Request(1, (1, 2, 3), 3, session="ada@example.org", turn=2, messages=messages),
        Request(2, (1, 2), 3, session="bob\n", turn=1, messages=messages[:2]),
        Request(3, (1, 2), 3, text="alone"),
    ]
    server = bench.server()
    run(bench.engine(server, api="chat"), turns)
    sent = [body["messages"] for body in server.measured]
    assert list(messages) in sent
    assert [{"role": "user", "content": "alone"}] in sent
    keys = [headers.get("x-session-id") for headers in server.headers[-4:]]
    assert sorted(keys.count(key) for key in set(keys)) == [1, 1, 2]
    assert keys.count(None) == 1
    assert not any("ada" in str(headers) for headers in server.headers)


def test_a_file_of_sessions_reaches_a_server_of_chats_as_it_is(bench: Bench, tmp_path: Path) -> None:
    """Also where nothing here knows the model's tokens: the template is the server's."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    chats = [[{"role": "user", "content": f"Rain in {place}?"}] for place in ("Oslo", "Rome")]
    rows = [{"messages": chats[0], "tools": tools}, {"messages": chats[1]}]
    path = tmp_path / "sessions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = replace(WORKLOAD, dataset=str(path), prompts=2, input_tokens=None, output_tokens=3)
    server = bench.server()
    engine = bench.engine(server, {"workload": settings}, api="chat")
    run(engine, list(build_workload(settings, engine.tokenizer(), as_messages=True).requests))
    sent = sorted((str(body["messages"]), body.get("tools"), body["max_tokens"]) for body in server.measured)
    assert sent == [(str(chats[0]), tools, 3), (str(chats[1]), None, 3)]
