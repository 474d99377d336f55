"""The `tensorrt_llm` section: names follow TensorRT-LLM's `LlmArgs`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from pytest_llem.study.sections.section import Dtype, Extra, Fraction, Name, NonNegativeInt, PositiveInt, Section


class KvCacheConfig(Section):
    """The KV cache (`KvCacheConfig`)."""

    free_gpu_memory_fraction: Fraction | None = Field(None, description="Share of free memory to use.", examples=[0.9])
    max_tokens: PositiveInt | None = Field(None, description="Tokens in the cache.")
    enable_block_reuse: bool | None = Field(None, description="Reuse the cache of common prefixes.")
    host_cache_size: NonNegativeInt | None = Field(None, description="Bytes of cache in host memory.")
    dtype: Name | None = Field(None, description="Type of the cache.", examples=["auto", "fp8"])


class QuantConfig(Section):
    """Quantisation (`QuantConfig`); off until `quant_algo` is set."""

    quant_algo: Name | None = Field(None, description="Algorithm for weights.", examples=["FP8", "W4A16_AWQ"])
    kv_cache_quant_algo: Name | None = Field(None, description="Algorithm for the KV cache.", examples=["FP8"])


class SchedulerConfig(Section):
    """Scheduling of requests (`SchedulerConfig`)."""

    capacity_scheduler_policy: Literal["MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"] | None = Field(
        None, description="When a request may start."
    )
    context_chunking_policy: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] | None = Field(
        None, description="Order of prefill chunks."
    )


class TensorRTLLM(Section):
    """Settings of TensorRT-LLM; null leaves one to TensorRT-LLM."""

    backend: Literal["pytorch", "tensorrt", "_autodeploy"] | None = Field(None, description="Execution backend.")
    max_batch_size: PositiveInt | None = Field(None, description="Most requests per step.", examples=[8])
    max_num_tokens: PositiveInt | None = Field(None, description="Most tokens per step.")
    max_input_len: PositiveInt | None = Field(None, description="Longest prompt in tokens.")
    max_seq_len: PositiveInt | None = Field(None, description="Longest sequence in tokens.", examples=[2048])
    max_beam_width: PositiveInt | None = Field(None, description="Beams of beam search.")
    tensor_parallel_size: PositiveInt = Field(1, description="Devices that share each layer.")
    pipeline_parallel_size: PositiveInt = Field(1, description="Stages of consecutive layers.")
    moe_expert_parallel_size: PositiveInt | None = Field(None, description="Devices that experts are spread over.")
    moe_tensor_parallel_size: PositiveInt | None = Field(None, description="Devices that share each expert.")
    attn_backend: Name | None = Field(None, description="Attention kernel.", examples=["TRTLLM", "FLASHINFER"])
    enable_chunked_prefill: bool | None = Field(None, description="Split long prefills over steps.")
    disable_overlap_scheduler: bool | None = Field(None, description="Do not schedule while a step runs.")
    cuda_graph_config: dict[str, JsonValue] | None = Field(None, description="CUDA graphs, as TensorRT-LLM has them.")
    speculative_config: dict[str, JsonValue] | None = Field(None, description="Speculative decoding, likewise.")
    fast_build: bool | None = Field(None, description="Build the engine faster; backend tensorrt only.")
    kv_cache_config: KvCacheConfig = Field(default_factory=KvCacheConfig, description="KV cache.")
    quant_config: QuantConfig = Field(default_factory=QuantConfig, description="Quantisation.")
    scheduler_config: SchedulerConfig = Field(default_factory=SchedulerConfig, description="Scheduling.")
    dtype: Dtype | None = Field(None, description="Type of the weights for this engine, over the common one.")
    extra: Extra = Field(
        default_factory=dict,
        description="Passed through: fields of `LlmArgs`.",
        examples=[{"enable_attention_dp": True}],
    )
