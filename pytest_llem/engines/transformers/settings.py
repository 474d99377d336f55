"""The section `transformers` of a study, typed; read without importing the engine."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.wire import decode

CACHES = ("dynamic", "static", "offloaded", "offloaded_static", "quantized")
DTYPES = ("float32", "float16", "bfloat16", "float64")

LOAD_KEYWORDS = (
    "experts_implementation",
    "ignore_mismatched_sizes",
    "offload_buffers",
    "offload_folder",
    "subfolder",
    "tp_plan",
    "tp_size",
    "use_kernels",
    "use_safetensors",
    "variant",
)
"""Keywords of `from_pretrained` that `extra` may hold, besides the fields of `GenerationConfig`."""


@dataclass(frozen=True)
class CompileSettings:
    """Arguments of `torch.compile` for the model's forward; `mode` of `None` does not compile."""

    mode: str | None = None
    backend: str | None = None
    fullgraph: bool = False
    dynamic: bool | None = None


@dataclass(frozen=True)
class TransformersSettings:
    """How transformers loads the model and generates; `None` leaves a setting to the library.

    `quantization` holds the arguments of `BitsAndBytesConfig`, `threads` torch's threads for one operation on the CPU,
    `extra` further fields of `GenerationConfig` or keywords of `from_pretrained` (`LOAD_KEYWORDS`).
    """

    batch_size: int = 1
    attn_implementation: str | None = None
    compile: bool | CompileSettings = False
    quantization: Mapping[str, JsonValue] | None = None
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = None
    use_cache: bool = True
    num_beams: int = 1
    early_stopping: bool | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    prompt_lookup_num_tokens: int | None = None
    continuous_batching: bool = False
    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    device_map: str | Mapping[str, JsonValue] | None = None
    max_memory: Mapping[str, JsonValue] | None = None
    revision: str | None = None
    threads: int | None = None
    extra: Mapping[str, JsonValue] = field(default_factory=dict)


def read_settings(config: ExperimentConfig) -> TransformersSettings:
    """Decode and check the section. Raises `EngineSettingError` naming the key, with a suggestion."""
    known = {f.name for f in dataclasses.fields(TransformersSettings)}
    for key in config.settings:
        if key not in known:
            raise EngineSettingError(
                f"transformers.{key}: transformers has no such setting here",
                fix=suggestion(key, known)
                or f"use one of {', '.join(sorted(known))}, or pass it on in transformers.extra",
                details={"key": f"transformers.{key}"},
            )
    # An explicit null means the default, as it does for a key that is left out.
    given = {key: _without_nulls(value) for key, value in config.settings.items() if value is not None}
    try:
        settings = decode(TransformersSettings, given, "transformers")
    except ValueError as problem:
        raise EngineSettingError(str(problem), fix="correct the setting's type") from None
    if config.dtype is not None and config.dtype not in DTYPES:
        raise EngineSettingError(
            f"dtype: transformers cannot run {config.dtype!r}", fix=f"use one of {', '.join(DTYPES)}"
        )
    settings = dataclasses.replace(
        settings, compile=_compilation(settings.compile), quantization=_quantization(settings.quantization)
    )
    _check_values(settings)
    _check_combinations(settings)
    return settings


def _without_nulls(value: JsonValue) -> JsonValue:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return value


def _compilation(asked: bool | CompileSettings) -> bool | CompileSettings:
    if isinstance(asked, CompileSettings):
        return asked if asked.mode is not None else False
    return CompileSettings(mode="default") if asked else False


def _quantization(asked: Mapping[str, JsonValue] | None) -> Mapping[str, JsonValue] | None:
    """What bitsandbytes is told: nothing unless a width is chosen, and no sub-settings of the other width."""
    if not asked or not (asked.get("load_in_8bit") or asked.get("load_in_4bit")):
        return None
    other = "bnb_4bit_" if asked.get("load_in_8bit") else "llm_int8_"
    return {key: value for key, value in asked.items() if not key.startswith(other)}


def suggestion(key: str, known: set[str]) -> str | None:
    """`did you mean ...` for a misspelt key, or `None` when nothing is near."""
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _check_values(settings: TransformersSettings) -> None:
    for key in ("tensor_parallel_size", "data_parallel_size"):
        if (getattr(settings, key) or 1) > 1:
            raise EngineSettingError(
                f"transformers.{key}: transformers needs a process per device for this, and a cycle is one process",
                fix="spread the layers with transformers.device_map: auto, or use the engine vllm",
            )
    for key in ("batch_size", "num_beams", "prompt_lookup_num_tokens", "threads"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise EngineSettingError(f"transformers.{key}: {value} is not positive", fix="use 1 or more")


def _check_combinations(settings: TransformersSettings) -> None:
    lookup = settings.prompt_lookup_num_tokens is not None
    refused = (
        (lookup and settings.batch_size > 1, "prompt_lookup_num_tokens", "batch_size above 1"),
        (lookup and settings.num_beams > 1, "prompt_lookup_num_tokens", "num_beams above 1"),
        (lookup and not settings.use_cache, "prompt_lookup_num_tokens", "use_cache: false"),
        (
            settings.cache_implementation is not None and not settings.use_cache,
            "cache_implementation",
            "use_cache: false",
        ),
        (settings.continuous_batching and settings.num_beams > 1, "continuous_batching", "num_beams above 1"),
        (settings.continuous_batching and lookup, "continuous_batching", "prompt_lookup_num_tokens"),
        (
            settings.continuous_batching and settings.cache_implementation is not None,
            "continuous_batching",
            "cache_implementation",
        ),
        (settings.continuous_batching and not settings.use_cache, "continuous_batching", "use_cache: false"),
    )
    for is_wrong, first, second in refused:
        if is_wrong:
            raise EngineSettingError(
                f"transformers.{first} cannot be combined with transformers.{second}",
                fix="change one of the two, or exclude the combination from the sweep",
            )
