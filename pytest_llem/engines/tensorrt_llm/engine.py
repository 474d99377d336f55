"""The `tensorrt_llm` engine: TensorRT-LLM's `LLM` with its PyTorch backend.

`pytest_llem.engines` opens it by name, the worker drives it; not yet verified on hardware. Only `llm_arguments`,
`sampling_parameters` and `take_output` may depend on the API reference of TensorRT-LLM 1.0 to 1.3
(`LLM.generate_async`, `TorchLlmArgs`, `SamplingParams`, `CompletionOutput`).
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pytest_llem.engines.hub_models import plain_json
from pytest_llem.engines.info import EngineInfo
from pytest_llem.engines.protocol import CacheState, Request
from pytest_llem.engines.refusals import load_error, require_devices, sampling_settings
from pytest_llem.engines.streamed import StreamedAnswer, StreamedEngine, known_arguments, study_arguments
from pytest_llem.engines.tensorrt_llm import INFO
from pytest_llem.errors import EngineSettingError, JsonValue, LlemError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet

SECTIONS = {"kv_cache_config": "KvCacheConfig", "quant_config": "QuantConfig", "scheduler_config": "SchedulerConfig"}
"""Nested settings, and the class of `tensorrt_llm.llmapi` that takes each."""
RESERVED = ("model", "tokenizer", "dtype", "revision", "trust_remote_code", "load_format", "backend")
SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
SHOWN = (
    "tensor_parallel_size", "pipeline_parallel_size", "max_batch_size", "max_num_tokens", "max_seq_len",
    "attn_backend", "enable_chunked_prefill", "disable_overlap_scheduler",
)  # fmt: skip
MEMORY_TEXTS = ("out of memory", "Insufficient memory", "cannot allocate")
Maker = Callable[..., Any]


class TensorRTLLMEngine(StreamedEngine):
    """TensorRT-LLM's `LLM`.

    Reuse of key-value blocks between requests is off unless the study asks for it: nothing empties them in between.
    """

    name: ClassVar[str] = INFO.name
    info: ClassVar[EngineInfo] = INFO

    def reset(self) -> CacheState:
        """See `Engine.reset`. There is no call that empties the cache: it can only be off."""
        return "unknown" if self._ready().args.kv_cache_config.enable_block_reuse else "disabled"

    def _arguments(self, config: ExperimentConfig, devices: DeviceSet, model: str, tokenizer: str) -> dict[str, Any]:
        return llm_arguments(config, devices, model, tokenizer, known_arguments(INFO), _makers())

    def _make(self, arguments: Mapping[str, Any]) -> Any:
        import tensorrt_llm

        return tensorrt_llm.LLM(**arguments)

    def _load_error(self, config: ExperimentConfig, problem: Exception) -> LlemError:
        fix = "lower tensorrt_llm.max_seq_len, tensorrt_llm.max_num_tokens or the dtype, or use more devices"
        return load_error("TensorRT-LLM", config.model, problem, MEMORY_TEXTS, fix)

    async def _outputs(self, request: Request) -> AsyncIterator[Any]:
        from tensorrt_llm import SamplingParams

        outputs = self._engine.generate_async(
            {"prompt_token_ids": list(request.token_ids)},
            sampling_params=SamplingParams(**sampling_parameters(self._prepared(), request)),
            streaming=True,
        )
        async for output in outputs:
            yield output

    def _take(self, answer: StreamedAnswer, output: Any, now_ns: int) -> str | None:
        return take_output(answer, output, now_ns)

    def _context_length(self) -> int | None:
        length: int | None = getattr(self._engine.args, "max_seq_len", None)
        return length

    def _settings_in_use(self, config: ExperimentConfig) -> Mapping[str, JsonValue]:
        return effective_settings(config, self._engine.args)


def llm_arguments(
    config: ExperimentConfig,
    devices: DeviceSet,
    model: str,
    tokenizer: str,
    known: Collection[str],
    makers: Mapping[str, Maker],
) -> dict[str, Any]:
    """Arguments of `tensorrt_llm.LLM`, which are those of `TorchLlmArgs` (`known`); `makers` build the nested ones.

    Raises `EngineSettingError` for what it does not have, and for more devices than are leased.
    """
    if config.settings.get("backend") not in (None, "pytorch"):
        raise EngineSettingError(
            f"tensorrt_llm.backend: {config.settings['backend']!r} is not supported here", fix="use pytorch"
        )
    if config.lora is not None:
        raise EngineSettingError("lora: not supported with tensorrt_llm", fix="use vllm or transformers")
    asked = replace(config, settings={name: value for name, value in config.settings.items() if name != "backend"})
    arguments: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    nested: dict[str, dict[str, JsonValue]] = {"kv_cache_config": {"enable_block_reuse": False}}
    for name, value in study_arguments(asked, INFO, known, RESERVED).items():
        if name in SECTIONS and isinstance(value, Mapping):
            given = {key: item for key, item in value.items() if item is not None}
            nested[name] = {**nested.get(name, {}), **given}
        else:
            arguments[name] = value
    arguments.update({name: makers[name](**value) for name, value in nested.items() if value})
    require_devices(INFO.name, [arguments.get(name) for name in SIZES], devices)
    return arguments


def sampling_parameters(config: ExperimentConfig, request: Request) -> dict[str, Any]:
    """Arguments of `SamplingParams` for a request; greedy unless the study samples."""
    length: dict[str, Any] = {"max_tokens": request.max_new_tokens, "ignore_eos": request.ignore_eos}
    choice = {"temperature": 1.0, "seed": config.seed} if config.decoding.do_sample else {"top_k": 1}
    # It finds strings in texts as well as by their tokens.
    ends: dict[str, Any] = {"stop": list(request.stop)} if request.stop else {}
    return {**length, **ends, "detokenize": bool(request.stop), **choice, **sampling_settings(config.decoding)}


def take_output(answer: StreamedAnswer, output: Any, now_ns: int) -> str | None:
    """Add one streamed `RequestOutput` to an answer; returns why it is finished, or `None` while it is not."""
    part = output.outputs[0]
    answer.grow_to(part.token_ids, now_ns)
    prompt = getattr(output, "prompt_token_ids", None)
    if prompt is not None:
        answer.input_tokens = len(prompt)
    cached = getattr(output, "cached_tokens", None)
    if cached is not None:
        answer.cached_tokens = int(cached)
    return str(part.finish_reason) if part.finish_reason is not None else None


def effective_settings(config: ExperimentConfig, args: Any) -> dict[str, JsonValue]:
    """What `LLM.args` says about the settings in use, under their own names; an `auto` dtype is not known."""
    names = dict.fromkeys((*SHOWN, *(name for name in config.settings if name not in ("extra", *SECTIONS))))
    found: dict[str, JsonValue] = {name: plain_json(getattr(args, name)) for name in names if hasattr(args, name)}
    quantization = getattr(getattr(args, "quant_config", None), "quant_algo", None)
    return {
        **found,
        "dtype": args.dtype if args.dtype != "auto" else None,
        "enable_block_reuse": bool(args.kv_cache_config.enable_block_reuse),
        "quantization": str(quantization) if quantization is not None else None,
        "quantized": quantization is not None,
    }


def _makers() -> dict[str, Maker]:
    api = importlib.import_module("tensorrt_llm.llmapi")
    return {name: getattr(api, attribute) for name, attribute in SECTIONS.items()}
