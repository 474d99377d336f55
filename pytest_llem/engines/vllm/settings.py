"""The section `vllm` of a study: names follow vLLM's `EngineArgs` and `SamplingParams`.

Studies take their schema from it, the engine its arguments. Names and defaults must stay: ids are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pytest_llem.engines.refusals import sampling_settings, unknown_setting
from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.setting import (
    Dtype,
    Extra,
    Fraction,
    Limits,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    section,
    setting,
)

RENAMED = {"speculative": "speculative_config"}
NESTED = ("sampling", "beam_search", "extra")
RESERVED = ("model", "tokenizer", "seed", "dtype", "revision", "trust_remote_code", "disable_log_stats")
SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
DTYPES = ("auto", "float32", "float16", "bfloat16")


Penalty = Annotated[float, Limits(ge=-2, le=2)]


@dataclass(frozen=True)
class Speculative:
    """Speculative decoding (`speculative_config`); off until `num_speculative_tokens` is set."""

    num_speculative_tokens: PositiveInt | None = setting(None, "Tokens drafted per step.", [5])
    method: Name | None = setting(None, "Drafting method; null infers it.", ["ngram", "eagle"])
    model: Name | None = setting(None, "Draft model: hub id or path.")
    prompt_lookup_max: PositiveInt | None = setting(None, "Longest n-gram; method ngram only.")
    prompt_lookup_min: PositiveInt | None = setting(None, "Shortest n-gram; method ngram only.")
    draft_tensor_parallel_size: PositiveInt | None = setting(None, "Devices that share the draft model.")


@dataclass(frozen=True)
class VLLMSampling:
    """Sampling settings beyond the common `decoding` section (`SamplingParams`)."""

    presence_penalty: Penalty = setting(0.0, "Penalty on tokens that occurred.")
    frequency_penalty: Penalty = setting(0.0, "Penalty on tokens by how often they occurred.")
    min_tokens: NonNegativeInt = setting(0, "Tokens before end-of-sequence may be generated.")
    n: PositiveInt = setting(1, "Sequences per prompt.")


@dataclass(frozen=True)
class BeamSearch:
    """Beam search; off until `beam_width` is above 1."""

    beam_width: PositiveInt = setting(1, "Beams; 1 is no beam search.", [4])
    length_penalty: Annotated[float, Limits(ge=-100, le=100)] = setting(1.0, "Exponent on the length.")


@dataclass(frozen=True)
class VLLMSettings:
    """Settings of vLLM; null leaves one to vLLM."""

    gpu_memory_utilization: Fraction | None = setting(None, "Share of device memory to use.", [0.9])
    kv_cache_memory_bytes: PositiveInt | None = setting(None, "Size of the KV cache, in place of a share.")
    block_size: PositiveInt | None = setting(None, "Tokens per KV-cache block.", [16])
    kv_cache_dtype: Name | None = setting(None, "Type of the KV cache.", ["auto", "fp8"])
    enforce_eager: bool = setting(False, "No CUDA graphs and no compilation.")
    enable_chunked_prefill: bool | None = setting(None, "Split long prefills over steps.")
    max_num_seqs: PositiveInt | None = setting(None, "Most sequences per step.", [64, 256])
    max_num_batched_tokens: PositiveInt | None = setting(None, "Most tokens per step.", [8192])
    max_model_len: PositiveInt | None = setting(None, "Longest sequence in tokens.", [2048])
    tensor_parallel_size: PositiveInt = setting(1, "Devices that share each layer.")
    pipeline_parallel_size: PositiveInt = setting(1, "Stages of consecutive layers.")
    data_parallel_size: PositiveInt = setting(1, "Copies of the model.")
    enable_expert_parallel: bool = setting(False, "Spread experts over devices.")
    distributed_executor_backend: Literal["mp", "ray", "uni", "external_launcher"] | None = setting(
        None, "How processes of several devices are run."
    )
    disable_custom_all_reduce: bool = setting(False, "Use NCCL's all-reduce.")
    enable_prefix_caching: bool | None = setting(None, "Reuse the cache of common prefixes.")
    quantization: Name | None = setting(None, "Quantisation method.", ["fp8", "awq", "bitsandbytes"])
    cpu_offload_gb: NonNegativeFloat = setting(0.0, "GiB of weights kept in host memory.")
    attention_backend: Name | None = setting(None, "Attention kernel.", ["FLASH_ATTN", "FLASHINFER"])
    compilation_config: Mapping[str, JsonValue] | None = setting(
        None, "Compilation settings, as vLLM has them.", [{"mode": 3}]
    )
    scheduling_policy: Literal["fcfs", "priority"] | None = setting(None, "Order of waiting requests.")
    async_scheduling: bool | None = setting(None, "Schedule the next step while one runs.")
    num_gpu_blocks_override: PositiveInt | None = setting(None, "KV-cache blocks, in place of profiling.")
    speculative: Speculative = section(Speculative, "Speculative decoding.")
    sampling: VLLMSampling = section(VLLMSampling, "Further sampling settings.")
    beam_search: BeamSearch = section(BeamSearch, "Beam search.")
    dtype: Dtype | None = setting(None, "Type of the weights for this engine, over the common one.")
    extra: Extra = section(
        dict, "Passed through: fields of `SamplingParams`, or of `EngineArgs`.", [{"load_format": "safetensors"}]
    )


@dataclass(frozen=True)
class VLLMArguments:
    """Arguments for `LLM` and for `SamplingParams`; what the workload decides is added per request."""

    engine: Mapping[str, Any]
    sampling: Mapping[str, Any]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The parallel sizes, of which 1 is the default."""
        return tuple(int(self.engine.get(name) or 1) for name in SIZES)

    @property
    def devices(self) -> int:
        """How many devices the engine spreads over."""
        return math.prod(self.sizes)


def read_arguments(
    config: ExperimentConfig, engine_fields: Collection[str], sampling_fields: Collection[str]
) -> VLLMArguments:
    """Sort the settings into vLLM's two classes. Raises `EngineSettingError` for one that neither has."""
    if config.dtype is not None and config.dtype not in DTYPES:
        raise EngineSettingError(f"dtype: vLLM cannot run {config.dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    section = {key: value for key, value in config.settings.items() if value is not None}
    engine: dict[str, Any] = {}
    for key, value in section.items():
        if key in NESTED:
            continue
        name = RENAMED.get(key, key)
        if name not in engine_fields or name in RESERVED:
            raise unknown_setting("vLLM", f"vllm.{key}", key, engine_fields)
        engine[name] = _without_nulls(value)
    sampling: dict[str, Any] = {}
    for key, item in _mapping(section, "sampling").items():
        if key not in sampling_fields:
            raise unknown_setting("vLLM", f"vllm.sampling.{key}", key, sampling_fields)
        sampling[key] = item
    for key, item in _mapping(section, "extra").items():
        if key in RESERVED or (key not in sampling_fields and key not in engine_fields):
            raise unknown_setting("vLLM", f"vllm.extra.{key}", key, {*sampling_fields, *engine_fields})
        (sampling if key in sampling_fields else engine)[key] = item
    if int(str(_mapping(section, "beam_search").get("beam_width", 1))) > 1:
        raise EngineSettingError(
            "vllm.beam_search: vLLM runs beam search outside of its scheduler, one step of the whole engine per token",
            fix="use the engine transformers with num_beams",
        )
    if sampling.get("n", 1) != 1:
        raise EngineSettingError("vllm.sampling.n: one answer per prompt is measured", fix="raise workload.prompts")
    if int(engine.get("data_parallel_size") or 1) > 1:
        raise EngineSettingError(
            "vllm.data_parallel_size: vLLM's offline engine is one copy of the model",
            fix="use the engine openai with a server of several copies: vllm serve ... --data-parallel-size N",
        )
    if not engine.get("speculative_config"):
        engine.pop("speculative_config", None)
    sampling.update({"seed": config.seed, "temperature": 1.0} if config.decoding.do_sample else {"temperature": 0.0})
    sampling.update(sampling_settings(config.decoding))
    return VLLMArguments(engine, sampling)


def _mapping(section: Mapping[str, JsonValue], key: str) -> dict[str, JsonValue]:
    value = section.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EngineSettingError(f"vllm.{key}: expected a mapping, got {type(value).__name__}", fix="write a mapping")
    return {name: item for name, item in value.items() if item is not None}


def _without_nulls(value: JsonValue) -> JsonValue:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return value
