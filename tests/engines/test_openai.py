"""The client of OpenAI-compatible servers, against one that misbehaves on demand."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llem.engines.openai.client import Reply
from pytest_llem.engines.openai.tokenizers import ServerTokenizer
from pytest_llem.engines.protocol import TextOnly
from pytest_llem.errors import EngineError, EngineSettingError, ServerUnreachableError, WorkloadError
from pytest_llem.job.config import Decoding
from pytest_llem.workload.build import build_workload
from tests.engines.engine_cases import requests_of
from tests.engines.servers.bench import WORKLOAD, Bench, bench, codes, run, texts

__all__ = ["bench"]

pytestmark = pytest.mark.engine


def test_a_streamed_answer_has_a_time_for_every_token(bench: Bench) -> None:
    done = run(bench.engine(bench.server(piece_s=0.002)), texts(3))
    for index, completion in enumerate(done):
        assert (completion.index, completion.generated, completion.text) == (index, 8, "w" * 8)
        assert completion.token_times_ns is not None
        assert len(completion.token_times_ns) == 8
        assert completion.start_ns < completion.token_times_ns[0] < completion.token_times_ns[-1] == completion.end_ns


def test_pieces_are_never_counted_as_tokens(bench: Bench) -> None:
    """Eleven events for 24 tokens were seen elsewhere; only `usage` says how many there are."""
    engine = bench.engine(bench.server("paired", piece_s=0.002))
    done = run(engine, texts(2))
    assert [completion.generated for completion in done] == [8, 8]
    assert [completion.token_times_ns for completion in done] == [None, None]
    assert all(c.first_token_ns is not None and c.start_ns < c.first_token_ns < c.end_ns for c in done)
    assert "token_times_unknown" in codes(engine)[1]


@pytest.mark.parametrize("answer", ["ok", "paired"])
def test_a_request_ends_with_its_last_token_and_not_with_the_usage_after_it(bench: Bench, answer: str) -> None:
    """Usage that came 50 ms late made a TPOT of 40 ms 17 % longer, where the times of tokens were not known."""
    (done,) = run(bench.engine(bench.server(answer, piece_s=0.01, usage_s=0.5)), texts(1))
    assert done.first_token_ns is not None
    assert 0.02 < (done.end_ns - done.first_token_ns) / 1e9 < 0.4
    assert (done.token_times_ns is None) == (answer == "paired")


def test_arrivals_are_told_apart_from_tokens(bench: Bench) -> None:
    (paired,) = run(bench.engine(bench.server("paired", piece_s=0.01)), texts(1))
    assert paired.token_times_ns is None
    assert paired.chunk_times_ns is not None
    assert (len(paired.chunk_times_ns), paired.chunk_times_ns[0]) == (4, paired.first_token_ns)
    (single,) = run(bench.engine(bench.server(piece_s=0.01)), texts(1))
    assert single.token_times_ns is not None
    assert single.chunk_times_ns in (None, single.token_times_ns)


def test_an_event_stream_may_be_cut_anywhere(bench: Bench) -> None:
    assert [c.text for c in run(bench.engine(bench.server("torn")), texts(2, output=3))] == ["www", "www"]


def test_an_answer_that_is_not_streamed_has_no_first_token(bench: Bench) -> None:
    server = bench.server()
    done = run(bench.engine(server, stream=False), texts(2))
    assert [(c.generated, c.first_token_ns, c.token_times_ns) for c in done] == [(8, None, None)] * 2
    assert "stream_options" not in server.measured[0]
    assert [c.generated for c in run(bench.engine(bench.server("whole")), texts(2))] == [8, 8]


def test_chat_sends_messages_and_reads_their_deltas(bench: Bench) -> None:
    server = bench.server()
    done = run(bench.engine(server, api="chat"), texts(1))
    assert server.measured[0]["messages"] == [{"role": "user", "content": "prompt 0"}]
    assert (done[0].text, done[0].generated) == ("w" * 8, 8)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ("drop", "dropped"),
        ("drop_at_once", "dropped"),
        ("no_end", "dropped"),
        ("stall", "stalled"),
        ("hang", "timeout"),
        ("429", "http_429"),
        ("500", "http_5xx"),
        ("malformed", "malformed"),
        ("not_http", "malformed"),
        ("error_event", "server_error"),
        ("wrong_usage", "wrong_usage"),
        ("no_usage", "no_usage"),
    ],
)
def test_a_failed_request_is_counted_by_its_class_and_nowhere_else(bench: Bench, answer: str, failure: str) -> None:
    server = bench.server("ok", answer, answer)
    engine = bench.engine(server, request_timeout_s=2.0, concurrency=1)
    done = run(engine, texts(2))
    assert (done[0].error, done[0].generated) == (None, 8)
    assert done[1].failure == failure
    assert done[1].error is not None
    assert done[1].generated == 0


def test_when_every_request_fails_there_is_nothing_to_measure(bench: Bench) -> None:
    engine = bench.engine(bench.server("429", "500"))
    with pytest.raises(EngineError, match="2 http_429, 2 http_5xx") as caught:
        run(engine, texts(4))
    assert caught.value.fix


def test_one_slow_request_holds_no_other_up(bench: Bench) -> None:
    engine = bench.engine(bench.server("hang", "ok", "ok", "ok"), request_timeout_s=2.0)
    done = run(engine, texts(4))
    assert sorted(c.failure or "ok" for c in done) == ["ok", "ok", "ok", "timeout"]
    assert max(done, key=lambda c: c.end_ns).failure == "timeout"


@pytest.mark.parametrize("refuses", ["named", "unnamed"])
def test_fields_that_a_server_refuses_are_left_out_from_then_on(bench: Bench, refuses: str) -> None:
    server = bench.server(refuses=refuses)
    engine = bench.engine(server)
    done = run(engine, texts(3))
    assert [c.error for c in done] == [None] * 3
    assert all("ignore_eos" not in body and "return_token_ids" not in body for body in server.measured)
    assert "fields_refused" in codes(engine)[1]
    assert "ignore_eos" in str(engine.effective()["refused_fields"])


def test_a_setting_of_the_study_is_never_left_out(bench: Bench) -> None:
    server = bench.server(refuses="named")
    with pytest.raises(EngineSettingError, match=r"decoding\.top_k") as caught:
        bench.engine(server, {"decoding": Decoding(do_sample=True, top_k=5)})
    assert caught.value.fix
    with pytest.raises(EngineSettingError, match=r"openai\.extra\.guided"):
        bench.engine(server, extra={"guided": "no"})


def test_stop_strings_are_sent_and_never_left_out(bench: Bench) -> None:
    """Without them answers would be longer: other work under the same name."""
    server = bench.server(most_stops=4)
    requests = [replace(request, stop=("\n\n", "Q:")) for request in texts(2)]
    assert [c.error for c in run(bench.engine(server), requests)] == [None] * 2
    assert [body["stop"] for body in server.measured] == [["\n\n", "Q:"]] * 2
    many = [replace(request, stop=tuple("abcde")) for request in requests]
    with pytest.raises(EngineSettingError, match="refuses the stop strings of the workload, 5 of them") as caught:
        run(bench.engine(server), many)
    assert "four" in str(caught.value.fix)


@pytest.mark.parametrize(("stop", "codes_found"), [("x", []), ("w", ["stop_ignored"])])
def test_a_server_that_passes_over_stop_strings_is_found_out(bench: Bench, stop: str, codes_found: list[str]) -> None:
    """Its answers would be scored right, by their beginning, and cost the energy of all that came behind."""
    engine = bench.engine(bench.server())
    run(engine, [replace(request, stop=(stop,)) for request in texts(2, output=80)])
    assert codes(engine)[0] == codes_found


@pytest.mark.parametrize(("said", "codes_found"), [("short", []), ("w" * 80, ["stop_ignored"])])
def test_a_stop_string_in_thoughts_alone_ends_no_answer(bench: Bench, said: str, codes_found: list[str]) -> None:
    """Servers that tell thoughts apart may look for strings behind them alone: each cycle was invalid for that."""
    engine = bench.engine(bench.server())
    requests = [replace(request, stop=("w",)) for request in texts(2)]
    engine.reset_statistics()
    done = engine.generate(requests, lambda _done, _total: None)
    engine._ready().observations.read([replace(one, text="w" * 80 + said, said=said) for one in engine.read(done)])
    assert codes(engine)[0] == codes_found


def test_a_server_that_ignores_a_fixed_length_is_found_out(bench: Bench) -> None:
    engine = bench.engine(bench.server("short"))
    assert [c.generated for c in run(engine, texts(2))] == [2, 2]
    invalid, _ = engine.remarks()
    assert [note.code for note in invalid] == ["ignore_eos_ignored"]
    assert "workload.ignore_eos" in invalid[0].message


def test_other_prompt_lengths_are_taken_from_the_server_and_said(bench: Bench) -> None:
    engine = bench.engine(bench.server(prompt_tokens=9))
    run(engine, texts(1))
    assert "input_tokens_differ" not in codes(engine)[1]
    made = [replace(request, text="four tokens of text") for request in requests_of(4)]
    assert run(engine, made)[0].input_tokens == 9
    assert "input_tokens_differ" in codes(engine)[1]


def test_a_chat_whose_prompts_a_server_cuts_is_said(bench: Bench) -> None:
    """Its template only adds tokens: fewer than the message has mean that the server cut it."""
    messages = [replace(request, text="a message") for request in requests_of(4, 9)]
    engine = bench.engine(bench.server(prompt_tokens=6), api="chat")
    run(engine, messages[:1])
    assert "input_tokens_differ" not in codes(engine)[1]
    run(engine, messages)
    warnings = {note.code: note.message for note in engine.remarks()[1]}
    assert "for 1 requests (1 of them shorter" in warnings["input_tokens_differ"]


def test_a_template_reaches_a_server_that_takes_completions_as_text(bench: Bench, tmp_path: Any) -> None:
    """Such a server applies no template: without it the prompt was the bare text."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is light?\n")
    workload = replace(WORKLOAD, dataset=str(prompts), prompts=1, input_tokens=None, chat_template=True)
    for api in ("completions", "chat"):
        server = bench.server(prompts="text")
        engine = bench.engine(server, {"model": "builtin:tiny-llama", "workload": workload}, api=api)
        made = build_workload(workload, engine.tokenizer())
        run(engine, list(made.requests))
        (body,) = server.measured
        if api == "chat":
            assert body["messages"] == [{"role": "user", "content": "What is light?"}]
        else:
            # The first token is the server's to put.
            assert body["prompt"] == "<|user|>What is light?<|assistant|>"


@pytest.mark.parametrize("written", ["<s> user a", "user a"])
def test_a_server_that_adds_a_first_token_to_one_in_the_template_has_it_once(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """llama.cpp renders the template as text, and puts its first token before that."""
    words = {"<s>": 1, "user": 5, "a": 6}

    def ask(url: str, body: dict[str, Any], **_: Any) -> Reply:
        if url.endswith("/apply-template"):
            return Reply(200, written, {}, {"prompt": written})
        tokens = [words[word] for word in body["content"].split()]
        return Reply(200, "", {}, {"tokens": [1, *tokens] if body["add_special"] else tokens})

    client = SimpleNamespace(ask=ask)
    assert ServerTokenizer(client, "http://here", "m").chat("a") == [1, 5, 6]  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "told"), [("stop", "stop"), ("max_tokens", "length"), ("content_filter",) * 2])
def test_why_an_answer_ended_is_told_in_the_servers_word(bench: Bench, word: str, told: str) -> None:
    (done,) = run(bench.engine(bench.server(reason=word)), texts(1, ignore_eos=False))
    assert done.finish_reason == told


def test_as_many_requests_are_open_as_the_study_says(bench: Bench) -> None:
    server = bench.server(piece_s=0.002)
    run(bench.engine(server, concurrency=3), texts(12, output=4))
    assert server.most_open == 3
    assert server.connections <= 7
    many = bench.server(piece_s=0.3)
    run(bench.engine(many), texts(12, output=2))
    assert many.most_open == 12


def test_the_collector_of_garbage_is_on_again_afterwards(bench: Bench) -> None:
    run(bench.engine(bench.server()), texts(2))
    assert gc.isenabled()


def test_an_interruption_leaves_no_request_open(bench: Bench) -> None:
    server = bench.server("hang")
    engine = bench.engine(server)

    def interrupt() -> None:
        while server.open < 3:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(engine, texts(3))
    engine.shutdown()
    assert _becomes(lambda: (server.open, server.abandoned) == (0, 3))


def test_the_key_is_sent_and_written_down_nowhere(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats what it was sent must not put the key into an error."""
    monkeypatch.setenv("MY_SERVERS_KEY", "tell-nobody-of-this")
    server = bench.server("ok", "500", key="tell-nobody-of-this")
    engine = bench.engine(server, api_key_env="MY_SERVERS_KEY", concurrency=1)
    done = run(engine, texts(2))
    assert done[1].failure == "http_5xx"
    everything = (done, engine.effective(), engine.statistics(), engine.remarks(), engine.__dict__)
    assert "tell-nobody" not in repr(everything)
    with pytest.raises(EngineSettingError, match="wants a key") as refused:
        bench.engine(server)
    assert "api_key_env" in str(refused.value.fix)
    monkeypatch.setenv("MY_SERVERS_KEY", "another-one-of-them")
    with pytest.raises(EngineSettingError, match="refuses the key in MY_SERVERS_KEY") as wrong:
        bench.engine(server, api_key_env="MY_SERVERS_KEY")
    assert "another-one" not in str(wrong.value)
    monkeypatch.delenv("MY_SERVERS_KEY")
    with pytest.raises(EngineSettingError, match="MY_SERVERS_KEY is not set"):
        bench.engine(server, api_key_env="MY_SERVERS_KEY")


def test_nothing_answers(bench: Bench) -> None:
    with pytest.raises(ServerUnreachableError, match=r"nothing answers at http://127\.0\.0\.1:1/v1") as caught:
        bench.engine("http://127.0.0.1:1")
    assert "openai.command" in str(caught.value.fix)


def test_a_server_that_loads_is_waited_for(bench: Bench) -> None:
    assert bench.engine(bench.server(health=(503, 503, 200))).effective()["served_model"] == "scripted"
    with pytest.raises(ServerUnreachableError, match="not ready after"):
        bench.engine(bench.server(health=(503,)), ready_timeout_s=0.5)


def test_without_a_list_of_models_the_study_names_it(bench: Bench) -> None:
    assert bench.engine(bench.server(models=None)).effective()["served_model"] == "nobody/knows-it"
    assert bench.engine(bench.server(models="nonsense")).effective()["served_model"] == "nobody/knows-it"
    assert bench.engine(bench.server(), served_model="mine").effective()["served_model"] == "mine"


def test_a_server_without_usage_cannot_be_measured(bench: Bench) -> None:
    server = bench.server()
    server.script.prompt_tokens = -1
    with pytest.raises(EngineError, match="prompt_tokens is -1"):
        bench.engine(server)


def test_without_a_tokenizer_texts_go_as_they_are(bench: Bench, tmp_path: Any) -> None:
    server = bench.server(prompts="text")
    engine = bench.engine(server)
    tokenizer = engine.tokenizer()
    assert isinstance(tokenizer, TextOnly)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is light?\nWhat is colour?\n")
    dataset = replace(WORKLOAD, dataset=str(prompts), prompts=2, input_tokens=None)
    workload = build_workload(dataset, tokenizer)
    done = run(engine, list(workload.requests))
    assert [body["prompt"] for body in server.measured] == ["What is light?", "What is colour?"]
    assert [c.input_tokens for c in done] == [3, 3]
    other = build_workload(replace(dataset, order="grouped", prompts=1), tokenizer)
    assert other.prompts_hash != workload.prompts_hash
    for needs_tokens in (WORKLOAD, replace(dataset, input_tokens=2)):
        with pytest.raises(EngineSettingError, match="need a tokenizer"):
            build_workload(needs_tokens, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_such_setting": 1}, "no such setting"),
        ({"base_url": "localhost:8000"}, "not the URL of a server"),
        ({"base_url": "http://me:secret@localhost:8000/v1"}, "user name, a password or a query"),
        ({"base_url": "http://localhost:8000/v1?api-key=secret"}, "a password or a query"),
        ({"base_url": "me:secret@localhost:8000/v1"}, "user name, a password"),
        ({"base_url": "localhost:8000/v1?api-key=secret"}, "a password or a query"),
        ({"base_url": None}, "openai.base_url: not set"),
        ({"api": "responses"}, "unknown API"),
    ],
)
def test_wrong_settings_are_refused(bench: Bench, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineSettingError, match=message) as caught:
        bench.engine("http://127.0.0.1:1", **settings)
    assert caught.value.fix
    assert "secret" not in str(caught.value)


def test_a_request_beyond_the_context_is_refused_before_it_is_sent(bench: Bench) -> None:
    models = {"data": [{"id": "small", "owned_by": "vllm", "max_model_len": 32}]}
    server = bench.server(models=models)
    with pytest.raises(WorkloadError, match="32"):
        run(bench.engine(server), requests_of(30))
    assert server.measured == []


def _becomes(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()
