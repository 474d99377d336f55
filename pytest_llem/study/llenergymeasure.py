"""The names of LLenergyMeasure's settings, and the settings that `sources` makes of them.

`sources` translates by them, `published` lists them. They may only be added to, from the tool's public documentation:
its names of 2024 and 2025 are in `first_generation`, the older ones (`backend: pytorch`, `n`, `decoder`) and the newer
(`engine: transformers`, `task`, `study_execution`) here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_llem.errors import JsonValue
from pytest_llem.study import first_generation
from pytest_llem.study.naming import slug

Convert = Callable[[JsonValue], JsonValue]

PREFIXES: tuple[tuple[str, str], ...] = (
    ("task.", ""),
    ("offline.", ""),
    ("pytorch.", "transformers."),
    ("tensorrt.", "tensorrt_llm."),
    ("transformers.engine_params.", "transformers."),
    ("transformers.llem_execution.", "transformers."),
    ("transformers.sampling_params.", "decoder."),
    ("transformers.sampling.", "decoder."),
    ("vllm.engine_params.", "vllm."),
    ("vllm.engine.", "vllm."),
    ("vllm.sampling_params.", "vllm.sampling."),
    ("tensorrt_llm.engine_params.", "tensorrt_llm."),
    ("tensorrt_llm.sampling_params.", "tensorrt_llm.sampling."),
    ("tensorrt_llm.quant.", "tensorrt_llm.quant_config."),
    ("tensorrt_llm.kv_cache.", "tensorrt_llm.kv_cache_config."),
    ("tensorrt_llm.scheduler.", "tensorrt_llm.scheduler_config."),
    ("study_execution.", "execution."),
    ("measurement.baseline.", "baseline."),
    ("harness.", ""),
    *first_generation.PREFIXES,
)
"""Sections that have another name or another parent here, each applied once, in this order."""

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}
ENGINES = {"pytorch": "transformers", "tensorrt": "tensorrt_llm"}
_ORDERS = {"shuffle": "shuffled", "interleave": "interleaved", "cyclic": "interleaved", "grouped": "sequential"}
RUNNERS = {"process": "local", "container": "docker"}
_BACKENDS = {"trt": "tensorrt"}
_ATTENTION = (
    *("flash_attn_version", "flash_attn_max_num_splits_for_cuda_graph", "use_prefill_decode_attention"),
    *("use_prefill_query_quantization", "use_cudnn_prefill", "disable_flashinfer_prefill", "use_trtllm_attention"),
    *("disable_flashinfer_q_quantization", "use_trtllm_ragged_deepseek_prefill"),
)


BNB_4BIT = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")


def _words(table: Mapping[str, str]) -> Convert:
    return lambda value: table.get(value, value) if isinstance(value, str) else value


def _dtype(value: JsonValue) -> JsonValue:
    return None if value == "auto" else _words(_DTYPES)(value)


def _meter(value: JsonValue) -> JsonValue:
    return "none" if value is None else value


def _name(value: JsonValue) -> JsonValue:
    """A name of any form as one that a study may have."""
    return slug(value) if isinstance(value, str) else value


def _same(value: JsonValue) -> JsonValue:
    return value


_KINDS: Mapping[str, Convert] = {"dtype": _dtype, "name": _name}


RENAMES: Mapping[str, tuple[tuple[str, Convert], ...]] = {
    "study_name": (("name", _name),),
    "backend": (("engine", _words(ENGINES)),),
    "engine": (("engine", _words(ENGINES)),),
    "n": (("workload.prompts", _same),),
    "precision": (("dtype", _dtype),),
    "dtype": (("dtype", _dtype),),
    "max_input_tokens": (("workload.input_tokens", _same),),
    "max_output_tokens": (("workload.output_tokens", _same),),
    "random_seed": (("seed", _same), ("workload.seed", _same)),
    "dataset": (("workload.dataset", _same),),
    "dataset.source": (("workload.dataset", _same),),
    "dataset.dataset": (("workload.dataset", _same),),
    "dataset.n_prompts": (("workload.prompts", _same),),
    "dataset.n": (("workload.prompts", _same),),
    "dataset.order": (("workload.order", _same),),
    "dataset.input_len": (("workload.input_tokens", _same),),
    "dataset.output_len": (("workload.output_tokens", _same),),
    "dataset.seed": (("workload.seed", _same),),
    "dataset.column": (("workload.column", _same),),
    "dataset.split": (("workload.split", _same),),
    "dataset_order": (("workload.order", _same),),
    "sampling_preset": (("decoding.preset", _same),),
    "energy.backend": (("meter", _meter),),
    "energy_sampler": (("meter", _meter),),
    "measurement.energy_sampler": (("meter", _meter),),
    "baseline.duration_seconds": (("measurement.idle.duration_s", _same),),
    "warmup.cv_threshold": (("measurement.warmup.cv", _same),),
    "warmup.window_size": (("measurement.warmup.window", _same),),
    "warmup.min_prompts": (("measurement.warmup.min_repeats", _same),),
    "warmup.max_prompts": (("measurement.warmup.max_repeats", _same),),
    "warmup.thermal_floor_seconds": (("measurement.idle.max_wait_s", _same),),
    "execution.n_cycles": (("execution.cycles", _same),),
    "execution.cycle_order": (("execution.order", _words(_ORDERS)),),
    "execution.experiment_order": (("execution.order", _words(_ORDERS)),),
    "execution.experiment_timeout_seconds": (("execution.timeout_s", _same),),
    "execution.experiment_gap_seconds": (("execution.cooldown", _same),),
    "execution.config_gap_seconds": (("execution.cooldown", _same),),
    "execution.cycle_gap_seconds": (("execution.cooldown", _same),),
    "execution.structure": (("execution.order", _words(_ORDERS)),),
    "execution.warmup_prompts": (("measurement.warmup.max_repeats", _same),),
    "execution.warmup_timeout_seconds": (("measurement.warmup.max_s", _same),),
    "execution.gpu_indices": (("device.gpus", _same),),
    "lora.adapter_id": (("lora", _same),),
    "transformers.dtype": (("transformers.dtype", _dtype),),
    "transformers.trust_remote_code": (("trust_remote_code", _same),),
    "transformers.tp_size": (("transformers.tensor_parallel_size", _same),),
    "transformers.torch_compile_mode": (("transformers.compile.mode", _same),),
    "transformers.torch_compile_backend": (("transformers.compile.backend", _same),),
    "vllm.dtype": (("vllm.dtype", _dtype),),
    "vllm.trust_remote_code": (("trust_remote_code", _same),),
    "vllm.speculative_model": (("vllm.speculative.model", _same),),
    "vllm.num_speculative_tokens": (("vllm.speculative.num_speculative_tokens", _same),),
    "vllm.attention.backend": (("vllm.attention_backend", _same),),
    "vllm.sampling.max_tokens": (("workload.output_tokens", _same),),
    "vllm.sampling.ignore_eos": (("workload.ignore_eos", _same),),
    "vllm.beam_search.max_tokens": (("workload.output_tokens", _same),),
    "tensorrt_llm.dtype": (("tensorrt_llm.dtype", _dtype),),
    "tensorrt_llm.tp_size": (("tensorrt_llm.tensor_parallel_size", _same),),
    "tensorrt_llm.backend": (("tensorrt_llm.backend", _words(_BACKENDS)),),
    "tensorrt_llm.scheduler_config.capacity_scheduling_policy": (
        ("tensorrt_llm.scheduler_config.capacity_scheduler_policy", _same),
    ),
    "tensorrt_llm.sampling.ignore_eos": (("workload.ignore_eos", _same),),
    **{
        f"{section}.{name}": ((f"decoding.{name}", _same),)
        for section in ("decoder", "vllm.sampling", "tensorrt_llm.sampling")
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample", "preset")
    },
    **{f"vllm.attention.{name}": ((f"vllm.extra.attention_config.{name}", _same),) for name in _ATTENTION},
    **{
        f"transformers.{name}": ((f"transformers.quantization.{name}", _same),)
        for name in ("load_in_4bit", "load_in_8bit", *BNB_4BIT)
    },
    **{
        f"vllm.{name}": ((f"vllm.extra.{name}", _same),)
        for name in ("offload_group_size", "offload_num_in_group", "offload_prefetch_step", "offload_params")
    },
    **{
        word: ((path, _KINDS.get(path) or _words(first_generation.VALUES.get(word, {}))),)
        for word, path in first_generation.RENAMES.items()
    },
}
"""A word that means the same as another word here, with the conversion of its value."""

HARMLESS: Mapping[str, tuple[JsonValue, ...]] = {
    "serving_mode": ("offline",),
    "warmup.enabled": (True,),
    "warmup.convergence_detection": (True, False),
    "warmup.n_warmup": (),
    "warmup.n_prompts": (),
    "baseline.enabled": (True,),
    "random_seed": (None,),
    "execution.experiment_gap_seconds": (None,),
    "execution.config_gap_seconds": (None,),
    "execution.cycle_gap_seconds": (None,),
    "execution.gpu_indices": (None,),
    "execution.skip_preflight": (False,),
    "execution.deduplicate_equivalent": (True,),
    "lora.merge_weights": (False,),
    "transformers.tp_plan": (None, "auto"),
    "transformers.torch_compile": (False, None),
    "transformers.autocast_enabled": (False, None),
    "vllm.beam_search": (None,),
    **{f"vllm.attention.{name}": (None,) for name in _ATTENTION},
    "vllm.beam_search.early_stopping": (None, False),
    "tensorrt_llm.sampling.min_tokens": (None, 0),
    "tensorrt_llm.sampling.n": (None, 1),
    "tensorrt_llm.sampling.return_perf_metrics": (None, False),
    **first_generation.HARMLESS,
}
"""Values that say what is the case here anyway, as null does for `DROPPED` and `REFUSED`; () stands for every value."""

_IDLE = "idle power is measured in every cycle"
_BREAKER = "the breaker is always on, unless --llem-no-breaker switches it off"
DROPPED: Mapping[str, str] = {
    "output": "results go to --llem-out",
    "output_dir": "results go to --llem-out",
    **dict.fromkeys(
        ("gpu_telemetry", *(f"{part}.gpu_telemetry" for part in ("measurement", "execution", "baseline", "energy"))),
        "power and clocks are always recorded",
    ),
    "baseline.strategy": _IDLE,
    "baseline.cache_ttl_seconds": _IDLE,
    "baseline.validation_interval": _IDLE,
    "baseline.drift_threshold": _IDLE,
    "execution.shuffle_seed": "the order follows from the study's hash",
    "execution.skip_preflight": "--llem-skip-preflight does it",
    "execution.max_consecutive_failures": _BREAKER,
    "execution.circuit_breaker_cooldown_seconds": _BREAKER,
    "execution.wall_clock_timeout_hours": "execution.timeout_s limits each cycle",
    "execution.stdout_silence_timeout_seconds": "execution.timeout_s limits each cycle",
    "transformers.low_cpu_mem_usage": "transformers always loads this way now",
    "vllm.swap_space": "vLLM has removed it",
    "vllm.beam_search.early_stopping": "vLLM's beam search has no such setting",
    "tensorrt_llm.build_cache": "it caches what is built before anything is measured; tensorrt_llm.extra."
    "enable_build_cache switches it on",
    "tensorrt_llm.sampling.return_perf_metrics": "requests are timed here",
    **first_generation.DROPPED,
}
"""Words without a counterpart that change no measurement, and why: they may stand, and a notice lists them."""

_SCHEDULES: Mapping[str, tuple[str, str]] = {
    "latin_square": ("balanced", "a Latin square, in which each experiment follows each other one as often"),
    "reverse": ("shuffled", "another order that favours no experiment"),
}
_CACHE = "transformers takes it for a static cache"
REPLACED: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "transformers.cache_implementation": {
        **dict.fromkeys(("sliding_window", "hybrid", "hybrid_chunked"), ("static", _CACHE)),
        **dict.fromkeys(("offloaded_hybrid", "offloaded_hybrid_chunked"), ("offloaded_static", _CACHE)),
    },
    "execution.experiment_order": _SCHEDULES,
    "execution.cycle_order": _SCHEDULES,
}
"""Values without a counterpart, by word: what is taken instead to the same effect, and why; the notice lists them.

The names of caches are those that transformers 5 takes for static ones (`generation/configuration_utils.py`).
"""

REFUSED: Mapping[str, str] = {
    "serving_mode": "write engine: openai, and workload.arrival for the traffic",
    "server": "write engine: openai, and workload.arrival for the traffic",
    "energy": "write meter: NAME",
    "warmup.enabled": "write measurement: {warmup: {max_repeats: 0}}",
    "baseline.enabled": "write measurement: {idle: {duration_s: 0}}",
    "execution.deduplicate_equivalent": "leave it out: equal experiments run once, execution.cycles repeats them",
    "lora.merge_weights": "merge the adapter beforehand and name the merged model",
    "lora.revision": "download the adapter at that revision and name its path",
    "transformers.tp_plan": "write transformers: {tensor_parallel_size: N}",
    "transformers.allow_tf32": "set the environment variable NVIDIA_TF32_OVERRIDE",
    "transformers.autocast_enabled": "write dtype: bfloat16",
    "transformers.autocast_dtype": "write dtype: bfloat16",
    "decoder.min_new_tokens": "write workload: {ignore_eos: true}: exactly output_tokens are generated",
    "tensorrt_llm.engine_path": "name the engine's directory as model",
    "tensorrt_llm.sampling.min_tokens": "write workload: {ignore_eos: true}",
    "tensorrt_llm.sampling.n": "leave it out: one sequence per prompt",
    "tensorrt_llm.calib": "quantise beforehand and name the quantised model",
    **first_generation.REFUSED,
}
"""Words without a counterpart that would change what is measured, and what to write instead."""

MARKS = frozenset({"task", "offline", "pytorch", "tensorrt", "decoder", "warmup", "baseline", "energy", "serving_mode"})
MARKS |= {"study_execution", "passthrough_kwargs", "harness"}
MARKS |= first_generation.MARKS
MARKS |= {word.partition(".")[0] for word in RENAMES if "." not in word and word not in ("engine", "dtype")}
"""Top-level words that only those files have."""
