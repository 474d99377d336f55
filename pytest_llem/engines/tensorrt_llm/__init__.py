"""What the package knows of TensorRT-LLM without importing it.

`pytest_llem.engines` collects it, and its engine takes it. `name` is part of experiments' ids: it must stay.
"""

from __future__ import annotations

from pytest_llem.engines.info import EngineInfo, Layout, PrefixCache, Target

INFO = EngineInfo(
    name="tensorrt_llm",
    engine="pytest_llem.engines.tensorrt_llm.engine:TensorRTLLMEngine",
    settings="pytest_llem.engines.tensorrt_llm.settings:TensorRTLLMSettings",
    title="TensorRT-LLM",
    order=4,
    modules=("tensorrt_llm",),
    packages=("torch", "tensorrt_llm"),
    install="pip install tensorrt-llm",
    stock_image="nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    exclusive=True,
    device_kinds=("cuda",),
    gpus_by_sizes=True,
    stop_strings=True,
    verified=False,
    signatures=Layout(
        main=(Target(("tensorrt_llm.llmapi:TorchLlmArgs", "tensorrt_llm.llmapi:LlmArgs")),),
        decoding=Target(("tensorrt_llm:SamplingParams", "tensorrt_llm.llmapi:SamplingParams")),
        sections={
            "kv_cache_config": Target(("tensorrt_llm.llmapi:KvCacheConfig",)),
            "quant_config": Target(("tensorrt_llm.llmapi:QuantConfig",)),
            "scheduler_config": Target(("tensorrt_llm.llmapi:SchedulerConfig",)),
        },
        own=("backend",),
    ),
    context_length="max_seq_len",
    prefix_cache=PrefixCache("kv_cache_config.enable_block_reuse", (None, False), emptied=False),
)
