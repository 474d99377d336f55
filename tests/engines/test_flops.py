"""The FLOP formula against torch's own counter, on models of several architectures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pytest_llem.engines.flops import flop_model, total_flops
from pytest_llem.engines.hub_models import shape_of
from pytest_llem.engines.protocol import ModelShape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.engine

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "n_group": 1,
    "topk_group": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi-head": ("LlamaConfig", BASE),
    "grouped-query": ("LlamaConfig", {**BASE, "num_key_value_heads": 2}),
    "multi-query, own head size": ("LlamaConfig", {**BASE, "num_key_value_heads": 1, "head_dim": 16}),
    "ungated": ("GPTNeoXConfig", BASE),
    "gpt2": ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "qwen3": ("Qwen3Config", {**BASE, "num_key_value_heads": 2, "head_dim": 16}),
    "experts": ("MixtralConfig", {**BASE, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "fine experts": ("Qwen3MoeConfig", {**BASE, **MOE, "num_experts": 6, "num_key_value_heads": 2, "head_dim": 8}),
    "shared experts, latent attention": (
        "DeepseekV3Config",
        {**BASE, **MOE, **LATENT, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "latent attention, full queries": (
        "DeepseekV2Config",
        {
            **BASE,
            **MOE,
            **LATENT,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "first_k_dense_replace": 2,
        },
    ),
}


def make(config_class: str, settings: dict[str, Any]) -> tuple[Any, ModelShape]:
    config = getattr(transformers, config_class)(**settings)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return model, shape_of(model.config, int(model.num_parameters()))


def counted(model: Any, *shapes: tuple[int, int]) -> list[float]:
    """Operations of one forward pass per (context, new tokens), the first without a cache."""
    from torch.utils.flop_counter import FlopCounterMode

    cache, totals = None, []
    for _, new in shapes:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            outputs = model(
                torch.ones((1, new), dtype=torch.long), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        cache = outputs.past_key_values
        totals.append(float(counter.get_total_flops()))
    return totals


def expanded_again(shape: ModelShape) -> float:
    """What transformers' latent attention repeats for each cached token at each step, and the formula counts once."""
    rank, nope, value = (shape.config.get(key) for key in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"))
    if not (isinstance(rank, int) and isinstance(nope, int) and isinstance(value, int)):
        return 0.0
    return 2.0 * (shape.layers or 0) * rank * (shape.heads or 0) * (nope + value)


@pytest.mark.parametrize("name", MODELS)
def test_formula_agrees_with_torchs_counter(name: str) -> None:
    """Eager attention computes all pairs of a prompt, the masked ones too; the formula counts the causal ones."""
    model, shape = make(*MODELS[name])
    formula = flop_model(shape)
    assert formula is not None
    prompt = 20
    masked = formula.attention_per_pair * prompt * (prompt - 1) / 2
    prefill, decode = counted(model, (0, prompt), (prompt, 1))
    assert formula.prefill(prompt) + masked == pytest.approx(prefill, rel=0.01)
    assert formula.decode(prompt, 1) + expanded_again(shape) * prompt == pytest.approx(decode, rel=0.01)


def test_a_request_is_its_prefill_and_its_further_tokens() -> None:
    _, shape = make(*MODELS["grouped-query"])
    formula = flop_model(shape)
    assert formula is not None
    steps = formula.prefill(7) + sum(formula.decode(7 + step, 1) for step in range(4))
    assert formula.request(7, 5) == pytest.approx(steps)
    assert total_flops(shape, [(7, 5, 0), (7, 5, 0), (7, 0, 0)]) == pytest.approx(2 * steps)


def test_a_large_model_costs_about_two_operations_per_parameter() -> None:
    """Llama 3 8B: 8.03 billion parameters, of which 0.53 are the embedding."""
    shape = ModelShape("llama", 8_030_261_248, 32, 4096, 14336, 128_256, 32, 8, 128)
    formula = flop_model(shape)
    assert formula is not None
    assert formula.decode(0, 1) == pytest.approx(2 * (8.030e9 - 0.525e9), rel=0.001)


def test_a_sliding_window_bounds_attention() -> None:
    shape = ModelShape("mistral", None, 2, 64, 128, 100, 4, 2, 16, config={"sliding_window": 8})
    formula = flop_model(shape)
    assert formula is not None
    assert formula.decode(100, 1) == formula.decode(1000, 1)
    assert formula.decode(3, 1) < formula.decode(100, 1)


@pytest.mark.parametrize("missing", ["layers", "hidden_size", "vocab_size", "heads", "head_dim", "intermediate_size"])
def test_an_unknown_shape_gives_no_number(missing: str) -> None:
    shape = ModelShape("llama", None, 2, 64, 128, 100, 4, 2, 16)
    unknown: dict[str, Any] = {missing: None}
    assert flop_model(dataclasses.replace(shape, **unknown)) is None
