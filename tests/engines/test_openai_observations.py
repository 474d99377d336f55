"""What the client of OpenAI-compatible servers finds out: lost and late requests, caches, others, and the model."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from pytest_llem.engines.openai import connections
from pytest_llem.engines.openai.client import Client, Sending, SentRequest
from pytest_llem.engines.openai.observations import means
from pytest_llem.engines.protocol import Completion
from pytest_llem.errors import EngineSettingError
from pytest_llem.job.config import Arrival
from tests.engines.servers.bench import WORKLOAD, Bench, bench, codes, run, texts
from tests.timed import on_a_clock

__all__ = ["bench"]

pytestmark = pytest.mark.engine


def delay(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """Let the client do nothing for a while before it sends a request, as where others have the processor."""
    whole = Client._answer

    async def slow(client: Client, sent: SentRequest, url: str, sending: Sending) -> Completion:
        time.sleep(by_s)
        return await whole(client, sent, url, sending)

    monkeypatch.setattr(Client, "_answer", slow)


def test_a_connection_that_the_server_closed_meanwhile_costs_no_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers close idle connections when they like; a request on its way then was never seen by them."""
    monkeypatch.setattr(connections, "STALE_S", 10.0)
    engine = bench.engine(bench.server("ok", "drop_later", "ok"), concurrency=1)
    done = run(engine, texts(2))
    assert [c.error for c in done] == [None, None]
    assert engine.statistics()["resent_over_closed_connections"] == 1
    assert [c.retries for c in done] == [0, 1]
    # What was lost on the way is part of the latency.
    assert done[1].end_ns - done[1].start_ns > 350_000_000


def test_no_request_goes_over_a_connection_that_is_closed_already(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that got no processor for a while had not seen it, and noticed the loss too late to send once more."""
    monkeypatch.setattr(connections, "STALE_S", 0.0)
    delay(monkeypatch, 0.2)
    engine = bench.engine(bench.server("closed_idle", "ok"), concurrency=1)
    assert [(c.error, c.retries) for c in run(engine, texts(2))] == [(None, 0), (None, 0)]


def test_an_answer_that_came_unasked_answers_no_later_request(bench: Bench) -> None:
    """It waited in the connection, and the next request had its first token after 0.1 ms."""
    server = bench.server("twice", "ok", piece_s=0.05)
    engine = bench.engine(server)
    assert [c.error for c in run(engine, texts(1))] == [None]
    time.sleep(0.3)
    (done,) = run(engine, texts(1))
    assert (done.error, len(server.measured)) == (None, 2)
    assert done.end_ns - done.start_ns > 300_000_000


def test_a_request_that_a_server_worked_on_and_lost_is_not_sent_again(bench: Bench) -> None:
    server = bench.server("ok", "drop_later", "ok")
    engine = bench.engine(server, concurrency=1)
    done = run(engine, texts(3))
    assert [c.failure for c in done] == [None, "dropped", None]
    assert [c.sent_ns for c in done] == [c.start_ns for c in done], "a failed request too says when it was sent"
    assert [(c.due_ns, c.retries) for c in done] == [(None, 0)] * 3
    assert len(server.measured) == 3
    assert "resent_over_closed_connections" not in engine.statistics()


def test_the_client_furthest_behind_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time of every request has passed before it is its turn, nobody waits, and all are late."""
    delay(monkeypatch, 0.02)
    arrival = Arrival("constant", rate_per_s=10_000.0)
    engine = bench.engine(bench.server(), {"workload": replace(WORKLOAD, arrival=arrival)})
    run(engine, texts(6))
    assert "sent_late" in codes(engine)[1]


def test_a_request_that_is_sent_late_starts_when_it_was_due(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a busy client hides the wait from every latency (coordinated omission)."""
    delay(monkeypatch, 0.02)
    arrival = Arrival("constant", rate_per_s=1000.0)
    engine = bench.engine(bench.server(), {"workload": replace(WORKLOAD, arrival=arrival)})
    done = run(engine, texts(4))
    starts = [completion.start_ns for completion in done]
    assert [round((start - starts[0]) / 1e6, 1) for start in starts[1:]] == [1.0, 2.0, 3.0]
    assert [completion.due_ns for completion in done] == starts
    assert [(c.sent_ns or 0) - start > 15_000_000 for c, start in zip(done, starts, strict=True)][2:] == [True, True]


def test_requests_of_others_are_seen_in_the_servers_metrics(bench: Bench) -> None:
    long = "# a line of many\n" * 50_000
    server = bench.server(metrics=f"{long}vllm:generation_tokens_total 100\nvllm:num_requests_running 0\n")
    engine = bench.engine(server)
    assert engine.quiesce() == "drained"
    engine.reset_statistics()
    engine.generate(texts(2), lambda _done, _total: None)
    server.script.metrics = "vllm:generation_tokens_total 117\nvllm:num_requests_running 1\n"
    assert engine.statistics()["server_counters"] == {"generated_tokens": 17}
    assert codes(engine)[0] == ["foreign_requests"]
    assert engine.quiesce() == "unknown"


def test_latencies_by_the_servers_own_clock_are_those_of_the_window(bench: Bench) -> None:
    """Means since the server's start would be those of its warm-up and of other people's requests."""
    histogram = 'vllm:e2e_request_latency_seconds_{}{{engine="{}"}} {}\n'

    def metrics(took_s: float, count: int) -> str:
        return "".join(histogram.format(*part) for part in (("sum", 0, took_s), ("sum", 1, 1.0), ("count", 0, count)))

    server = bench.server(metrics=metrics(100.0, 10))
    engine = bench.engine(server)
    engine.reset_statistics()
    server.script.metrics = metrics(103.0, 12)
    assert engine.statistics()["server_e2el_s"] == 1.5
    engine.reset_statistics()
    assert "server_e2el_s" not in engine.statistics()


def test_latencies_are_not_those_since_the_servers_start_where_the_first_metrics_did_not_come() -> None:
    """One question that a busy server left unanswered gave means over the warm-up and everybody's requests."""
    after = {"vllm:e2e_request_latency_seconds_sum": 103.0, "vllm:e2e_request_latency_seconds_count": 12.0}
    assert means({}, after) == {}
    assert means({"vllm:num_requests_running": 0.0}, after) == {"e2el": 103.0 / 12}


@on_a_clock
def test_a_first_piece_of_several_tokens_is_said_of_tpot(bench: Bench) -> None:
    """3 of 8 tokens in the first piece are too few for bunches, and made tpot 29 % too short in silence."""
    engine = bench.engine(bench.server("three_first", piece_s=0.01))
    (done,) = run(engine, texts(1))
    assert done.token_times_ns is not None
    assert len(set(done.token_times_ns)) == 6
    warnings = {note.code: note.message for note in engine.remarks()[1]}
    assert "29% too low" in warnings["tokens_bunched"]
    engine = bench.engine(bench.server("paired", piece_s=0.01))
    run(engine, texts(1))
    warnings = {note.code: note.message for note in engine.remarks()[1]}
    # 4 of 8 tokens came in pieces with others; at worst with the first.
    assert "tpot is up to 57% too low" in warnings["token_times_unknown"]


def test_what_a_server_says_of_itself_is_a_count_or_nothing(bench: Bench) -> None:
    """1e400 milliseconds, and counters beyond what a float counts, made results that could not be written."""
    metrics = "vllm:generation_tokens_total {0}\nvllm:num_requests_running {0}\nvllm:prefix_cache_hits_total 1e308\n"
    models = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": -5}]}
    timings = {"prompt_ms": float("inf"), "predicted_ms": float("nan"), "cache_n": 0}
    server = bench.server(models=models, timings=timings, metrics=metrics.format("1e300") * 2)
    engine = bench.engine(server)
    run(engine, texts(2))
    told = {**engine.statistics(), **engine.effective()}
    json.dumps(told, allow_nan=False)
    assert "server_prompt_s" not in told
    assert told["max_model_len"] is None
    assert engine.quiesce() == "drained"


def test_requests_arrive_as_the_workload_says(bench: Bench) -> None:
    arrival = Arrival("constant", rate_per_s=20.0)
    engine = bench.engine(bench.server(), {"workload": replace(WORKLOAD, arrival=arrival)})
    starts = [completion.start_ns for completion in run(engine, texts(5))]
    assert all(start - starts[0] > index * 45_000_000 for index, start in enumerate(starts[1:], start=1))
    with pytest.raises(EngineSettingError, match=r"openai\.concurrency"):
        run(bench.engine(bench.server(), {"workload": replace(WORKLOAD, arrival=arrival)}, concurrency=2), texts(2))


def test_a_cache_that_nobody_can_empty_is_unknown_unless_the_user_knows(bench: Bench) -> None:
    assert bench.engine(bench.server()).reset() == "unknown"
    assert bench.engine(bench.server(), enable_prefix_caching=False).reset() == "disabled"
    assert run(bench.engine(bench.server(cached=3)), texts(1))[0].cached_tokens == 3


def test_a_cache_that_is_busy_for_a_moment_is_emptied_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang refuses while its last step ends; only a server without the endpoint is not asked again."""
    monkeypatch.setattr("pytest_llem.engines.openai.engine.DRAIN_S", 0.1)
    models = {"data": [{"id": "m", "owned_by": "sglang"}]}
    busy = bench.server(models=models, resets=(400, 400, 200))
    assert bench.engine(busy).reset() == "cleared"
    never = bench.server(models=models, resets=(400,))
    engine = bench.engine(never)
    assert (engine.reset(), engine.reset()) == ("unknown", "unknown")
    never.script.resets = (200,)
    assert engine.reset() == "cleared"
    without = bench.server(models=models)
    engine = bench.engine(without)
    assert (engine.reset(), engine.reset(), without.resets) == ("unknown", "unknown", 1)


def test_hits_that_only_the_servers_counter_tells_are_seen(bench: Bench) -> None:
    """An answer of 200 is all that some servers say of a reset, whether their cache was emptied or not."""
    metrics = "vllm:generation_tokens_total {}\nvllm:prefix_cache_hits_total {}\n"
    server = bench.server(metrics=metrics.format(0, 0))
    engine = bench.engine(server)
    engine.reset_statistics()
    done = engine.generate(texts(2), lambda _done, _total: None)
    server.script.metrics = metrics.format(16, 48)
    engine.statistics()
    engine.read(done)
    assert codes(engine)[0] == ["prefix_cache_hit"]
    server.script.metrics = metrics.format(0, 0)
    caching = bench.engine(server, enable_prefix_caching=True)
    caching.reset_statistics()
    caching.generate(texts(2), lambda _done, _total: None)
    server.script.metrics = metrics.format(16, 48)
    caching.statistics()
    assert codes(caching)[0] == []


def test_path_and_context_are_those_of_the_model_that_is_named(bench: Bench) -> None:
    listed = [{"id": name, "owned_by": "vllm", "root": f"/{name}", "max_model_len": n} for n, name in enumerate("ab")]
    models = {"data": listed}
    found = bench.engine(bench.server(models=models), served_model="b").effective()
    assert (found["served_model"], found["model_path"], found["max_model_len"]) == ("b", "/b", 1)
    other = bench.engine(bench.server(models=models), served_model="c").effective()
    assert (other["server"], other["model_path"], other["max_model_len"]) == ("vllm", None, None)
