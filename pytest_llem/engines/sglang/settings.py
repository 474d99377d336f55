"""The section `sglang` of a study: names follow SGLang's `ServerArgs`.

Studies take their schema from it. Settings may be added; names and defaults must stay, as ids are made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pytest_llem.job.setting import (
    Dtype,
    Extra,
    Fraction,
    Limits,
    Name,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    section,
    setting,
)


@dataclass(frozen=True)
class SGLangSettings:
    """Settings of SGLang; null leaves one to SGLang."""

    mem_fraction_static: Fraction | None = setting(None, "Share of memory for weights and KV cache.")
    tp_size: PositiveInt = setting(1, "Devices that share each layer.")
    pp_size: PositiveInt = setting(1, "Stages of consecutive layers.")
    dp_size: PositiveInt = setting(1, "Copies of the model.")
    ep_size: PositiveInt | None = setting(None, "Devices that experts are spread over.")
    context_length: PositiveInt | None = setting(None, "Longest sequence in tokens.")
    max_running_requests: PositiveInt | None = setting(None, "Most requests at a time.", [64])
    max_total_tokens: PositiveInt | None = setting(None, "Tokens in the KV cache.")
    max_prefill_tokens: PositiveInt | None = setting(None, "Most tokens of a prefill batch.")
    chunked_prefill_size: Annotated[int, Limits(ge=-1)] | None = setting(None, "Tokens per prefill chunk; -1 is off.")
    schedule_policy: Name | None = setting(None, "Order of waiting requests.", ["lpm", "fcfs"])
    schedule_conservativeness: PositiveFloat | None = setting(None, "How early requests are held back.")
    page_size: PositiveInt | None = setting(None, "Tokens per KV-cache page.")
    kv_cache_dtype: Name | None = setting(None, "Type of the KV cache.", ["auto", "fp8_e5m2"])
    quantization: Name | None = setting(None, "Quantisation method.", ["fp8", "awq"])
    attention_backend: Name | None = setting(None, "Attention kernel.", ["flashinfer", "fa3"])
    sampling_backend: Name | None = setting(None, "Sampling kernel.", ["flashinfer", "pytorch"])
    disable_cuda_graph: bool | None = setting(None, "No CUDA graphs.")
    cuda_graph_max_bs_decode: PositiveInt | None = setting(None, "Largest batch captured in a CUDA graph.")
    disable_radix_cache: bool | None = setting(None, "Do not reuse the cache of common prefixes.")
    disable_overlap_schedule: bool | None = setting(None, "Do not schedule while a step runs.")
    enable_torch_compile: bool | None = setting(None, "Compile the model.")
    torch_compile_max_bs: PositiveInt | None = setting(None, "Largest batch compiled for.")
    cpu_offload_gb: NonNegativeInt | None = setting(None, "GiB of weights kept in host memory.")
    speculative_algorithm: Name | None = setting(None, "Speculative decoding.", ["EAGLE", "NGRAM"])
    speculative_draft_model_path: Name | None = setting(None, "Draft model.")
    speculative_num_steps: PositiveInt | None = setting(None, "Steps drafted.")
    speculative_eagle_topk: PositiveInt | None = setting(None, "Branches per drafted step.")
    speculative_num_draft_tokens: PositiveInt | None = setting(None, "Tokens drafted per step.")
    dtype: Dtype | None = setting(None, "Type of the weights for this engine, over the common one.")
    extra: Extra = section(dict, "Passed through: fields of `ServerArgs`.", [{"log_level": "error"}])
