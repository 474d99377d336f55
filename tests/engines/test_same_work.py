"""One greedy workload on every engine: the same model in float32 gives the same work, token for token.

transformers is the reference in each environment: beside vLLM in one, beside the server of llama.cpp in the other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.engines.builtin import builtin_path
from pytest_llem.engines.hub_models import HubTokenizer
from pytest_llem.errors import EngineSettingError
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.measurement import TruncatedPrompts
from pytest_llem.workload.build import build_workload
from tests.engines.engine_cases import generate
from tests.engines.servers.starting import llama_cpp

pytestmark = pytest.mark.engine
pytest.importorskip("transformers")

HAS_VLLM = importlib.util.find_spec("vllm") is not None
END = 2


@dataclass(frozen=True)
class Work:
    """What an engine made of the workload; `shape` is unknown to the client of a server."""

    prompts_hash: str
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    reasons: Sequence[str]
    texts: Sequence[str]
    shape: tuple[Any, ...] = field(compare=False)


@pytest.fixture(scope="module", params=["vllm"] if HAS_VLLM else ["openai"])
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Another engine than transformers, with its settings."""
    if request.param == "vllm":
        yield "vllm", {"enforce_eager": True}
    else:
        with llama_cpp(tmp_path_factory.mktemp("llama.cpp")) as server:
            yield "openai", {"base_url": server.url}


def work(engine_name: str, settings: dict[str, Any], *, ignore_eos: bool) -> Work:
    config = ExperimentConfig(
        model="builtin:tiny-llama",
        engine=engine_name,
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", 6, 24, 48, seed=3, ignore_eos=ignore_eos),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings=settings,
    )
    engine = open_engine(engine_name)
    try:
        engine.prepare(config, DeviceSet("cpu"))
        engine.load()
        tokenizer = engine.tokenizer()
        workload = build_workload(config.workload, tokenizer)
        completions = generate(engine, list(workload.requests))
        shape = engine.shape()
        assert shape is not None
        return Work(
            workload.prompts_hash,
            [c.input_tokens for c in completions],
            [c.generated for c in completions],
            [c.finish_reason for c in completions],
            [
                letters(c.text if c.text is not None else tokenizer.decode(without_end(c.output_ids)))
                for c in completions
            ],
            (shape.layers, shape.hidden_size, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab_size),
        )
    finally:
        engine.shutdown()


def without_end(output_ids: Sequence[int]) -> list[int]:
    return [token for token in output_ids if token != END]


def letters(text: str) -> str:
    """The text without bytes that are no UTF-8, which each tokenizer shows in its own way."""
    return text.replace("\ufffd", "")


def test_answers_that_end_where_they_end_are_the_same(other: tuple[str, dict[str, Any]]) -> None:
    ours, theirs = work("transformers", {"batch_size": 3}, ignore_eos=False), work(*other, ignore_eos=False)
    assert theirs == ours
    assert theirs.shape == ours.shape
    assert ours.input_tokens == [24] * 6
    assert len(set(ours.texts)) == 6
    assert set(ours.reasons) == {"length", "stop"}


def test_answers_of_fixed_length_are_the_same_work(other: tuple[str, dict[str, Any]]) -> None:
    """llama.cpp never generates an end of sequence that it is to ignore, where others go on after it: the same work."""
    ours, theirs = work("transformers", {"batch_size": 3}, ignore_eos=True), work(*other, ignore_eos=True)
    assert theirs.prompts_hash == ours.prompts_hash
    assert theirs.input_tokens == ours.input_tokens == [24] * 6
    assert theirs.output_tokens == ours.output_tokens == [48] * 6
    if other[0] == "vllm":
        assert theirs.texts == ours.texts


def test_a_cut_chat_keeps_its_first_token_end_of_turn_and_header(tmp_path: Path) -> None:
    """By the real template of a real tokenizer: cut after it, all that came behind the text was gone."""
    from transformers import AutoTokenizer

    text = " ".join(["light and colour"] * 100)
    (tmp_path / "p.txt").write_text(f"{text}\nWhat is light?\n")
    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(builtin_path("builtin:tiny-llama")))
    settings = WorkloadSettings(str(tmp_path / "p.txt"), 2, 64, 4, chat_template=True)
    workload = build_workload(settings, tokenizer)
    long, short = (tokenizer.decode(request.token_ids) for request in workload.requests)
    assert long.startswith("<s><|user|>light and colour light")
    assert long.endswith("<|assistant|>")
    assert long.count("<s>") == 1
    assert short == "<s><|user|>What is light?<|assistant|>"
    assert len(workload.requests[0].token_ids) == 64
    before = len(tokenizer.chat(text))
    assert workload.truncated == TruncatedPrompts(1, before, 64)


TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{% for message in messages %}"
    "{% if message.role == 'developer' %}{{ raise_exception('no such role') }}{% endif %}<{{ message.role }}>"
    "{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function.arguments.at }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_session_is_in_the_template_with_its_tools_and_calls() -> None:
    """Templates take arguments of calls as objects; the text of the recorded ones was quoted twice."""
    from transformers import AutoTokenizer

    model = AutoTokenizer.from_pretrained(builtin_path("builtin:tiny-llama"))
    tokenizer = HubTokenizer(model)
    user: dict[str, Any] = {
        "role": "user",
        "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "light?"}],
    }
    assert tokenizer.render([user], None) == tokenizer.chat("What is light?")
    model.chat_template = TOOL_TEMPLATE
    call: dict[str, Any] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "look", "arguments": '{"at": "a"}'}}],
    }
    ids = tokenizer.render([user, call], [{"type": "function", "function": {"name": "look"}}])
    assert tokenizer.decode(ids) == "[look]<user>What is light?<assistant>a<assistant>"
    with pytest.raises(EngineSettingError, match="refuses a session: no such role") as caught:
        tokenizer.render([{**user, "role": "developer"}], None)
    assert caught.value.fix
    model.chat_template = None
    with pytest.raises(EngineSettingError, match="has none"):
        tokenizer.render([user], None)
