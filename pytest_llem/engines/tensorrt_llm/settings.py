"""The section `tensorrt_llm` of a study: names follow TensorRT-LLM's `LlmArgs`.

Studies take their schema from it. Settings may be added; names and defaults must stay, as ids are made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_llem.errors import JsonValue
from pytest_llem.job.setting import Dtype, Extra, Fraction, Name, NonNegativeInt, PositiveInt, section, setting


@dataclass(frozen=True)
class KvCacheConfig:
    """The KV cache (`KvCacheConfig`)."""

    free_gpu_memory_fraction: Fraction | None = setting(None, "Share of free memory to use.", [0.9])
    max_tokens: PositiveInt | None = setting(None, "Tokens in the cache.")
    enable_block_reuse: bool | None = setting(None, "Reuse the cache of common prefixes.")
    host_cache_size: NonNegativeInt | None = setting(None, "Bytes of cache in host memory.")
    dtype: Name | None = setting(None, "Type of the cache.", ["auto", "fp8"])


@dataclass(frozen=True)
class QuantConfig:
    """Quantisation (`QuantConfig`); off until `quant_algo` is set."""

    quant_algo: Name | None = setting(None, "Algorithm for weights.", ["FP8", "W4A16_AWQ"])
    kv_cache_quant_algo: Name | None = setting(None, "Algorithm for the KV cache.", ["FP8"])


@dataclass(frozen=True)
class SchedulerConfig:
    """Scheduling of requests (`SchedulerConfig`)."""

    capacity_scheduler_policy: Literal["MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"] | None = setting(
        None, "When a request may start."
    )
    context_chunking_policy: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] | None = setting(
        None, "Order of prefill chunks."
    )


@dataclass(frozen=True)
class TensorRTLLMSettings:
    """Settings of TensorRT-LLM; null leaves one to TensorRT-LLM."""

    backend: Literal["pytorch", "tensorrt", "_autodeploy"] | None = setting(None, "Execution backend.")
    max_batch_size: PositiveInt | None = setting(None, "Most requests per step.", [8])
    max_num_tokens: PositiveInt | None = setting(None, "Most tokens per step.")
    max_input_len: PositiveInt | None = setting(None, "Longest prompt in tokens.")
    max_seq_len: PositiveInt | None = setting(None, "Longest sequence in tokens.", [2048])
    max_beam_width: PositiveInt | None = setting(None, "Beams of beam search.")
    tensor_parallel_size: PositiveInt = setting(1, "Devices that share each layer.")
    pipeline_parallel_size: PositiveInt = setting(1, "Stages of consecutive layers.")
    moe_expert_parallel_size: PositiveInt | None = setting(None, "Devices that experts are spread over.")
    moe_tensor_parallel_size: PositiveInt | None = setting(None, "Devices that share each expert.")
    attn_backend: Name | None = setting(None, "Attention kernel.", ["TRTLLM", "FLASHINFER"])
    enable_chunked_prefill: bool | None = setting(None, "Split long prefills over steps.")
    disable_overlap_scheduler: bool | None = setting(None, "Do not schedule while a step runs.")
    cuda_graph_config: Mapping[str, JsonValue] | None = setting(None, "CUDA graphs, as TensorRT-LLM has them.")
    speculative_config: Mapping[str, JsonValue] | None = setting(None, "Speculative decoding, likewise.")
    fast_build: bool | None = setting(None, "Build the engine faster; backend tensorrt only.")
    kv_cache_config: KvCacheConfig = section(KvCacheConfig, "KV cache.")
    quant_config: QuantConfig = section(QuantConfig, "Quantisation.")
    scheduler_config: SchedulerConfig = section(SchedulerConfig, "Scheduling.")
    dtype: Dtype | None = setting(None, "Type of the weights for this engine, over the common one.")
    extra: Extra = section(dict, "Passed through: fields of `LlmArgs`.", [{"enable_attention_dp": True}])
