"""The engine `openai` on vLLM's own server, which tells the ids of its tokens and can empty its prefix cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import cast

import pytest

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.engines.model_files import fingerprint
from pytest_llem.engines.protocol import Request
from tests.engines.engine_cases import ConfigMaker, Start, generate, ids, requests_of
from tests.engines.servers.configs import config_maker
from tests.engines.servers.starting import RealServer, vllm_server
from tests.engines.test_conformance import (
    test_a_stop_string_in_the_prompt_ends_no_answer,
    test_answers_have_exactly_the_length_asked_for,
    test_every_engine_gives_the_same_greedy_tokens,
    test_fixed_length_goes_on_after_the_end_of_sequence,
    test_input_tokens_are_the_prompt_without_padding,
    test_long_prompt_is_answered_and_one_too_long_refused,
    test_output_ends_at_the_end_of_sequence_without_padding,
    test_output_ends_at_the_first_of_its_stop_strings,
    test_times_are_ordered_and_on_the_monotonic_clock,
    test_tokenizer_round_trip_and_chat,
)

__all__ = [
    "test_a_stop_string_in_the_prompt_ends_no_answer",
    "test_answers_have_exactly_the_length_asked_for",
    "test_every_engine_gives_the_same_greedy_tokens",
    "test_fixed_length_goes_on_after_the_end_of_sequence",
    "test_input_tokens_are_the_prompt_without_padding",
    "test_long_prompt_is_answered_and_one_too_long_refused",
    "test_output_ends_at_the_end_of_sequence_without_padding",
    "test_output_ends_at_the_first_of_its_stop_strings",
    "test_times_are_ordered_and_on_the_monotonic_clock",
    "test_tokenizer_round_trip_and_chat",
]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with vllm_server(tmp_path_factory.mktemp("vllm"), builtin_path("builtin:tiny-llama")) as running:
        yield running


@pytest.fixture
def make_config(server: RealServer) -> ConfigMaker:
    """A configuration for vLLM's server."""
    return config_maker(server.url)


def long_prompts() -> list[Request]:
    """Longer than a block of the prefix cache, which on a CPU is 128 tokens."""
    return requests_of(400, 700)


def test_the_prefix_cache_is_emptied_and_seen_when_it_is_not(start: Start) -> None:
    engine = start()
    assert engine.reset() == "cleared"
    requests = long_prompts()
    assert [completion.cached_tokens for completion in generate(engine, requests)] == [0, 0]
    warm = engine.generate(requests, lambda _done, _total: None)
    assert all(completion.cached_tokens for completion in warm)
    assert [completion.cached_tokens for completion in generate(engine, requests)] == [0, 0]
    assert engine.quiesce() == "drained"


def test_what_the_server_counts_is_what_the_client_got(start: Start) -> None:
    engine = start()
    engine.reset()
    engine.reset_statistics()
    done = generate(engine, requests_of(20, 30, output=16))
    statistics = engine.statistics()
    counters = statistics["server_counters"]
    assert isinstance(counters, Mapping)
    assert (counters["prompt_tokens"], counters["generated_tokens"], counters["preemptions"]) == (50, 32, 0)
    # The client can only see more than the server does, which counts from when it has read a request.
    first_s = fmean((c.first_token_ns or 0) - c.start_ns for c in done) / 1e9
    whole_s = fmean(c.end_ns - c.start_ns for c in done) / 1e9
    server_s = [cast("float", statistics[f"server_{name}_s"]) for name in ("itl", "tpot", "ttft", "e2el")]
    assert min(server_s[:2]) > 0
    assert server_s[2] < first_s <= whole_s
    assert server_s[2] < server_s[3] < whole_s
    effective = engine.effective()
    assert (effective["server"], effective["prompts_as"], effective["refused_fields"]) == ("vllm", "token ids", ())
    assert (effective["dtype"], effective["quantized"], effective["kv_cache_dtype"]) == ("float32", False, "auto")
    assert effective["model_fingerprint"] == fingerprint(builtin_path("builtin:tiny-llama"))


def test_chat_and_answers_at_once_hold_their_ids_too(start: Start) -> None:
    requests = [replace(request, text="What is light?") for request in requests_of(4)]
    streamed, whole = start({"api": "chat"}), start({"api": "chat", "stream": False})
    done = generate(streamed, requests)
    assert done[0].input_tokens == len(streamed.tokenizer().chat("What is light?"))
    assert ids(done) == ids(generate(whole, requests))
    assert len(done[0].output_ids) == 8
