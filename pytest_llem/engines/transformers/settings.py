"""The section `transformers` of a study: Hugging Face transformers, generating offline in static batches.

Studies, `study.sections` and the engine read it, without torch. Names and defaults must stay: ids are made of them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.setting import Dtype, Extra, Limits, Name, NonNegativeFloat, PositiveInt, section, setting
from pytest_llem.job.wire import decode

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


Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass(frozen=True)
class Compile:
    """`torch.compile` of the forward pass; off until `mode` is set."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = setting(
        None, "Mode of torch.compile; null does not compile.", ["reduce-overhead"]
    )
    backend: Name = setting("inductor", "Backend of torch.compile.", ["inductor", "eager"])
    fullgraph: bool = setting(False, "Refuse graph breaks.")
    dynamic: bool | None = setting(None, "Compile for dynamic shapes; null lets torch decide.")


@dataclass(frozen=True)
class Quantization:
    """Weights quantised while loading, by bitsandbytes."""

    load_in_8bit: bool = setting(False, "8-bit weights (LLM.int8()).")
    load_in_4bit: bool = setting(False, "4-bit weights.")
    llm_int8_threshold: NonNegativeFloat = setting(6.0, "Outlier threshold of LLM.int8(); 8-bit only.")
    llm_int8_skip_modules: tuple[Name, ...] | None = setting(None, "Modules left unquantised; 8-bit only.")
    llm_int8_enable_fp32_cpu_offload: bool = setting(False, "Keep offloaded modules in float32; 8-bit only.")
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = setting("fp4", "4-bit data type; 4-bit only.")
    bnb_4bit_compute_dtype: Literal["float32", "float16", "bfloat16"] = setting(
        "float32", "Type that products are computed in; 4-bit only."
    )
    bnb_4bit_use_double_quant: bool = setting(False, "Quantise the quantisation constants; 4-bit only.")
    bnb_4bit_quant_storage: Literal["uint8", "float32", "float16", "bfloat16"] = setting(
        "uint8", "Type that packed weights are stored in; 4-bit only."
    )

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments of `BitsAndBytesConfig`: empty unless a width is chosen, and without those of the other width."""
        if not (self.load_in_8bit or self.load_in_4bit):
            return {}
        other = "bnb_4bit_" if self.load_in_8bit else "llm_int8_"
        given = {key: value for key, value in vars(self).items() if value is not None and not key.startswith(other)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


@dataclass(frozen=True)
class TransformersSettings:
    """Settings of Hugging Face transformers. Names follow `from_pretrained` and `GenerationConfig`."""

    batch_size: PositiveInt = setting(1, "Prompts generated together in one static batch.", [4])
    attn_implementation: Attention | None = setting(None, "Attention kernel; null lets transformers choose.", ["sdpa"])
    compile: Compile = section(Compile, "torch.compile of the forward pass.")
    quantization: Quantization = section(Quantization, "Quantisation while loading.")
    use_cache: bool = setting(True, "Keep keys and values of earlier tokens.")
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = setting(
        None, "Kind of KV cache; null is transformers' own choice.", ["static"]
    )
    num_beams: PositiveInt = setting(1, "Beams of beam search; 1 is no beam search.", [4])
    length_penalty: Annotated[float, Limits(ge=-100, le=100)] | None = setting(
        None, "Exponent on the length in beam scores; beam search only."
    )
    early_stopping: bool | None = setting(None, "End beam search early; beam search only.")
    no_repeat_ngram_size: PositiveInt | None = setting(None, "Length of n-grams that may occur once.")
    prompt_lookup_num_tokens: PositiveInt | None = setting(
        None, "Candidate tokens per step of prompt-lookup decoding; null is off.", [10]
    )
    device_map: Name | Mapping[str, str | int] | None = setting(
        None, "Placement of modules (`auto`, a device, or a mapping); null is one device.", ["auto"]
    )
    max_memory: Mapping[str, str | int] | None = setting(
        None, "Memory limit per device for `device_map`.", [{"0": "20GiB", "cpu": "60GiB"}]
    )
    tensor_parallel_size: PositiveInt | None = setting(None, "Devices that share each layer.", [2])
    data_parallel_size: PositiveInt | None = setting(None, "Copies of the model, each on devices of its own.", [2])
    continuous_batching: bool = setting(False, "Continuous instead of static batching (`generate_batch`).")
    threads: PositiveInt | None = setting(None, "CPU threads per operation; null is torch's choice.")
    revision: Name | None = setting(None, "Revision of the model for this engine, over the common one.")
    dtype: Dtype | None = setting(None, "Type of the weights for this engine, over the common one.")
    extra: Extra = section(
        dict, "Passed through: fields of `GenerationConfig`, or keywords of `from_pretrained`.", [{"typical_p": 0.9}]
    )


def read_settings(config: ExperimentConfig) -> TransformersSettings:
    """Decode and check the section. Raises `EngineSettingError` naming the key, with a suggestion."""
    # A study's own dtype for this engine has replaced the common one.
    known = {f.name for f in dataclasses.fields(TransformersSettings)} - {"dtype"}
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
    _check_values(settings)
    _check_combinations(settings)
    return settings


def _without_nulls(value: JsonValue) -> JsonValue:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return value


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
