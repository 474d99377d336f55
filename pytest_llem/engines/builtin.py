"""Models in the Hugging Face layout that need no hub, `builtin:NAME`: from code, or from a file that a package ships.

Made on first use, with the same bytes on every machine; `containers`, `machine` and `session` ask which there are.
Raise `RECIPE` with every change of what is generated: seeded weights, a tokenizer of the corpus.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import struct
import tempfile
from array import array
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO

from pytest_llem.engines.packaged_models import (
    PACKAGED,
    Say,
    folder_digest,
    make_packaged,
    require_packaged,
    write_json,
    write_safetensors,
)
from pytest_llem.errors import EngineNotInstalledError, JsonValue, ModelNotFoundError, StoreError
from pytest_llem.job.files import expanded, reason
from pytest_llem.workload.corpus import corpus_text

PREFIX = "builtin:"

RECIPE = 1
"""Raise it with every change of what is made: caches of the old recipe are then left alone."""

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, POSITIONS = 64, 2, 2, 1, 32, 192, 2048
"""A head size of 32 is the smallest that vLLM accepts on a CPU."""

EXPERTS, EXPERTS_PER_TOKEN = 4, 2

EOS_GAIN = 1.8
"""Factor on the output row of the end-of-sequence token, so that free-running answers do end."""


def is_builtin(model: str) -> bool:
    """Whether a study's `model` names a built-in one."""
    return model.startswith(PREFIX)


def is_packaged(model: str) -> bool:
    """Whether a study's `model` names a built-in one that a package ships."""
    return is_builtin(model) and model.removeprefix(PREFIX) in PACKAGED


def known_builtins() -> tuple[str, ...]:
    """Names that `builtin:` accepts."""
    return (*_RECIPES, *PACKAGED)


def require_known(model: str) -> None:
    """Raise `ModelNotFoundError` for a `builtin:NAME` that there is not."""
    name = model.removeprefix(PREFIX)
    if name not in known_builtins():
        raise ModelNotFoundError(
            f"there is no built-in model {name!r}",
            fix=f"use one of: {', '.join(PREFIX + known for known in known_builtins())}",
            details={"model": model},
        )


def require_makeable(model: str) -> None:
    """Raise `ModelNotFoundError` for a `builtin:NAME` that is unknown, or whose package is not installed here."""
    require_known(model)
    name = model.removeprefix(PREFIX)
    if name in PACKAGED and not builtin_place(model).is_dir():
        require_packaged(name)


def builtin_place(model: str) -> Path:
    """Where the directory of a known `builtin:NAME` is once it has been made."""
    name = model.removeprefix(PREFIX)
    return cache_root() / f"{name}-{folder_digest(name) if name in PACKAGED else recipe_digest()}"


def builtin_path(model: str, say: Say = lambda text: None) -> Path:
    """The directory of `builtin:NAME`, made on first use in the user's cache directory; `say` gets what is waited for.

    Safe when several processes ask at once: one makes it, in a directory that a rename puts into its place, while the
    others wait. Raises `ModelNotFoundError` for an unknown name or a package that is not installed, `StoreError`
    without a place to make it in, and `EngineNotInstalledError` where `tokenizers` is missing.
    """
    require_known(model)
    name, target = model.removeprefix(PREFIX), builtin_place(model)
    if target.is_dir():
        return target
    try:
        if not target.is_absolute():
            raise OSError(errno.ENOENT, f"user {os.getuid()} has no home directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{name}.lock").open("w") as lock:
            alone = _wait_for(lock, f"another process makes {model}", say)
            for left in target.parent.glob(f".{name}-*") if alone else ():
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
            if not target.is_dir():
                _make(name, target, say)
    except OSError as problem:
        raise StoreError(
            f"no place for built-in models at {target.parent}: {reason(problem)}",
            fix="set HOME or XDG_CACHE_HOME to a directory that can be written, and has the room",
        ) from None
    return target


def _make(name: str, target: Path, say: Say) -> None:
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{name}-"))
    try:
        if name in PACKAGED:
            make_packaged(name, made, say)
        else:
            make_builtin(name, made)
        made.chmod(0o755)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _wait_for(lock: IO[str], what: str, say: Say) -> bool:
    """Hold a file's lock until it is closed; false on a file system without locks, where the rename has to do."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(what)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as problem:
        if problem.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return False
    return True


def cache_root() -> Path:
    """Where built-in models are kept: `$XDG_CACHE_HOME/llem/models`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return expanded(base if Path(base).is_absolute() else "~/.cache") / "llem" / "models"


@lru_cache(maxsize=1)
def recipe_digest() -> str:
    """What a cached model must have been made from: the recipe's version and the corpus, as 12 hex digits."""
    return hashlib.sha256(f"{RECIPE}\n{corpus_text()}".encode()).hexdigest()[:12]


def make_builtin(name: str, directory: Path) -> None:
    """Write all files of the model `name` into an existing directory."""
    config, weights = _RECIPES[name]()
    special = {"bos_token_id": BOS[0], "eos_token_id": EOS[0], "pad_token_id": PAD[0]}
    write_json(directory / "config.json", {**config, **special})
    write_json(directory / "generation_config.json", {"do_sample": False, **special})
    (directory / "tokenizer.json").write_text(train_tokenizer(), encoding="utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS[1],
            "eos_token": EOS[1],
            "pad_token": PAD[1],
            "model_max_length": POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    shapes = {name: shape for name, (shape, _) in weights.items()}
    values = (struct.pack(f"<{len(values)}f", *values) for _, values in weights.values())
    write_safetensors(directory / "model.safetensors", shapes, values)


Tensor = tuple[tuple[int, ...], "array[float]"]


class _Weights:
    """Named tensors from one seeded generator; uniform values, whose bits no library version can change."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._random = random.Random(seed)

    def uniform(self, name: str, rows: int, columns: int) -> None:
        """A matrix with the variance 1/columns, which keeps the size of what passes through it."""
        bound = (3.0 / columns) ** 0.5
        draw = self._random.random
        values = array("f", [(2.0 * draw() - 1.0) * bound for _ in range(rows * columns)])
        self.tensors[name] = ((rows, columns), values)

    def ones(self, name: str, size: int) -> None:
        self.tensors[name] = ((size,), array("f", [1.0]) * size)

    def scale_row(self, name: str, row: int, factor: float) -> None:
        (_, columns), values = self.tensors[name]
        for index in range(row * columns, (row + 1) * columns):
            values[index] *= factor


def _attention(weights: _Weights, layer: str) -> None:
    weights.ones(f"{layer}.input_layernorm.weight", HIDDEN)
    for name, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)):
        weights.uniform(f"{layer}.self_attn.{name}.weight", heads * HEAD_DIM, HIDDEN)
    weights.uniform(f"{layer}.self_attn.o_proj.weight", HIDDEN, HEADS * HEAD_DIM)
    weights.ones(f"{layer}.post_attention_layernorm.weight", HIDDEN)


def _model(layer_parts: Callable[[_Weights, str], None]) -> dict[str, Tensor]:
    weights = _Weights(seed=20_260_801)
    weights.uniform("model.embed_tokens.weight", VOCAB_SIZE, HIDDEN)
    for index in range(LAYERS):
        _attention(weights, f"model.layers.{index}")
        layer_parts(weights, f"model.layers.{index}")
    weights.ones("model.norm.weight", HIDDEN)
    weights.uniform("lm_head.weight", VOCAB_SIZE, HIDDEN)
    weights.scale_row("lm_head.weight", EOS[0], EOS_GAIN)
    return weights.tensors


def _config(model_type: str, architecture: str, **more: JsonValue) -> dict[str, JsonValue]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
        **more,
    }


def _dense_layer(weights: _Weights, layer: str) -> None:
    weights.uniform(f"{layer}.mlp.gate_proj.weight", INTERMEDIATE, HIDDEN)
    weights.uniform(f"{layer}.mlp.up_proj.weight", INTERMEDIATE, HIDDEN)
    weights.uniform(f"{layer}.mlp.down_proj.weight", HIDDEN, INTERMEDIATE)


def _expert_layer(weights: _Weights, layer: str) -> None:
    weights.uniform(f"{layer}.block_sparse_moe.gate.weight", EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        block = f"{layer}.block_sparse_moe.experts.{expert}"
        weights.uniform(f"{block}.w1.weight", INTERMEDIATE, HIDDEN)
        weights.uniform(f"{block}.w3.weight", INTERMEDIATE, HIDDEN)
        weights.uniform(f"{block}.w2.weight", HIDDEN, INTERMEDIATE)


def _tiny_llama() -> tuple[dict[str, JsonValue], dict[str, Tensor]]:
    return _config("llama", "LlamaForCausalLM", mlp_bias=False), _model(_dense_layer)


def _tiny_moe() -> tuple[dict[str, JsonValue], dict[str, Tensor]]:
    experts: dict[str, JsonValue] = {"num_local_experts": EXPERTS, "num_experts_per_tok": EXPERTS_PER_TOKEN}
    return _config("mixtral", "MixtralForCausalLM", sliding_window=None, **experts), _model(_expert_layer)


_RECIPES: Mapping[str, Callable[[], tuple[dict[str, JsonValue], dict[str, Tensor]]]] = {
    "tiny-llama": _tiny_llama,
    "tiny-moe": _tiny_moe,
}

VOCAB_SIZE = 2048
"""Chosen: the 108 KB of the corpus support about as many tokens."""

PAD, BOS, EOS = (0, "<pad>"), (1, "<s>"), (2, "</s>")
TURNS = ("<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer() -> str:
    """The text of `tokenizer.json`, whose vocabulary holds all bytes. Raises `EngineNotInstalledError`."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    except ImportError:
        raise EngineNotInstalledError(
            "the built-in models need the package 'tokenizers' to make their tokenizer",
            fix="pip install 'pytest-llem[transformers]'",
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD[1], BOS[1], EOS[1], *TURNS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus_text().splitlines(), trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS[1]} $A", special_tokens=[(BOS[1], BOS[0])])
    return str(tokenizer.to_str(pretty=False))
