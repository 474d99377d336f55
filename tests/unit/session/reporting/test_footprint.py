"""Memory estimates against published models' numbers and against real files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.errors import JsonValue
from pytest_llem.session.reporting.footprint import (
    Footprint,
    UnknownModelError,
    footprint,
    model_facts,
    parameter_count,
)
from pytest_llem.study import load_study
from pytest_llem.study.canonical import getter

LLAMA_3_8B: Mapping[str, JsonValue] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MIXTRAL_8X7B = {**LLAMA_3_8B, "model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8}
GPT2 = {
    "model_type": "gpt2",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50257,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path: Path) -> Callable[[Mapping[str, JsonValue]], Path]:
    def write(config: Mapping[str, JsonValue]) -> Path:
        directory = tmp_path / "model"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return write


WORKLOAD = "{prompts: 16, input_tokens: 100, output_tokens: 28}"


def estimate(tmp_path: Path, text: str, visible: int = 1, workload: str = WORKLOAD) -> Footprint:
    path = tmp_path / "study.yaml"
    path.write_text(f"model: ./model\nworkload: {workload}\n{text}\n")
    [experiment] = load_study(path, env={}).experiments
    return footprint(model_facts("./model", tmp_path), experiment.engine, getter(experiment.flat_settings), visible)


@pytest.mark.parametrize(
    ("config", "published"), [(LLAMA_3_8B, 8.03e9), (MIXTRAL_8X7B, 46.7e9), (GPT2, 124e6)], ids=["8B", "moe", "gpt2"]
)
def test_parameters_follow_from_the_shape(
    model: Callable[[Mapping[str, JsonValue]], Path], config: Mapping[str, JsonValue], published: float
) -> None:
    count = parameter_count(model_facts(str(model(config)), Path()).shape)

    assert count == pytest.approx(published, rel=0.01)


KV_PER_TOKEN = 2 * 32 * 8 * 128 * 2
"""Two vectors, 32 layers, 8 heads of 128 numbers, 2 bytes: 128 KiB for Llama 3 8B."""


@pytest.mark.parametrize(
    ("settings", "visible", "weights", "sequences"),
    [
        ("transformers: {batch_size: 4}", 1, 16.06e9, 4.0),
        ("transformers: {batch_size: 64}", 1, 16.06e9, 16.0),
        ("transformers: {batch_size: 4, num_beams: 3}", 1, 16.06e9, 12.0),
        ("transformers: {batch_size: 4, device_map: auto}", 2, 8.03e9, 2.0),
        ("transformers: {quantization: {load_in_4bit: true}}", 1, 5.59e9, 1.0),
        ("dtype: float32\nengine: vllm", 1, 32.12e9, 32.0),
        ("engine: vllm\nvllm: {max_num_seqs: 8}", 1, 16.06e9, 8.0),
        ("engine: vllm\nvllm: {max_num_seqs: 8, tensor_parallel_size: 4}", 4, 4.015e9, 2.0),
        ("engine: vllm\nvllm: {max_num_seqs: 8, tensor_parallel_size: 16}", 16, 1.004e9, 1.0),
        ("engine: vllm\nvllm: {max_num_seqs: 8, kv_cache_dtype: fp8}", 1, 16.06e9, 4.0),
        ("engine: sglang\nsglang: {tp_size: 2, dp_size: 2}", 4, 8.03e9, 8.0),
    ],
)
def test_weights_and_cache_per_device(
    model: Callable[[Mapping[str, JsonValue]], Path],
    tmp_path: Path,
    settings: str,
    visible: int,
    weights: float,
    sequences: float,
) -> None:
    model(LLAMA_3_8B)

    found = estimate(tmp_path, settings, visible)

    assert found.weights_bytes == pytest.approx(weights, rel=0.01)
    assert found.kv_cache_bytes == sequences * 128 * KV_PER_TOKEN


def test_lengths_of_a_data_set_leave_the_cache_unknown(
    model: Callable[[Mapping[str, JsonValue]], Path], tmp_path: Path
) -> None:
    model(LLAMA_3_8B)

    found = estimate(tmp_path, "", workload="{dataset: prompts.jsonl, input_tokens: null}")

    assert found.kv_cache_bytes is None
    assert found.total_bytes == found.weights_bytes


def test_latent_attention_keeps_the_compressed_vector_where_the_engine_does(
    model: Callable[[Mapping[str, JsonValue]], Path], tmp_path: Path
) -> None:
    latent: Mapping[str, JsonValue] = {
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    }  # fmt: skip
    model({**LLAMA_3_8B, **latent})

    compressed = estimate(tmp_path, "engine: vllm\nvllm: {max_num_seqs: 1}")
    expanded = estimate(tmp_path, "engine: transformers")

    assert compressed.kv_cache_bytes == 32 * (512 + 64) * 2 * 128
    assert expanded.kv_cache_bytes == 32 * 32 * (128 + 64 + 128) * 2 * 128
    assert compressed.weights_bytes is None


@pytest.mark.engine
def test_tensors_of_a_checkpoint_are_counted_as_they_lie_there() -> None:
    pytest.importorskip("tokenizers")
    place = builtin_path("builtin:tiny-moe")
    facts = model_facts("builtin:tiny-moe", Path())

    stored = sum(tensor.count * tensor.bytes_each for tensor in facts.tensors)

    size = (place / "model.safetensors").stat().st_size
    header = int.from_bytes((place / "model.safetensors").read_bytes()[:8], "little") + 8
    assert stored == size - header
    assert parameter_count(facts.shape) == pytest.approx(stored / 4, rel=0.02)


def test_a_model_that_is_not_here_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with pytest.raises(UnknownModelError, match="not in this machine's hub cache"):
        model_facts("owner/name", tmp_path)
    with pytest.raises(UnknownModelError, match="made when it is first used"):
        model_facts("builtin:tiny-llama", tmp_path)


def test_a_downloaded_model_is_found_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    for snapshot, layers in (("aaa", 2), ("bbb", 3)):
        (cached / "snapshots" / snapshot).mkdir(parents=True)
        config = {**LLAMA_3_8B, "num_hidden_layers": layers}
        (cached / "snapshots" / snapshot / "config.json").write_text(json.dumps(config))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("bbb")

    assert model_facts("owner/name", tmp_path).shape.layers == 3
    assert model_facts("owner/name", tmp_path, "aaa").shape.layers == 2


def test_a_broken_header_leaves_the_estimate_to_the_shape(
    model: Callable[[Mapping[str, JsonValue]], Path], tmp_path: Path
) -> None:
    (model(LLAMA_3_8B) / "model.safetensors").write_bytes(b"\xff" * 64)

    assert estimate(tmp_path, "engine: transformers").weights_bytes == pytest.approx(16.06e9, rel=0.01)


@pytest.mark.parametrize("shape", [7, ["a"], [None], {"a": 1}, None])
def test_a_header_without_sizes_leaves_the_estimate_to_the_shape(
    model: Callable[[Mapping[str, JsonValue]], Path], tmp_path: Path, shape: JsonValue
) -> None:
    """It was a TypeError in the plan."""
    header = json.dumps({"a.weight": {"dtype": "BF16", "shape": shape}}).encode()
    (model(LLAMA_3_8B) / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    assert estimate(tmp_path, "engine: transformers").weights_bytes == pytest.approx(16.06e9, rel=0.01)


@pytest.mark.parametrize("value", [0, -1, 10**400, "x", [], True, {}])
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_hostile_configuration_gives_a_number_or_none(
    model: Callable[[Mapping[str, JsonValue]], Path], tmp_path: Path, engine: str, value: JsonValue
) -> None:
    directory = model(LLAMA_3_8B)
    for name in (*LLAMA_3_8B, "head_dim", "num_local_experts", "n_routed_experts", "kv_lora_rank", "sliding_window"):
        (directory / "config.json").write_text(json.dumps({**LLAMA_3_8B, name: value}))
        model_facts.cache_clear()

        weights = estimate(tmp_path, f"engine: {engine}").weights_bytes

        assert weights is None or 0 <= weights < float("inf"), name
