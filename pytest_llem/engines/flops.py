"""Floating-point operations of a decoder, from its architecture alone.

`results.sections.compute` calls it, and the footprint takes `UNGATED_TYPES`. What is counted must stay, or results
are no longer comparable: the matrix multiplications, a multiply-add as two operations, as in Kaplan et al. (arXiv
2001.08361, table 1) and Korthikanti et al. (arXiv 2205.05198, appendix A); not, as there, norms, rotary embedding,
softmax and activations (under 1 % of any model of practical width), and the embedding, which is a look-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llem.engines.protocol import ModelShape

UNGATED_TYPES = (
    "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi",
    "stablelm_epoch", "starcoder2",
)  # fmt: skip
"""Model types whose feed-forward block has two matrices; the Llama family and all newer ones have three (gated)."""


@dataclass(frozen=True)
class FlopModel:
    """Operations of one model: `matrix_per_token` for every token, `head_per_logit` for every position whose logits are
    computed, and `attention_per_pair` for every pair of a token and a token that it attends to, over all layers. The
    share `windowed` of the layers attends to the last `window` tokens alone."""

    matrix_per_token: float
    head_per_logit: float
    attention_per_pair: float
    window: int | None = None
    windowed: float = 0.0

    def attention(self, first: int, last: int) -> float:
        """Attention of the tokens at positions `first` to `last` (from 0, inclusive) over all up to their own."""
        full = _pairs(last + 1, None) - _pairs(first, None)
        local = _pairs(last + 1, self.window) - _pairs(first, self.window)
        return self.attention_per_pair * (self.windowed * local + (1 - self.windowed) * full)

    def prefill(self, tokens: int, cached: int = 0) -> float:
        """A prompt of `tokens`, whose last position alone yields logits; the first `cached` are not computed.

        The last one always is, because its logits are no part of a cache.
        """
        cached = min(cached, tokens - 1)
        return self.matrix_per_token * (tokens - cached) + self.head_per_logit + self.attention(cached, tokens - 1)

    def decode(self, context: int, tokens: int) -> float:
        """`tokens` further forward passes of one token each, after `context` tokens."""
        if tokens <= 0:
            return 0.0
        per_token = self.matrix_per_token + self.head_per_logit
        return per_token * tokens + self.attention(context, context + tokens - 1)

    def request(self, input_tokens: int, output_tokens: int, cached: int = 0, beams: int = 1) -> float:
        """One request with a key-value cache: the prefill yields the first output token, decoding the others."""
        if output_tokens <= 0:
            return 0.0
        return self.prefill(input_tokens, cached) + beams * self.decode(input_tokens, output_tokens - 1)


def flop_model(shape: ModelShape) -> FlopModel | None:
    """The operations of a decoder of this shape; `None` when the shape does not say enough.

    Dense and mixture-of-experts models with multi-head, grouped-query or multi-head latent attention. Of the experts
    only the active and the shared ones count. The counts of causal attention are those of its pairs; a kernel that
    computes the masked half too does more work than this, which is not useful work. Layers of other kinds (recurrent,
    sparse or chunked attention) are not counted.
    """
    hidden, layers, vocab = shape.hidden_size, shape.layers, shape.vocab_size
    if hidden is None or layers is None or vocab is None or shape.heads is None or shape.head_dim is None:
        return None
    attention = _latent_attention(shape) or _grouped_attention(shape)
    feed_forward, windowed = _feed_forward(shape), _windowed(shape)
    if feed_forward is None or windowed is None:
        return None
    parameters, pair_width = attention
    return FlopModel(
        matrix_per_token=2.0 * (layers * parameters + feed_forward),
        head_per_logit=2.0 * hidden * vocab,
        attention_per_pair=2.0 * layers * shape.heads * pair_width,
        window=_number(shape, "sliding_window"),
        windowed=windowed,
    )


def total_flops(shape: ModelShape, requests: Iterable[tuple[int, int, int]], beams: int = 1) -> float | None:
    """Operations of requests, each its tokens of input, of output, and of input from a cache.

    `None` when the shape does not say enough.
    """
    model = flop_model(shape)
    if model is None:
        return None
    return sum(model.request(given, made, cached, beams) for given, made, cached in requests)


def _pairs(tokens: int, window: int | None) -> float:
    """Pairs among `tokens` positions, each attending to itself and all before it, at most `window` of them."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window


def _grouped_attention(shape: ModelShape) -> tuple[float, float]:
    """Matrix parameters of one layer's attention, and the width (scores and values) of one pair and head."""
    hidden, heads, dim = shape.hidden_size or 0, shape.heads or 0, shape.head_dim or 0
    kv_heads = shape.kv_heads or heads
    return float(hidden * dim * (heads + 2 * kv_heads) + heads * dim * hidden), 2.0 * dim


def _latent_attention(shape: ModelShape) -> tuple[float, float] | None:
    """Multi-head latent attention as in DeepSeek-V2 (arXiv 2405.04434, section 2.1): keys and values expanded once."""
    rank, rope = _number(shape, "kv_lora_rank"), _number(shape, "qk_rope_head_dim")
    nope, value = _number(shape, "qk_nope_head_dim"), _number(shape, "v_head_dim")
    if rank is None or rope is None or nope is None or value is None:
        return None
    hidden, heads = shape.hidden_size or 0, shape.heads or 0
    query_rank = _number(shape, "q_lora_rank")
    query = heads * (nope + rope)
    queries = hidden * query if query_rank is None else query_rank * (hidden + query)
    keys_values = hidden * (rank + rope) + rank * heads * (nope + value)
    return float(queries + keys_values + heads * value * hidden), float(nope + rope + value)


def _feed_forward(shape: ModelShape) -> float | None:
    """Active matrix parameters of the feed-forward blocks of all layers."""
    hidden, layers = shape.hidden_size or 0, shape.layers or 0
    matrices = 2 if shape.model_type in UNGATED_TYPES else 3
    width = shape.intermediate_size
    if width is None and shape.model_type in UNGATED_TYPES:
        width = 4 * hidden
    if shape.experts is None or shape.experts <= 1:
        return None if width is None else float(layers * matrices * hidden * width)
    active = shape.experts_per_token
    expert_width = _number(shape, "moe_intermediate_size") or width
    if active is None or expert_width is None:
        return None
    shared = _number(shape, "n_shared_experts", "num_shared_experts") or 0
    shared_width = _number(shape, "shared_expert_intermediate_size") or shared * expert_width
    sparse = hidden * shape.experts + matrices * hidden * (active * expert_width + shared_width)
    dense_layers = min(_number(shape, "first_k_dense_replace") or 0, layers)
    if dense_layers and width is None:
        return None
    return float((layers - dense_layers) * sparse + dense_layers * matrices * hidden * (width or 0))


LAYERS_OF_OTHER_KINDS = ("attn_layer_period", "index_topk", "layers_block_type", "mamba_d_state", "ssm_state_size")
"""Keys of configurations (transformers 5) whose models have recurrent layers or sparse attention."""


def _windowed(shape: ModelShape) -> float | None:
    """The share of the layers that attend to the sliding window alone; `None` where layers are of other kinds."""
    if any(shape.config.get(key) is not None for key in LAYERS_OF_OTHER_KINDS):
        return None
    has_window = _number(shape, "sliding_window") is not None
    kinds = shape.config.get("layer_types")
    if not isinstance(kinds, (list, tuple)) or not kinds:
        return float(has_window and shape.config.get("use_sliding_window") is not False)
    share = kinds.count("sliding_attention") / len(kinds)
    known = set(map(str, kinds)) <= {"full_attention", "sliding_attention"} and (has_window or not share)
    return share if known else None


def _number(shape: ModelShape, *names: str) -> int | None:
    for name in names:
        value = shape.config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
