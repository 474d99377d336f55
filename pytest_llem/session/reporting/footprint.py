"""Estimates the device memory of an experiment before anything runs, for the plan of a dry run.

`plan` calls it. It may become more exact but must stay a lower bound: it has the weights and the KV cache, from the
model's shape; activations, CUDA graphs and what an engine reserves come on top.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from pytest_llem.engines import engine_info
from pytest_llem.engines.builtin import PREFIX, builtin_place, is_builtin, known_builtins
from pytest_llem.engines.flops import UNGATED_TYPES
from pytest_llem.engines.hub_models import shape_of
from pytest_llem.engines.info import PARALLEL_SIZES
from pytest_llem.engines.protocol import ModelShape
from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import found, open_regular, parse_json, read_json
from pytest_llem.study.canonical import Get
from pytest_llem.workload.hub import cached_commit, cached_repository

BYTES = {"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0}

# Settings that bound the requests in flight, of the engines with a scheduler of their own.
_IN_FLIGHT = ("max_num_seqs", "max_running_requests", "max_batch_size")

# Bytes per weight of quantisation while loading: 8 bits, and the 4 bits that vLLM loads with bitsandbytes.
_QUANTIZED = {"fp8": 1.0, "bitsandbytes": 0.5}


@dataclass(frozen=True)
class Footprint:
    """Bytes on the fullest device: weights, and keys and values of the requests in flight; `None` is unknown."""

    weights_bytes: float | None
    kv_cache_bytes: float | None

    @property
    def total_bytes(self) -> float | None:
        """Both together; `None` when the weights are unknown."""
        return None if self.weights_bytes is None else self.weights_bytes + (self.kv_cache_bytes or 0.0)


def footprint(facts: ModelFacts, engine: str, get: Get, devices: int) -> Footprint:
    """The estimate for one experiment, whose settings `get` reads by path; `devices` is how many it gets.

    Tensor and pipeline parallel sizes divide it, data parallel copies do not; a `device_map` spreads over all of them.
    """

    def size(*names: str) -> int:
        values = [get(f"{engine}.{name}") for name in names]
        return math.prod(value for value in values if isinstance(value, int) and value > 0)

    spread = max(devices, 1) if get(f"{engine}.device_map") is not None else 1
    tensor, layers = size("tensor_parallel_size", "tp_size"), size("pipeline_parallel_size", "pp_size") * spread
    weights, cache = weights_bytes(facts, engine, get), kv_cache_bytes(facts, engine, get, tensor)
    return Footprint(
        None if weights is None else weights / (tensor * layers), None if cache is None else cache / layers
    )


def weights_bytes(facts: ModelFacts, engine: str, get: Get) -> float | None:
    """Bytes of all weights: from the checkpoint's tensors where it is on this machine, else from the shape.

    Floating-point tensors are converted to the experiment's dtype, packed ones stay as they are; a quantisation while
    loading makes the matrices (not embedding and head) 1 or 0.5 bytes a weight.
    """
    requested = BYTES.get(str(get(f"{engine}.dtype") or get("dtype")))
    matrix = _quantized(engine, get)
    if facts.tensors:
        total = 0.0
        for tensor in facts.tensors:
            bytes_each = requested if requested is not None and tensor.floating else tensor.bytes_each
            if matrix is not None and tensor.floating and tensor.is_matrix:
                bytes_each = matrix
            total += tensor.count * bytes_each
        return total
    count, embedded = parameter_count(facts.shape), _embedding_count(facts.shape)
    plain = requested or BYTES.get(str(facts.shape.config.get("dtype") or facts.shape.config.get("torch_dtype")))
    if count is None or plain is None:
        return None
    return embedded * plain + (count - embedded) * (plain if matrix is None else matrix)


def _quantized(engine: str, get: Get) -> float | None:
    if get(f"{engine}.quantization.load_in_8bit"):
        return 1.0
    if get(f"{engine}.quantization.load_in_4bit"):
        return 0.5
    return _QUANTIZED.get(str(get(f"{engine}.quantization")))


def parameter_count(shape: ModelShape) -> float | None:
    """Parameters of a decoder: embedding and head, and per layer attention and all experts' feed-forward matrices.

    Kaplan et al. (arXiv 2001.08361, table 1), with grouped keys and values (Ainslie et al., arXiv 2305.13245) and the
    gated feed-forward block's third matrix (Shazeer, arXiv 2002.05202); norms and biases are left out. `None` for
    shapes that say too little and for latent attention.
    """
    hidden, layers, width = shape.hidden_size, shape.layers, shape.intermediate_size
    if hidden is None or layers is None or shape.vocab_size is None or shape.heads is None or shape.head_dim is None:
        return None
    if shape.config.get("kv_lora_rank") is not None:
        return None
    ungated = shape.model_type in UNGATED_TYPES
    width = 4 * hidden if width is None and ungated else width
    if shape.experts:
        own = shape.config.get("moe_intermediate_size")
        width = own if isinstance(own, int) else width
    if width is None:
        return None
    attention = hidden * shape.head_dim * (2 * shape.heads + 2 * (shape.kv_heads or shape.heads))
    feed_forward = (2 if ungated else 3) * hidden * width * (shape.experts or 1)
    return float(_embedding_count(shape) + layers * (attention + feed_forward))


def _embedding_count(shape: ModelShape) -> float:
    tables = 1 if shape.config.get("tie_word_embeddings") else 2
    return float(tables * (shape.vocab_size or 0) * (shape.hidden_size or 0))


def kv_cache_bytes(facts: ModelFacts, engine: str, get: Get, tensor_parallel: int = 1) -> float | None:
    """Bytes of keys and values on one of `tensor_parallel` devices, with as many requests in flight as there may be.

    Two vectors (key and value) of `kv_heads` x `head_dim` numbers per token and layer: Kwon et al. (arXiv 2309.06180,
    section 3); heads that are fewer than the devices are held by several. Latent attention keeps `kv_lora_rank` +
    `qk_rope_head_dim` numbers instead where the engine stores them compressed (DeepSeek-V2, arXiv 2405.04434).
    """
    shape = facts.shape
    tokens = [_longest(get(f"workload.{name}")) for name in ("input_tokens", "output_tokens")]
    sequences = _in_flight(engine, get)
    if shape.layers is None or None in tokens or sequences is None:
        return None
    numbers, each = _numbers_per_token(shape, engine, tensor_parallel), _cache_bytes_each(facts, engine, get)
    if numbers is None or each is None:
        return None
    return float(shape.layers * numbers * each * sequences * sum(length or 0 for length in tokens))


def _numbers_per_token(shape: ModelShape, engine: str, tensor_parallel: int) -> int | None:
    rank, rope = shape.config.get("kv_lora_rank"), shape.config.get("qk_rope_head_dim")
    if isinstance(rank, int) and isinstance(rope, int):
        if not engine_info(engine).expands_latent_attention:
            return rank + rope
        nope, value = shape.config.get("qk_nope_head_dim"), shape.config.get("v_head_dim")
        if shape.heads is None or not isinstance(nope, int) or not isinstance(value, int):
            return None
        return shape.heads * (nope + rope + value)
    if shape.kv_heads is None or shape.head_dim is None:
        return None
    return 2 * shape.head_dim * -(-shape.kv_heads // tensor_parallel)


def _cache_bytes_each(facts: ModelFacts, engine: str, get: Get) -> float | None:
    kind = str(get(f"{engine}.kv_cache_dtype") or "auto")
    if kind.startswith("fp8"):
        return 1.0
    config = facts.shape.config
    dtype = get(f"{engine}.dtype") or get("dtype") or config.get("dtype") or config.get("torch_dtype")
    return BYTES.get(str(dtype))


def _in_flight(engine: str, get: Get) -> int | None:
    prompts = get("workload.prompts")
    if not isinstance(prompts, int):
        return None
    batches = engine_info(engine).batch_size
    if batches is not None and not get(f"{engine}.continuous_batching"):
        batch, beams = get(f"{engine}.{batches}"), get(f"{engine}.num_beams")
        return min(_number(batch, 1), prompts) * _number(beams, 1)
    limits = [get(f"{engine}.{name}") for name in _IN_FLIGHT]
    return min([prompts, *(limit for limit in limits if isinstance(limit, int))])


def _number(value: JsonValue, default: int) -> int:
    return value if isinstance(value, int) else default


def _longest(value: JsonValue) -> int | None:
    if isinstance(value, dict):
        value = value.get("high")
    return value if isinstance(value, int) else None


def settings_that_matter(engine: str) -> tuple[str, ...]:
    """The paths that an estimate reads: experiments that agree in them need the same memory."""
    own = (
        *PARALLEL_SIZES, *_IN_FLIGHT, "device_map", "dtype", "quantization", "quantization.load_in_8bit",
        "quantization.load_in_4bit", "kv_cache_dtype", "batch_size", "num_beams", "continuous_batching",
    )  # fmt: skip
    common = ("model", "revision", "dtype", "workload.prompts", "workload.input_tokens", "workload.output_tokens")
    return (*common, *(f"{engine}.{name}" for name in own))


MAX_HEADER_BYTES = 100 << 20
"""About the limit of the safetensors library, 100 MB."""

# Bytes per number, by the dtype names of the safetensors format.
_SIZES = {
    "F64": 8.0, "F32": 4.0, "F16": 2.0, "BF16": 2.0, "I64": 8.0, "I32": 4.0, "I16": 2.0, "I8": 1.0, "U8": 1.0,
    "BOOL": 1.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0, "U16": 2.0, "U32": 4.0, "U64": 8.0,
}  # fmt: skip

# Parts of names of tensors that quantisation leaves alone: embeddings and heads.
_OUTSIDE_LAYERS = ("embed", "lm_head", "wte", "wpe", "output.weight")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: how many numbers, of how many bytes each; `floating` ones can change their dtype."""

    count: int
    bytes_each: float
    floating: bool
    is_matrix: bool


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape, and its tensors; none where only its configuration is here."""

    shape: ModelShape
    tensors: tuple[Tensor, ...] = ()


class UnknownModelError(Exception):
    """A model's files are not on this machine, or cannot be read; the message says why."""


@lru_cache(maxsize=64)
def model_facts(model: str, directory: Path, revision: str | None = None) -> ModelFacts:
    """Read `config.json` and the weights' headers, relative to `directory`. Raises `UnknownModelError`."""
    files = model_directory(model, directory, revision)
    config = _json(files / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text}
    fields = SimpleNamespace(**{key: value for key, value in config.items() if key.isidentifier()})
    fields.to_dict = lambda: config
    return ModelFacts(shape_of(fields, None), tuple(_tensors(files)))


def model_directory(model: str, directory: Path, revision: str | None) -> Path:
    """Where a model's files are on this machine. Raises `UnknownModelError`."""
    if is_builtin(model):
        if model.removeprefix(PREFIX) not in known_builtins():
            raise UnknownModelError("there is no such built-in model")
        builtin = builtin_place(model)
        if not builtin.is_dir():
            raise UnknownModelError("it is made when it is first used")
        return builtin
    for name in (model, str(directory / model)):
        path = found(name)
        if path is not None and path.is_dir():
            return path
    commit = cached_commit("models", model, revision) or revision
    snapshot = cached_repository("models", model) / "snapshots" / (commit or "")
    if commit and (snapshot / "config.json").is_file():
        return snapshot
    raise UnknownModelError("it is not in this machine's hub cache")


def _json(path: Path) -> dict[str, JsonValue]:
    try:
        return read_json(path)
    except StoreError as problem:
        raise UnknownModelError(problem.message) from None


def _tensors(directory: Path) -> list[Tensor]:
    """All tensors by the headers of the safetensors files; nothing when one is not readable."""
    tensors: list[Tensor] = []
    for path in sorted(directory.glob("*.safetensors")):
        header = _header(path)
        if header is None:
            return []
        for name, entry in header.items():
            if name != "__metadata__" and isinstance(entry, dict):
                kind, shape = str(entry.get("dtype")), entry.get("shape")
                if not (isinstance(shape, list) and all(isinstance(size, int) for size in shape)):
                    return []
                inside = not any(word in name for word in _OUTSIDE_LAYERS)
                is_matrix = len(shape) >= 2 and inside
                floating = kind in ("F64", "F32", "F16", "BF16")
                tensors.append(Tensor(math.prod(shape), _SIZES.get(kind, 1.0), floating, is_matrix))
    return tensors


def _header(path: Path) -> dict[str, object] | None:
    """The JSON header of a safetensors file, which eight bytes of little-endian length precede."""
    try:
        with open_regular(path) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            data = parse_json(stream.read(length), path) if length <= MAX_HEADER_BYTES else None
    except (OSError, ValueError, struct.error):
        return None
    return data if isinstance(data, dict) else None
