"""The `vllm` section: names follow vLLM's `EngineArgs` and `SamplingParams`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pytest_llem.study.sections.section import (
    Dtype,
    Extra,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Section,
)

Penalty = Annotated[float, Field(ge=-2, le=2)]


class Speculative(Section):
    """Speculative decoding (`speculative_config`); off until `num_speculative_tokens` is set."""

    num_speculative_tokens: PositiveInt | None = Field(None, description="Tokens drafted per step.", examples=[5])
    method: Name | None = Field(None, description="Drafting method; null infers it.", examples=["ngram", "eagle"])
    model: Name | None = Field(None, description="Draft model: hub id or path.")
    prompt_lookup_max: PositiveInt | None = Field(None, description="Longest n-gram; method ngram only.")
    prompt_lookup_min: PositiveInt | None = Field(None, description="Shortest n-gram; method ngram only.")
    draft_tensor_parallel_size: PositiveInt | None = Field(None, description="Devices that share the draft model.")


class VLLMSampling(Section):
    """Sampling settings beyond the common `decoding` section (`SamplingParams`)."""

    presence_penalty: Penalty = Field(0.0, description="Penalty on tokens that occurred.")
    frequency_penalty: Penalty = Field(0.0, description="Penalty on tokens by how often they occurred.")
    min_tokens: NonNegativeInt = Field(0, description="Tokens before end-of-sequence may be generated.")
    n: PositiveInt = Field(1, description="Sequences per prompt.")


class BeamSearch(Section):
    """Beam search; off until `beam_width` is above 1."""

    beam_width: PositiveInt = Field(1, description="Beams; 1 is no beam search.", examples=[4])
    length_penalty: Annotated[float, Field(ge=-100, le=100)] = Field(1.0, description="Exponent on the length.")


class VLLM(Section):
    """Settings of vLLM; null leaves one to vLLM."""

    gpu_memory_utilization: Fraction | None = Field(None, description="Share of device memory to use.", examples=[0.9])
    kv_cache_memory_bytes: PositiveInt | None = Field(None, description="Size of the KV cache, in place of a share.")
    block_size: PositiveInt | None = Field(None, description="Tokens per KV-cache block.", examples=[16])
    kv_cache_dtype: Name | None = Field(None, description="Type of the KV cache.", examples=["auto", "fp8"])
    enforce_eager: bool = Field(False, description="No CUDA graphs and no compilation.")
    enable_chunked_prefill: bool | None = Field(None, description="Split long prefills over steps.")
    max_num_seqs: PositiveInt | None = Field(None, description="Most sequences per step.", examples=[64, 256])
    max_num_batched_tokens: PositiveInt | None = Field(None, description="Most tokens per step.", examples=[8192])
    max_model_len: PositiveInt | None = Field(None, description="Longest sequence in tokens.", examples=[2048])
    tensor_parallel_size: PositiveInt = Field(1, description="Devices that share each layer.")
    pipeline_parallel_size: PositiveInt = Field(1, description="Stages of consecutive layers.")
    data_parallel_size: PositiveInt = Field(1, description="Copies of the model.")
    enable_expert_parallel: bool = Field(False, description="Spread experts over devices.")
    distributed_executor_backend: Literal["mp", "ray", "uni", "external_launcher"] | None = Field(
        None, description="How processes of several devices are run."
    )
    disable_custom_all_reduce: bool = Field(False, description="Use NCCL's all-reduce.")
    enable_prefix_caching: bool | None = Field(None, description="Reuse the cache of common prefixes.")
    quantization: Name | None = Field(None, description="Quantisation method.", examples=["fp8", "awq", "bitsandbytes"])
    cpu_offload_gb: NonNegativeFloat = Field(0.0, description="GiB of weights kept in host memory.")
    attention_backend: Name | None = Field(None, description="Attention kernel.", examples=["FLASH_ATTN", "FLASHINFER"])
    compilation_config: dict[str, JsonValue] | None = Field(
        None, description="Compilation settings, as vLLM has them.", examples=[{"mode": 3}]
    )
    scheduling_policy: Literal["fcfs", "priority"] | None = Field(None, description="Order of waiting requests.")
    async_scheduling: bool | None = Field(None, description="Schedule the next step while one runs.")
    num_gpu_blocks_override: PositiveInt | None = Field(None, description="KV-cache blocks, in place of profiling.")
    speculative: Speculative = Field(default_factory=Speculative, description="Speculative decoding.")
    sampling: VLLMSampling = Field(default_factory=VLLMSampling, description="Further sampling settings.")
    beam_search: BeamSearch = Field(default_factory=BeamSearch, description="Beam search.")
    dtype: Dtype | None = Field(None, description="Type of the weights for this engine, over the common one.")
    extra: Extra = Field(
        default_factory=dict,
        description="Passed through: fields of `SamplingParams`, or of `EngineArgs`.",
        examples=[{"load_format": "safetensors"}],
    )
