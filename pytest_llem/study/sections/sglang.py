"""The `sglang` section: names follow SGLang's `ServerArgs`."""

from __future__ import annotations

from pydantic import Field

from pytest_llem.study.sections.section import (
    Dtype,
    Extra,
    Fraction,
    Name,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class SGLang(Section):
    """Settings of SGLang; null leaves one to SGLang."""

    mem_fraction_static: Fraction | None = Field(None, description="Share of memory for weights and KV cache.")
    tp_size: PositiveInt = Field(1, description="Devices that share each layer.")
    pp_size: PositiveInt = Field(1, description="Stages of consecutive layers.")
    dp_size: PositiveInt = Field(1, description="Copies of the model.")
    ep_size: PositiveInt | None = Field(None, description="Devices that experts are spread over.")
    context_length: PositiveInt | None = Field(None, description="Longest sequence in tokens.")
    max_running_requests: PositiveInt | None = Field(None, description="Most requests at a time.", examples=[64])
    max_total_tokens: PositiveInt | None = Field(None, description="Tokens in the KV cache.")
    max_prefill_tokens: PositiveInt | None = Field(None, description="Most tokens of a prefill batch.")
    chunked_prefill_size: int | None = Field(None, ge=-1, description="Tokens per prefill chunk; -1 is off.")
    schedule_policy: Name | None = Field(None, description="Order of waiting requests.", examples=["lpm", "fcfs"])
    schedule_conservativeness: PositiveFloat | None = Field(None, description="How early requests are held back.")
    page_size: PositiveInt | None = Field(None, description="Tokens per KV-cache page.")
    kv_cache_dtype: Name | None = Field(None, description="Type of the KV cache.", examples=["auto", "fp8_e5m2"])
    quantization: Name | None = Field(None, description="Quantisation method.", examples=["fp8", "awq"])
    attention_backend: Name | None = Field(None, description="Attention kernel.", examples=["flashinfer", "fa3"])
    sampling_backend: Name | None = Field(None, description="Sampling kernel.", examples=["flashinfer", "pytorch"])
    disable_cuda_graph: bool | None = Field(None, description="No CUDA graphs.")
    cuda_graph_max_bs_decode: PositiveInt | None = Field(None, description="Largest batch captured in a CUDA graph.")
    disable_radix_cache: bool | None = Field(None, description="Do not reuse the cache of common prefixes.")
    disable_overlap_schedule: bool | None = Field(None, description="Do not schedule while a step runs.")
    enable_torch_compile: bool | None = Field(None, description="Compile the model.")
    torch_compile_max_bs: PositiveInt | None = Field(None, description="Largest batch compiled for.")
    cpu_offload_gb: NonNegativeInt | None = Field(None, description="GiB of weights kept in host memory.")
    speculative_algorithm: Name | None = Field(None, description="Speculative decoding.", examples=["EAGLE", "NGRAM"])
    speculative_draft_model_path: Name | None = Field(None, description="Draft model.")
    speculative_num_steps: PositiveInt | None = Field(None, description="Steps drafted.")
    speculative_eagle_topk: PositiveInt | None = Field(None, description="Branches per drafted step.")
    speculative_num_draft_tokens: PositiveInt | None = Field(None, description="Tokens drafted per step.")
    dtype: Dtype | None = Field(None, description="Type of the weights for this engine, over the common one.")
    extra: Extra = Field(
        default_factory=dict, description="Passed through: fields of `ServerArgs`.", examples=[{"log_level": "error"}]
    )
