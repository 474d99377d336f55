"""The engine `openai` on real servers: llama.cpp's, and that of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.energy.processes import is_here, listening_pid
from pytest_llem.engines import open_engine
from pytest_llem.engines.builtin import builtin_path
from pytest_llem.engines.protocol import Engine
from pytest_llem.job.answers import before_stop
from pytest_llem.job.job import DeviceSet
from tests.engines.engine_cases import ConfigMaker, Start, generate, ids, requests_of
from tests.engines.servers.configs import config_maker
from tests.engines.servers.starting import RealServer, llama_cpp, transformers_serve
from tests.engines.test_conformance import (
    test_a_second_load_in_the_same_process_gives_the_same_answers as test_a_second_client_gets_the_same_answers,
)
from tests.engines.test_conformance import (
    test_answers_have_exactly_the_length_asked_for,
    test_batching_and_padding_change_no_answer,
    test_fixed_length_goes_on_after_the_end_of_sequence,
    test_greedy_decoding_repeats_itself,
    test_input_tokens_are_the_prompt_without_padding,
    test_long_prompt_is_answered_and_one_too_long_refused,
    test_no_prompt_token_comes_from_a_cache_after_a_reset,
    test_progress_reaches_the_end,
    test_shape_is_that_of_the_tiny_model,
    test_times_are_ordered_and_on_the_monotonic_clock,
    test_tokenizer_round_trip_and_chat,
)

__all__ = [
    "test_a_second_client_gets_the_same_answers",
    "test_answers_have_exactly_the_length_asked_for",
    "test_batching_and_padding_change_no_answer",
    "test_fixed_length_goes_on_after_the_end_of_sequence",
    "test_greedy_decoding_repeats_itself",
    "test_input_tokens_are_the_prompt_without_padding",
    "test_long_prompt_is_answered_and_one_too_long_refused",
    "test_no_prompt_token_comes_from_a_cache_after_a_reset",
    "test_progress_reaches_the_end",
    "test_shape_is_that_of_the_tiny_model",
    "test_times_are_ordered_and_on_the_monotonic_clock",
    "test_tokenizer_round_trip_and_chat",
]

pytestmark = pytest.mark.engine

STUDY = """\
name: served
model: builtin:tiny-llama
engine: openai
workload: {{prompts: 6, input_tokens: 24, output_tokens: 16}}
openai: {{base_url: {url}, api_key_env: MY_SERVERS_KEY}}
measurement: {{min_duration_s: 0.3, idle: {{duration_s: 0.1}}, warmup: {{max_repeats: 1}}}}
experiments:
  - {{id: one, openai: {{concurrency: 1}}}}
  - {{id: arriving, workload: {{arrival: {{process: constant, rate_per_s: 200}}}}}}
  - {{id: typo, openai: {{extra: {{temperature: hot}}}}}}
  - {{id: nobody, openai: {{base_url: "http://127.0.0.1:9"}}}}
execution: {{cycles: 1, retries: 0, timeout_s: 120, order: sequential}}
"""
END = 2
KEY = "a-key-that-is-nowhere"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with llama_cpp(tmp_path_factory.mktemp("llama.cpp"), f'api_keys=["{KEY}"]') as server:
        yield server


@pytest.fixture
def engine_name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MY_SERVERS_KEY", KEY)
    return "openai"


@pytest.fixture
def make_config(engine_name: str, llama: RealServer) -> ConfigMaker:
    """A configuration for the server of llama.cpp."""
    return config_maker(llama.url, api_key_env="MY_SERVERS_KEY")


def test_the_server_says_what_it_is(start: Start) -> None:
    effective = start().effective()
    assert (effective["server"], effective["max_num_seqs"], effective["max_model_len"]) == ("llama.cpp", 4, 2048)
    assert (effective["prompts_as"], effective["tokenizer"]) == ("token ids", "model")
    path = Path(str(effective["model_path"]))
    assert path.name == "tiny.gguf"
    assert (effective["dtype"], effective["quantized"], effective["model_parameters"]) == ("float32", False, 360_768)
    assert effective["model_fingerprint"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_texts_are_those_of_transformers(start: Start) -> None:
    """Same model, same work: greedy answers in float32 do not depend on who computes them.

    With `ignore_eos` llama.cpp never generates the end of sequence, where transformers goes on after it.
    """
    requests = requests_of(5, 12, 30, 9, 17, output=24, ignore_eos=False)
    served = generate(start(), requests)
    reference = open_engine("transformers")
    config = config_maker("")()
    try:
        reference.prepare(replace(config, engine="transformers", settings={"batch_size": 4}), DeviceSet("cpu"))
        reference.load()
        decode = reference.tokenizer().decode
        answers = generate(reference, requests)
        expected = [decode([token for token in c.output_ids if token != END]) for c in answers]
    finally:
        reference.shutdown()
    # Bytes that are no UTF-8 are shown piece by piece by one, and together by the other.
    assert [_letters(c.text or "") for c in served] == [_letters(text) for text in expected]
    assert {c.finish_reason for c in served} == {"length", "stop"}
    assert [(c.finish_reason, c.generated) for c in served] == [(c.finish_reason, c.generated) for c in answers]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_answers_end_before_their_first_stop_string(start: Start, api: str) -> None:
    """A scorer sees the text that comes before it, and the tokens that made it are counted.

    llama.cpp streams nothing that may be the beginning of one, and loses it where the answer ends with that.
    """
    engine = start({"api": api})
    requests = [
        replace(request, text=f"Tell me of {request.index} colours.")
        for request in requests_of(*range(4, 20), output=48, ignore_eos=False)
    ]
    free = generate(engine, requests)
    stop = ("e G", *((c.text or "")[20:24] for c in free if len(c.text or "") > 60))[:4]
    stopped = generate(engine, [replace(request, stop=stop) for request in requests])
    places = [before_stop(c.text or "", stop) for c in free]
    ended = [place != c.text for place, c in zip(places, free, strict=True)]
    assert any(ended)
    for end, whole, place, has_ended in zip(stopped, free, places, ended, strict=True):
        assert not any(string in (end.text or "") for string in stop)
        if has_ended:
            assert (end.text, end.finish_reason) == (place, "stop")
            assert end.generated < whole.generated
        else:
            assert place.startswith(end.text or "")
            assert (end.finish_reason, end.generated) == (whole.finish_reason, whole.generated)
    assert "stop_ignored" not in [note.code for note in engine.remarks()[0]]


def test_what_the_client_sees_holds_against_the_servers_own_times(start: Start) -> None:
    """By the server's clock an answer takes as long as its prompt and its tokens do; the client can only see more."""
    engine = start({"concurrency": 1})
    engine.reset_statistics()
    done = generate(engine, requests_of(600, 900, 1200, output=200))
    seen: Mapping[str, Any] = engine.statistics()
    assert seen["client_latency_s"] > seen["server_prompt_s"] + seen["server_predicted_s"] > 0
    first_s = sum(c.first_token_ns - c.start_ns for c in done if c.first_token_ns) / 3e9
    assert first_s > seen["server_prompt_s"]
    assert seen["server_counters"]["generated_tokens"] == 600
    assert seen["server_counters"]["prompt_tokens"] == 2700


def test_the_servers_own_tokenizer_stands_in_for_one_that_is_not_there(start: Start) -> None:
    text = "The Rays of Light differ in Colour."
    own, served = start(), start(model="nobody/knows-it")
    assert served.effective()["tokenizer"] == "server"
    assert served.tokenizer().encode(text) == own.tokenizer().encode(text)
    assert served.tokenizer().chat(text) == own.tokenizer().chat(text)
    assert served.tokenizer().decode(own.tokenizer().encode(text)) == text
    assert served.tokenizer().bos_id == 1


def test_a_tokenizer_of_another_model_is_not_used(start: Start, tmp_path: Path) -> None:
    """Ids of another vocabulary would be other prompts, of the same length: nothing else would show it."""
    other = tmp_path / "other"
    other.mkdir()
    for file in builtin_path("builtin:tiny-llama").iterdir():
        if not file.name.endswith(".safetensors"):
            (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    del tokenizer["model"]["merges"][:500]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    engine = start(model=str(other))
    assert engine.effective()["tokenizer"] == "server"
    assert [note.code for note in engine.remarks()[1]] == ["tokenizer_differs"]


def test_chat_counts_the_template_of_the_server(start: Start) -> None:
    engine = start({"api": "chat"})
    request = replace(requests_of(4)[0], text="What is light?")
    done = generate(engine, [request])
    assert done[0].input_tokens == len(engine.tokenizer().chat("What is light?"))
    assert done[0].generated == 8


def test_a_process_is_found_by_its_port(llama: RealServer) -> None:
    port = int(llama.url.rpartition(":")[2])
    assert listening_pid(port) == llama.pid
    assert listening_pid(1) is None
    assert (is_here("127.0.0.1"), is_here("localhost"), is_here("203.0.113.77")) == (True, True, False)


def test_a_study_of_a_running_server(
    llama: RealServer, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_SERVERS_KEY", KEY)
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    study = pytester.path / "served.yaml"
    study.write_text(STUDY.format(url=f"{llama.url}/v1"))
    options = ("--llem-out=out", "--llem-meter=estimate", "-p", "no:cacheprovider")
    run = pytester.runpytest_subprocess(f"--llem-study={study}", *options, timeout=300)
    run.assert_outcomes(passed=2, failed=2)
    run.stdout.fnmatch_lines(["*nothing answers at http://127.0.0.1:9/v1*"])
    results = [json.loads(path.read_text()) for path in (pytester.path / "out").rglob("result.json")]
    found = {result["experiment"]["id"]: result for result in results}
    assert set(found) == {"one", "arriving"}
    for result in found.values():
        assert (result["validity"]["valid"], result["validity"]["reasons"]) == (True, [])
        assert result["engine"]["version"].startswith("llama.cpp")
        assert result["engine"]["cache_reset"] == "disabled"
        assert result["workload"]["failures"] == {}
        assert (result["workload"]["output_tokens"], result["tokens"]["cached_input"]) == (96, 0)
        assert result["latency"]["ttft_s"]["p50"] > 0
        assert result["latency"]["itl_s"] is not None
        assert result["compute"]["flops"] > 0
        # The CPU time of the server counts, and not only that of its client.
        assert result["energy"]["energy_j"] > 0
    assert not [path for path in (pytester.path / "out").rglob("*") if path.is_file() and KEY in _text(path)]


def _letters(text: str) -> str:
    return text.replace("\ufffd", "")


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def test_transformers_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_at: Callable[..., Engine]) -> None:
    """It takes neither token ids nor fields that it does not know, lists no models, and has no metrics."""
    with transformers_serve(tmp_path, builtin_path("builtin:tiny-llama")) as server:
        engine = start_at(server.url)
        effective = engine.effective()
        assert (effective["prompts_as"], effective["tokenizer"]) == ("text", "model")
        assert {"ignore_eos", "return_token_ids"} <= set(effective["refused_fields"])  # type: ignore[arg-type]
        assert engine.reset() == "unknown"
        done = generate(engine, requests_of(12, 20, output=6))
        assert [(c.error, c.generated, c.cached_tokens) for c in done] == [(None, 6, None)] * 2
        assert all(c.first_token_ns is not None and c.start_ns < c.first_token_ns <= c.end_ns for c in done)
        assert ids(generate(engine, requests_of(12, 20, output=6))) == ids(done)
        longer = start_at(server.url, extra={"generation_config": '{"min_new_tokens": 48, "do_sample": false}'})
        assert [c.generated for c in generate(longer, requests_of(*range(4, 10), output=48))] == [48] * 6
        word = (done[0].text or "").split()[1]
        (stopped,) = generate(engine, [replace(requests_of(12, output=6)[0], stop=(word,))])
        # It leaves the string in, which is cut off where answers are kept.
        assert (stopped.text or "").endswith(word)
        assert (stopped.finish_reason, stopped.generated < 6) == ("stop", True)
        chat = start_at(server.url, api="chat", stream=False)
        assert [c.generated for c in generate(chat, requests_of(9, output=5))] == [5]


@pytest.fixture
def start_at() -> Iterator[Callable[..., Engine]]:
    """Engines at the URL of a server, gone when the test ends."""
    running: list[Engine] = []

    def begin(url: str, **settings: Any) -> Engine:
        engine = open_engine("openai")
        running.append(engine)
        engine.prepare(config_maker(url)(settings), DeviceSet("cpu"))
        engine.load()
        return engine

    yield begin
    for engine in running:
        engine.shutdown()
