"""One greedy workload on two engines: the same model in float32 gives the same work, token for token."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.job import Decoding, DeviceSet, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.workload import build_workload

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]

SETTINGS: dict[str, dict[str, Any]] = {"transformers": {"batch_size": 3}, "vllm": {"enforce_eager": True}}


@dataclass(frozen=True)
class Work:
    """What an engine made of the workload."""

    prompts_hash: str
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    texts: Sequence[str]
    flops_shape: tuple[Any, ...]


def work(engine_name: str, *, ignore_eos: bool) -> Work:
    config = ExperimentConfig(
        model="builtin:tiny-llama",
        engine=engine_name,
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", 6, 24, 48, seed=3, ignore_eos=ignore_eos),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings=SETTINGS[engine_name],
    )
    engine = open_engine(engine_name)
    try:
        engine.prepare(config, DeviceSet("cpu"))
        engine.load()
        tokenizer = engine.tokenizer()
        workload = build_workload(config.workload, tokenizer)
        engine.reset()
        completions = sorted(engine.generate(workload.requests, lambda _done, _total: None), key=lambda c: c.index)
        shape = engine.shape()
        assert shape is not None
        return Work(
            workload.prompts_hash,
            [c.input_tokens for c in completions],
            [len(c.output_ids) for c in completions],
            [tokenizer.decode(c.output_ids) for c in completions],
            (shape.layers, shape.hidden_size, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab_size),
        )
    finally:
        engine.shutdown()


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_two_engines_do_the_same_work(ignore_eos: bool) -> None:
    ours, theirs = work("transformers", ignore_eos=ignore_eos), work("vllm", ignore_eos=ignore_eos)
    assert theirs == ours
    assert ours.input_tokens == [24] * 6
    assert len(set(ours.texts)) == 6
    if ignore_eos:
        assert ours.output_tokens == [48] * 6
