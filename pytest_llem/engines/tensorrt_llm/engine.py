"""The `tensorrt_llm` engine: TensorRT-LLM's `LLM` with its PyTorch backend.

Not yet verified on hardware. Written against the API reference of TensorRT-LLM 1.0 to 1.3 (`LLM.generate_async`,
`TorchLlmArgs`, `SamplingParams`, `CompletionOutput`); `llm_arguments`, `sampling_parameters` and `take_output` hold
everything that depends on them.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from pytest_llem.engines.hub_models import (
    HubTokenizer,
    check_lengths,
    load_text_config,
    load_tokenizer,
    plain_json,
    shape_of,
    tokenizer_of,
)
from pytest_llem.engines.model_files import ModelSource, find_model, on_hub
from pytest_llem.engines.protocol import (
    CacheState,
    Capabilities,
    Completion,
    DeviceMemory,
    Engine,
    ModelShape,
    Progress,
    Quiesced,
    Request,
)
from pytest_llem.engines.refusals import after, one_line, require_devices, unknown_setting
from pytest_llem.engines.signatures import LAYOUTS, parameters
from pytest_llem.engines.streamed import StreamedAnswer
from pytest_llem.errors import (
    EngineError,
    EngineNotInstalledError,
    EngineSettingError,
    JsonValue,
    LlemError,
    OutOfMemoryError,
)
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.workload.hub import switch_off_when_absent

INSTALL = (
    "run it in its stock image: --llem-runner=tensorrt_llm=docker:nvcr.io/nvidia/tensorrt-llm/release:latest, "
    "or pip install tensorrt-llm"
)
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


class TensorRTLLMEngine(Engine):
    """TensorRT-LLM's `LLM`; all requests of a repeat are handed over at once, and its scheduler batches them.

    Reuse of key-value blocks between requests is off unless the study asks for it: nothing empties them in between.
    """

    name: ClassVar[str] = "tensorrt_llm"
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding")

    def __init__(self) -> None:
        self.capabilities = Capabilities(token_times=True, prefix_cache=True)
        self._config: ExperimentConfig | None = None
        self._devices = DeviceSet("cpu")
        self._source = ModelSource("", local=False)
        self._tokenizer: Any = None
        self._tokenizer_name = ""
        self._text_config: Any = None
        self._llm: Any = None

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`."""
        if on_hub(config.model):
            switch_off_when_absent()
        try:
            import tensorrt_llm
        except ImportError as problem:
            raise EngineNotInstalledError(
                f"the engine tensorrt_llm is not installed here: {problem}", fix=INSTALL, details={"engine": self.name}
            ) from problem
        llm_arguments(config, devices, "", "", _known_arguments(), _makers())
        self._config, self._devices = config, devices
        return str(tensorrt_llm.__version__)

    def load(self) -> None:
        """See `Engine.load`."""
        import tensorrt_llm

        config = self._prepared()
        self._source = find_model(config.model)
        location, self._tokenizer_name = tokenizer_of(config, self._source)
        self._text_config = load_text_config(config, self._source)
        self._tokenizer = load_tokenizer(location, config, self._source)
        arguments = llm_arguments(config, self._devices, self._source.location, location, _known_arguments(), _makers())
        try:
            self._llm = tensorrt_llm.LLM(**arguments)
        except (ValueError, TypeError, RuntimeError) as problem:
            raise load_error(config, problem) from problem

    def tokenizer(self) -> HubTokenizer:
        """See `Engine.tokenizer`."""
        self._ready()
        return HubTokenizer(self._tokenizer)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Token times are those at which the executor's tokens arrived in this process."""
        llm = self._ready()
        check_lengths(requests, self._text_config, getattr(llm.args, "max_seq_len", None))
        try:
            return asyncio.run(self._answer_all(requests, progress))
        except (RuntimeError, ValueError) as problem:
            raise EngineError(
                f"TensorRT-LLM failed while generating: {one_line(problem)}",
                fix="read the lines before it in worker.log",
            ) from problem

    def reset(self) -> CacheState:
        """See `Engine.reset`. There is no call that empties the cache: it can only be off."""
        return "unknown" if self._ready().args.kv_cache_config.enable_block_reuse else "disabled"

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. `generate` returns when no request is left; the device is another process's."""
        return "drained"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name."""
        return {
            **effective_settings(self._prepared(), self._ready().args),
            "model_path": self._source.location,
            "tokenizer": self._tokenizer_name,
        }

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`. The parameters are not counted: they are in another process."""
        return shape_of(self._text_config, None) if self._text_config is not None else None

    def reset_peak_memory(self) -> None:
        """See `Engine.reset_peak_memory`: the allocator is another process's."""

    def memory(self) -> tuple[DeviceMemory, ...]:
        """See `Engine.memory`: unknown here."""
        return ()

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()
            del llm
            gc.collect()

    async def _answer_all(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        from tensorrt_llm import SamplingParams

        done: list[Completion] = []

        async def answer(request: Request) -> None:
            streamed = StreamedAnswer(request, time.monotonic_ns())
            outputs = self._llm.generate_async(
                {"prompt_token_ids": list(request.token_ids)},
                sampling_params=SamplingParams(**sampling_parameters(self._prepared(), request)),
                streaming=True,
            )
            reason: str | None = None
            async for output in outputs:
                reason = take_output(streamed, output, time.monotonic_ns())
            done.append(streamed.completion("TensorRT-LLM", reason, time.monotonic_ns()))
            progress(len(done), len(requests))

        await asyncio.gather(*map(answer, requests))
        return sorted(done, key=lambda completion: completion.index)

    def _prepared(self) -> ExperimentConfig:
        return after("prepare", self._config)

    def _ready(self) -> Any:
        return after("load", self._llm)


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
        raise EngineSettingError("lora: not supported with tensorrt_llm", fix="use vllm, sglang or transformers")
    arguments: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "dtype": config.dtype or "auto",
        "trust_remote_code": config.trust_remote_code,
    }
    nested: dict[str, dict[str, JsonValue]] = {"kv_cache_config": {"enable_block_reuse": False}}
    for path, name, value in _given(config):
        if name not in known or name in RESERVED:
            raise unknown_setting("TensorRT-LLM", f"tensorrt_llm.{path}", name, known)
        if name in SECTIONS and isinstance(value, Mapping):
            given = {key: item for key, item in value.items() if item is not None}
            nested[name] = {**nested.get(name, {}), **given}
        else:
            arguments[name] = value
    arguments.update({name: makers[name](**value) for name, value in nested.items() if value})
    require_devices("tensorrt_llm", [arguments.get(name) for name in SIZES], devices)
    if config.revision is not None:
        arguments["revision"] = config.revision
    if config.weights == "dummy":
        arguments["load_format"] = "dummy"
    return arguments


def sampling_parameters(config: ExperimentConfig, request: Request) -> dict[str, Any]:
    """Arguments of `SamplingParams` for a request; greedy unless the study samples."""
    decoding = config.decoding
    found: dict[str, Any] = {
        "max_tokens": request.max_new_tokens,
        "ignore_eos": request.ignore_eos,
        "detokenize": False,
    }
    if decoding.do_sample:
        asked = {"top_k": decoding.top_k, "top_p": decoding.top_p, "min_p": decoding.min_p}
        found["temperature"] = 1.0 if decoding.temperature is None else decoding.temperature
        found["seed"] = config.seed
        found.update({key: value for key, value in asked.items() if value is not None})
    else:
        found["top_k"] = 1
    if decoding.repetition_penalty is not None:
        found["repetition_penalty"] = decoding.repetition_penalty
    return found


def take_output(answer: StreamedAnswer, output: Any, now_ns: int) -> str | None:
    """Add one streamed `RequestOutput` to an answer; returns why it is finished, or `None` while it is not."""
    part = output.outputs[0]
    answer.grow_to(part.token_ids, now_ns)
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
        "weights": config.weights,
        "do_sample": config.decoding.do_sample,
        "seed": config.seed,
    }


def load_error(config: ExperimentConfig, problem: Exception) -> LlemError:
    """What TensorRT-LLM's refusal to load means."""
    text = one_line(problem)
    if any(part in text for part in MEMORY_TEXTS):
        return OutOfMemoryError(
            f"no memory to load {config.model}: {text}",
            fix="lower tensorrt_llm.max_seq_len, tensorrt_llm.max_num_tokens or the dtype, or use more devices",
        )
    if isinstance(problem, RuntimeError):
        return EngineError(f"TensorRT-LLM could not start: {text}", fix="read the lines before it in worker.log")
    return EngineSettingError(f"TensorRT-LLM refuses these settings: {text}", fix="correct the setting that it names")


def _given(config: ExperimentConfig) -> list[tuple[str, str, JsonValue]]:
    extra = config.settings.get("extra")
    found = [(key, key, value) for key, value in config.settings.items() if key not in ("extra", "backend")]
    if isinstance(extra, Mapping):
        found += [(f"extra.{key}", key, value) for key, value in extra.items()]
    return [entry for entry in found if entry[2] is not None]


def _known_arguments() -> dict[str, Any]:
    return parameters(LAYOUTS["tensorrt_llm"].main[0], "tensorrt_llm")


def _makers() -> dict[str, Maker]:
    api = importlib.import_module("tensorrt_llm.llmapi")
    return {name: getattr(api, attribute) for name, attribute in SECTIONS.items()}
