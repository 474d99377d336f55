"""The built-in tiny model as a GGUF file, for servers of llama.cpp: the same float32 weights, the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_llem.engines.builtin import builtin_path

CONTROL, NORMAL = 3, 1
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, model: str = "builtin:tiny-llama", *, kind: str = "F32", split: str = "gpt-2") -> Path:
    """Write a built-in Llama as GGUF, its matrices of a `kind`, its text split as `split` says; returns `path`."""
    import gguf
    from safetensors.numpy import load_file

    directory = builtin_path(model)
    config = json.loads((directory / "config.json").read_text())
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(model)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType[f"ALL_{kind}" if kind == "F32" else f"MOSTLY_{kind}"])
    _add_tokenizer(writer, tokenizer, config, settings["chat_template"], split)
    for name, tensor in load_file(directory / "model.safetensors").items():
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
        name, values = _converted(name, tensor, heads)
        raw = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(values, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any], template: str, split: str) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(template)


def _converted(name: str, tensor: Any, heads: dict[str, int]) -> tuple[str, Any]:
    if not name.startswith("model.layers."):
        return {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }[name], tensor
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        tensor = _interleaved(tensor, heads[part[len("self_attn.")]])
    return f"blk.{layer}.{NAMES[part]}.weight", tensor


def _interleaved(tensor: Any, heads: int) -> Any:
    """Rows in the order of llama.cpp, which rotates neighbouring rows where transformers rotates halves of a head."""
    rows, columns = tensor.shape
    halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
