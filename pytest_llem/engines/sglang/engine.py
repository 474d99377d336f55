"""The `sglang` engine: SGLang's offline `Engine`, whose scheduler runs in a process of its own.

`pytest_llem.engines` opens it by name, the worker drives it; not yet verified on hardware. Only `engine_arguments`,
`sampling_parameters` and `take_chunk` may depend on the documentation of SGLang 0.5 (offline engine API, sampling
parameters, server arguments) and on the result dictionaries of its `TokenizerManager`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from typing import Any, ClassVar

from pytest_llem.engines.hub_models import plain_json
from pytest_llem.engines.info import EngineInfo
from pytest_llem.engines.model_files import find_adapter
from pytest_llem.engines.protocol import CacheState, Completion, Request
from pytest_llem.engines.refusals import one_line, require_devices, sampling_settings
from pytest_llem.engines.sglang import INFO
from pytest_llem.engines.streamed import StreamedAnswer, StreamedEngine, known_arguments, study_arguments
from pytest_llem.errors import EngineError, EngineSettingError, JsonValue, LlemError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet

ADAPTER = "adapter"
RESERVED = ("model_path", "tokenizer_path", "dtype", "revision", "trust_remote_code", "random_seed", "load_format")
SIZES = ("tp_size", "pp_size", "dp_size")
SHOWN = (
    "tp_size", "pp_size", "dp_size", "quantization", "kv_cache_dtype", "attention_backend", "sampling_backend",
    "disable_radix_cache", "disable_cuda_graph", "disable_overlap_schedule", "chunked_prefill_size", "page_size",
    "max_running_requests", "mem_fraction_static", "schedule_policy", "speculative_algorithm",
)  # fmt: skip
FLUSH_ATTEMPTS, FLUSH_WAIT_S = 20, 0.05


class SGLangEngine(StreamedEngine):
    """SGLang's offline engine. Its `shutdown` ends every child of this process, so none may still be needed by then."""

    name: ClassVar[str] = INFO.name
    info: ClassVar[EngineInfo] = INFO

    def reset(self) -> CacheState:
        """See `Engine.reset`. The scheduler refuses while it still ends a step, so it is asked for up to a second."""
        engine = self._ready()
        if engine.server_args.disable_radix_cache:
            return "disabled"
        for _ in range(FLUSH_ATTEMPTS):
            if getattr(engine.flush_cache(), "success", False):
                return "cleared"
            time.sleep(FLUSH_WAIT_S)
        return "unknown"

    def _arguments(self, config: ExperimentConfig, devices: DeviceSet, model: str, tokenizer: str) -> dict[str, Any]:
        return engine_arguments(config, devices, model, tokenizer, known_arguments(INFO))

    def _make(self, arguments: Mapping[str, Any]) -> Any:
        import sglang

        return sglang.Engine(**arguments)

    def _load_error(self, config: ExperimentConfig, problem: Exception) -> LlemError:
        if isinstance(problem, (ValueError, TypeError, AssertionError)):
            text = f"SGLang refuses these settings: {one_line(problem)}"
            return EngineSettingError(text, fix="correct the setting that it names")
        return _not_started(one_line(problem))

    def _run(self, answers: Coroutine[Any, Any, list[Completion]]) -> list[Completion]:
        done: list[Completion] = self._engine.loop.run_until_complete(answers)
        return done

    async def _outputs(self, request: Request) -> AsyncIterator[Any]:
        config = self._prepared()
        chunks = await self._engine.async_generate(
            input_ids=list(request.token_ids),
            sampling_params=sampling_parameters(config, request),
            lora_path=ADAPTER if config.lora is not None else None,
            stream=True,
        )
        async for chunk in chunks:
            yield chunk

    def _take(self, answer: StreamedAnswer, output: Any, now_ns: int) -> str | None:
        return take_chunk(answer, output, now_ns)

    def _context_length(self) -> int | None:
        length = getattr(self._model_config(), "context_len", None)
        return int(length) if length is not None else None

    def _settings_in_use(self, config: ExperimentConfig) -> Mapping[str, JsonValue]:
        dtype = getattr(self._model_config(), "dtype", None)
        return {
            **effective_settings(config, self._engine.get_server_info()),
            "dtype": str(dtype).removeprefix("torch.") if dtype is not None else None,
        }

    def _model_config(self) -> Any:
        return getattr(self._engine.tokenizer_manager, "model_config", None)


def engine_arguments(
    config: ExperimentConfig, devices: DeviceSet, model_path: str, tokenizer_path: str, known: Collection[str]
) -> dict[str, Any]:
    """Arguments of `sglang.Engine`, which are those of `ServerArgs` (`known`).

    Raises `EngineSettingError` for a setting that it does not have, and for more devices than are leased.
    """
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "tokenizer_path": tokenizer_path,
        "random_seed": config.seed,
        "log_level": "warning",
        **study_arguments(config, INFO, known, RESERVED),
    }
    require_devices(INFO.name, [arguments.get(name) for name in SIZES], devices)
    if config.lora is not None:
        arguments.update(enable_lora=True, lora_paths={ADAPTER: find_adapter(config.lora)})
    if devices.kind == "cpu":
        arguments.setdefault("device", "cpu")
    if "custom_sigquit_handler" in known:
        # Its own handler kills this process, and with it the account of what happened, when the scheduler dies.
        arguments["custom_sigquit_handler"] = scheduler_died
    return arguments


def sampling_parameters(config: ExperimentConfig, request: Request) -> dict[str, Any]:
    """The dictionary that SGLang takes for a request; greedy unless the study samples."""
    parameters: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "ignore_eos": request.ignore_eos}
    parameters["temperature"] = 0.0
    if config.decoding.do_sample:
        parameters.update(temperature=1.0, sampling_seed=config.seed)
    parameters.update(sampling_settings(config.decoding))
    if parameters.get("top_k") == 0:
        # SGLang has -1 for all tokens, where the study has 0.
        parameters["top_k"] = -1
    if request.stop:
        parameters["stop"] = list(request.stop)
    return parameters


def take_chunk(answer: StreamedAnswer, chunk: Mapping[str, Any], now_ns: int) -> str | None:
    """Add one streamed dictionary to an answer; returns why it is finished, or `None` while it is not.

    `output_ids` holds everything so far, or what is new with `incremental_streaming_output`: `completion_tokens`, which
    always counts everything, tells which.
    """
    ids, facts = chunk["output_ids"], chunk["meta_info"]
    if facts["completion_tokens"] == len(ids):
        answer.grow_to(ids, now_ns)
    else:
        answer.add(ids, now_ns)
    answer.cached_tokens = facts.get("cached_tokens", answer.cached_tokens)
    answer.input_tokens = facts.get("prompt_tokens", answer.input_tokens)
    finished = facts.get("finish_reason")
    if finished is None:
        return None
    return str(finished["type"] if isinstance(finished, Mapping) else finished)


def effective_settings(config: ExperimentConfig, info: Mapping[str, Any]) -> dict[str, JsonValue]:
    """What `get_server_info` says about the settings in use, under their own names."""
    names = dict.fromkeys((*SHOWN, *(name for name in config.settings if name != "extra")))
    found: dict[str, JsonValue] = {name: plain_json(info[name]) for name in names if name in info}
    return {
        **found,
        "quantized": info.get("quantization") is not None,
        "kv_cache_tokens": info.get("max_total_num_tokens"),
        "lora": config.lora,
    }


def scheduler_died(_signal: int, _frame: object) -> None:
    """Called in place of SGLang's own handler when one of its processes says that it dies."""
    raise _not_started("a process of SGLang's died")


def _not_started(text: str) -> EngineError:
    return EngineError(
        f"SGLang could not run: {text}",
        fix="read the lines before it in worker.log; where memory ran out, lower sglang.mem_fraction_static, "
        "sglang.context_length or the dtype",
    )
