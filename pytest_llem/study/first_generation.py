"""The names of LLenergyMeasure's settings in its first generation, the tool `llm-energy-measure` of 2024 and 2025.

`llenergymeasure` joins them to its own tables. They may only be added to, from the public history of that tool's files:
`configs/examples`, `configs/test_grid`, and the JSON files before them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llem.errors import JsonValue

PREFIXES: tuple[tuple[str, str], ...] = (
    ("latency_simulation", "traffic_simulation"),
    ("quantization.quantization", "quantized"),
    ("quantization.", "transformers."),
    ("batching.", "batching_options."),
    ("sharding_config", "sharding"),
    ("transformers.beam_search.", "decoder.beam_search."),
    ("transformers.batching_strategy", "batching_options.strategy"),
    ("transformers.max_tokens_per_batch", "batching_options.max_tokens_per_batch"),
    ("transformers.num_processes", "num_processes"),
    ("transformers.parallelism_strategy", "parallelism.strategy"),
    ("transformers.parallelism_degree", "parallelism.degree"),
    ("transformers.parallelism.", "parallelism."),
    ("tensorrt_llm.quantization.calibration", "tensorrt_llm.calibration"),
    ("tensorrt_llm.quantization.method", "tensorrt_llm.quantization"),
)

_DATASETS = {"ai_energy_score": "aienergyscore", "ai-energy-score": "aienergyscore", "alpaca": "tatsu-lab/alpaca"}
_ALGORITHMS = {
    "fp8": "FP8",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int8_weight_only": "W8A16",
    "int4_awq": "W4A16_AWQ",
    "int4_gptq": "W4A16_GPTQ",
}
RENAMES: Mapping[str, str] = {
    "config_name": "name",
    "campaign_name": "name",
    "model_name": "model",
    "adapter": "lora",
    "lora.adapter_path": "lora",
    "num_input_prompts": "workload.prompts",
    "num_samples": "workload.prompts",
    "dataset": "workload.dataset",
    "dataset.name": "workload.dataset",
    "dataset.sample_size": "workload.prompts",
    "prompts.path": "workload.dataset",
    "prompts.dataset": "workload.dataset",
    "prompts.sample_size": "workload.prompts",
    "prompts.split": "workload.split",
    "prompts.column": "workload.column",
    "fp_precision": "dtype",
    "gpus": "device.gpus",
    "gpu_list": "device.gpus",
    "num_cycles": "execution.cycles",
    "batching_options.batch_size": "transformers.batch_size",
    "decoder_temperature": "decoding.temperature",
    "decoder_top_k": "decoding.top_k",
    "decoder_top_p": "decoding.top_p",
    "load_in_4bit": "transformers.quantization.load_in_4bit",
    "load_in_8bit": "transformers.quantization.load_in_8bit",
    "decoder.no_repeat_ngram_size": "transformers.no_repeat_ngram_size",
    "decoder.beam_search.num_beams": "transformers.num_beams",
    "decoder.beam_search.length_penalty": "transformers.length_penalty",
    "decoder.beam_search.early_stopping": "transformers.early_stopping",
    "decoder.beam_search.no_repeat_ngram_size": "transformers.no_repeat_ngram_size",
    "baseline.duration_sec": "measurement.idle.duration_s",
    "transformers.min_p": "decoding.min_p",
    "transformers.top_k": "decoding.top_k",
    "vllm.min_p": "decoding.min_p",
    "vllm.top_k": "decoding.top_k",
    "vllm.distributed_backend": "vllm.distributed_executor_backend",
    "vllm.attention.disable_sliding_window": "vllm.extra.disable_sliding_window",
    "vllm.load_format": "vllm.extra.load_format",
    "vllm.logprobs": "vllm.extra.logprobs",
    "vllm.logit_bias": "vllm.extra.logit_bias",
    "vllm.speculative.num_tokens": "vllm.speculative.num_speculative_tokens",
    "vllm.speculative.draft_tp_size": "vllm.speculative.draft_tensor_parallel_size",
    "tensorrt_llm.pp_size": "tensorrt_llm.pipeline_parallel_size",
    "tensorrt_llm.quantization": "tensorrt_llm.quant_config.quant_algo",
    "tensorrt_llm.enable_chunked_context": "tensorrt_llm.enable_chunked_prefill",
    "tensorrt_llm.enable_kv_cache_reuse": "tensorrt_llm.kv_cache_config.enable_block_reuse",
    "tensorrt_llm.gpu_memory_utilization": "tensorrt_llm.kv_cache_config.free_gpu_memory_fraction",
    "_extends": "base",
}
"""A word, and the setting that it is here."""

VALUES: Mapping[str, Mapping[str, str]] = {
    "dataset": _DATASETS,
    "dataset.name": _DATASETS,
    "prompts.dataset": _DATASETS,
    "tensorrt_llm.quantization": _ALGORITHMS,
}
"""Values that have other words here; those of `fp_precision` are read as those of `precision`."""

HARMLESS: Mapping[str, tuple[JsonValue, ...]] = {
    "adapter": (None,),
    "dataset": (None,),
    "prompts": (None,),
    "prompts.type": ("file", "huggingface"),
    "prompts.shuffle": (False,),
    "prompts.seed": (),
    "min_output_tokens": (0, None),
    "num_processes": (1, None),
    "parallelism.strategy": (None, "none"),
    "parallelism.degree": (),
    "parallelism.tp_plan": (None, "auto"),
    "sharding.strategy": (None, "none"),
    "sharding.num_shards": (),
    "batching_options.strategy": (None, "static"),
    "batching_options.max_tokens_per_batch": (),
    "batching_options.dynamic_batching": (False, None),
    "decoder.beam_search": (None,),
    "decoder.no_repeat_ngram_size": (0, None),
    "decoder.beam_search.enabled": (True,),
    "decoder.beam_search.no_repeat_ngram_size": (0, None),
    "quantization": (True, False, None),
    "quantized": (True, False, None),
    "is_encoder_decoder": (False, None, "decoder_only"),
    "task_type": (None, "text_generation"),
    "inference_type": (None, "pure_generative", "purely_generative"),
    "extra_metadata": ({}, None),
    "pytorch": (None,),
    "transformers.beam_search": (None,),
    "transformers.use_bettertransformer": (False, None),
    "transformers.output_scores": (False, None),
    "transformers.return_dict_in_generate": (False, None),
    "transformers.min_p": (0, None),
    "transformers.no_repeat_ngram_size": (0,),
    "vllm.attention": (None,),
    "vllm.attention.backend": (None, "auto"),
    "vllm.attention.disable_sliding_window": (False, None),
    "vllm.load_format": (None, "auto"),
    "vllm.best_of": (None, 1),
    "vllm.logprobs": (None,),
    "vllm.logit_bias": (None,),
    "vllm.min_p": (0, None),
    "tensorrt": (None,),
    "tensorrt_llm.quantization": (None, "none"),
    "tensorrt_llm.kv_cache_type": (None, "paged"),
    "tensorrt_llm.num_draft_tokens": (),
    "tensorrt_llm.extra_build_args": ({}, None),
    "tensorrt_llm.extra_runtime_args": ({}, None),
}

_ALWAYS = "power and clocks are always recorded"
_STREAMED = "token times are always taken"
DROPPED: Mapping[str, str] = {
    "timeseries": _ALWAYS,
    "streaming": _STREAMED,
    "streaming_warmup_requests": _STREAMED,
    "schedule": "start it by cron or by a schedule of the CI",
    "io": "results go to --llem-out",
    "query_rate": "it stood among the tracking data; workload.arrival is what paces requests",
    "save_outputs": "texts are not kept",
    "decode_token_to_text": "texts are not kept",
    "extra_metadata": "it was noted only",
    "cycle_id": "cycles are numbered",
    "baseline.required": "a cycle without idle power says so",
    "baseline.cache_ttl_sec": "idle power is measured in every cycle",
    "baseline.sample_interval_ms": "sensors are read as often as they have a new value",
    "vllm.max_seq_len_to_capture": "vLLM has removed it",
    "tensorrt_llm.force_rebuild": "it is about what is built before anything is measured",
    "tensorrt_llm.engine_cache_dir": "it is about what is built before anything is measured",
}

_BUILD = "leave it out: TensorRT-LLM's LLM class has no such setting, and other kernels are chosen"
REFUSED: Mapping[str, str] = {
    "configs": "`llem convert FILE` makes one study of them",
    "min_output_tokens": "write workload: {ignore_eos: true}: exactly output_tokens are generated",
    "prompts.shuffle": "shuffle the prompts beforehand, and name the file as workload.dataset",
    "prompts.subset": "download that subset, and name the file as workload.dataset",
    "traffic_simulation": "write engine: openai, and workload.arrival for the traffic",
    "batching_options.strategy": "only static batches are formed here; transformers: {continuous_batching: true} is "
    "the nearest",
    "batching_options.dynamic_batching": "write transformers: {continuous_batching: true}",
    "is_encoder_decoder": "only decoder models are measured",
    "task_type": "only text generation is measured",
    "inference_type": "leave it out: what is generated is the model's affair",
    "parallelism.tp_plan": "leave it out: the model's own plan is used",
    "transformers.use_bettertransformer": "leave it out: sdpa has replaced it",
    "transformers.output_scores": "leave it out: scores are not taken",
    "transformers.return_dict_in_generate": "leave it out: scores are not taken",
    "transformers.assisted_generation": "write engine: vllm, and vllm: {speculative: {model: ...}}",
    "vllm.attention.flash_version": "set the environment variable VLLM_FLASH_ATTN_VERSION",
    "vllm.lora": "write lora: ADAPTER",
    "vllm.best_of": "leave it out: vLLM has removed it",
    "tensorrt_llm.calibration": "quantise beforehand and name the quantised model",
    "tensorrt_llm.kv_cache_type": "leave it out: the cache is paged",
    "tensorrt_llm.max_output_len": "write tensorrt_llm: {max_seq_len: ...}: input and output together",
    "tensorrt_llm.builder_opt_level": _BUILD,
    "tensorrt_llm.strongly_typed": _BUILD,
    "tensorrt_llm.multiple_profiles": _BUILD,
    "tensorrt_llm.draft_model": "write tensorrt_llm: {speculative_config: {...}}",
    "tensorrt_llm.extra_build_args": _BUILD,
    "tensorrt_llm.extra_runtime_args": "write tensorrt_llm: {extra: {...}}",
}

SWITCHED = ("traffic_simulation", "schedule", "vllm.lora", "decoder.beam_search", "transformers.beam_search")
"""Sections that `enabled: false` switches off with all that they hold; but for `schedule` it is their default."""

PARALLEL: Mapping[str, str] = {
    "tensor_parallel": "tensor_parallel_size",
    "pipeline_parallel": "pipeline_parallel_size",
    "data_parallel": "data_parallel_size",
}
"""A strategy of `parallelism`, and the setting of the engine that takes its degree."""

MARKS = frozenset({"batching", "batching_options", "parallelism", "prompts", "sharding", "traffic_simulation"})
"""Top-level words that only those files have."""
