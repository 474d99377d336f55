"""What the package knows of SGLang and its server without importing it.

`pytest_llem.engines` collects it, and its engine takes it. `name` and `inactive` decide experiments' ids: keep them.
"""

from __future__ import annotations

from pytest_llem.engines.info import EngineInfo, Inactive, Layout, PrefixCache, ServerApi, Target

INFO = EngineInfo(
    name="sglang",
    engine="pytest_llem.engines.sglang.engine:SGLangEngine",
    settings="pytest_llem.engines.sglang.settings:SGLangSettings",
    title="SGLang",
    order=3,
    modules=("sglang",),
    packages=("torch", "sglang"),
    install="pip install sglang",
    stock_image="lmsysorg/sglang:v0.5.20",
    exclusive=True,
    device_kinds=("cuda", "rocm"),
    gpus_by_sizes=True,
    stop_strings=True,
    verified=False,
    signatures=Layout(
        main=(Target(("sglang.srt.server_args:ServerArgs",)),),
        decoding=Target(("sglang.srt.sampling.sampling_params:SamplingParams",)),
    ),
    loads_gguf=True,
    context_length="context_length",
    inactive=(
        Inactive(
            ("torch_compile_max_bs",), "enable_torch_compile", (None, False), "without sglang.enable_torch_compile"
        ),
        Inactive(("cuda_graph_max_bs_decode",), "disable_cuda_graph", (True,), "with sglang.disable_cuda_graph"),
        Inactive(
            (
                "speculative_draft_model_path",
                "speculative_num_steps",
                "speculative_eagle_topk",
                "speculative_num_draft_tokens",
            ),
            "speculative_algorithm",
            (None,),
            "without sglang.speculative_algorithm",
        ),
    ),
    prefix_cache=PrefixCache("disable_radix_cache", (True,)),
    server=ServerApi(
        owner="sglang",
        version_path="/get_server_info",
        reset_path="/flush_cache",
        # Its arguments: a checkpoint's own quantisation, and an `auto` dtype, are not among them.
        model_paths=("/server_info", "/get_server_info"),
        model_facts={"dtype": "dtype", "quantization": "quantization", "kv_cache_dtype": "kv_cache_dtype"},
        gauges={"running": "sglang:num_running_reqs", "waiting": "sglang:num_queue_reqs"},
        counters={
            "preemptions": "sglang:num_retracted_reqs_total",
            "finished_requests": "sglang:num_requests_total",
            "prefix_cache_hit_tokens": "sglang:cached_tokens_total",
            "prompt_tokens": "sglang:prompt_tokens_total",
            "generated_tokens": "sglang:generation_tokens_total",
        },
        latencies={
            "ttft": "sglang:time_to_first_token_seconds",
            "itl": "sglang:inter_token_latency_seconds",
            "e2el": "sglang:e2e_request_latency_seconds",
        },
    ),
)
