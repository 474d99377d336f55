"""The `sglang` engine: SGLang's offline `Engine`, whose scheduler runs in a process of its own.

Not yet verified on hardware. Written against the documentation of SGLang 0.5 (offline engine API, sampling parameters,
server arguments) and the result dictionaries of its `TokenizerManager`; `engine_arguments`, `sampling_parameters` and
`take_chunk` hold everything that depends on them.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Collection, Mapping, Sequence
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
from pytest_llem.engines.model_files import ModelSource, find_adapter, find_model, on_hub
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
from pytest_llem.errors import EngineError, EngineNotInstalledError, EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.workload.hub import switch_off_when_absent

INSTALL = "run it in its stock image: --llem-runner=sglang=docker:lmsysorg/sglang:latest, or pip install sglang"
ADAPTER = "adapter"
RESERVED = ("model_path", "tokenizer_path", "dtype", "revision", "trust_remote_code", "random_seed", "load_format")
SIZES = ("tp_size", "pp_size", "dp_size")
SHOWN = (
    "tp_size", "pp_size", "dp_size", "quantization", "kv_cache_dtype", "attention_backend", "sampling_backend",
    "disable_radix_cache", "disable_cuda_graph", "disable_overlap_schedule", "chunked_prefill_size", "page_size",
    "max_running_requests", "mem_fraction_static", "schedule_policy", "speculative_algorithm",
)  # fmt: skip
FLUSH_ATTEMPTS, FLUSH_WAIT_S = 20, 0.05


class SGLangEngine(Engine):
    """SGLang's offline engine; all requests of a repeat are handed over at once, and its scheduler batches them."""

    name: ClassVar[str] = "sglang"
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding")

    def __init__(self) -> None:
        self.capabilities = Capabilities(token_times=True, prefix_cache=True)
        self._config: ExperimentConfig | None = None
        self._devices = DeviceSet("cpu")
        self._source = ModelSource("", local=False)
        self._tokenizer: Any = None
        self._tokenizer_name = ""
        self._text_config: Any = None
        self._engine: Any = None

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`."""
        if on_hub(config.model):
            switch_off_when_absent()
        try:
            import sglang
        except ImportError as problem:
            raise EngineNotInstalledError(
                f"the engine sglang is not installed here: {problem}", fix=INSTALL, details={"engine": self.name}
            ) from problem
        engine_arguments(config, devices, "", "", _known_arguments())
        self._config, self._devices = config, devices
        return str(sglang.__version__)

    def load(self) -> None:
        """See `Engine.load`. The scheduler's own words are in worker.log when it cannot start."""
        import sglang

        config = self._prepared()
        self._source = find_model(config.model)
        location, self._tokenizer_name = tokenizer_of(config, self._source)
        self._text_config = load_text_config(config, self._source)
        self._tokenizer = load_tokenizer(location, config, self._source)
        arguments = engine_arguments(config, self._devices, self._source.location, location, _known_arguments())
        try:
            self._engine = sglang.Engine(**arguments)
        except (ValueError, TypeError, AssertionError) as problem:
            raise EngineSettingError(
                f"SGLang refuses these settings: {one_line(problem)}", fix="correct the setting that it names"
            ) from problem
        except (RuntimeError, EOFError, OSError) as problem:
            raise _not_started(one_line(problem)) from problem

    def tokenizer(self) -> HubTokenizer:
        """See `Engine.tokenizer`."""
        self._ready()
        return HubTokenizer(self._tokenizer)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Token times are those at which the scheduler's tokens arrived in this process."""
        engine = self._ready()
        check_lengths(requests, self._text_config, _context_length(engine))
        try:
            done: list[Completion] = engine.loop.run_until_complete(self._answer_all(requests, progress))
        except (RuntimeError, ValueError) as problem:
            raise EngineError(
                f"SGLang failed while generating: {one_line(problem)}", fix="read the lines before it in worker.log"
            ) from problem
        return done

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

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. `generate` returns when no request is left; the device is another process's."""
        return "drained"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name."""
        engine = self._ready()
        found = effective_settings(self._prepared(), engine.get_server_info())
        dtype = getattr(getattr(engine.tokenizer_manager, "model_config", None), "dtype", None)
        return {
            **found,
            "model_path": self._source.location,
            "tokenizer": self._tokenizer_name,
            "dtype": str(dtype).removeprefix("torch.") if dtype is not None else None,
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
        """See `Engine.shutdown`. SGLang ends every child of this process, so nothing else may run in one by then."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
            gc.collect()

    async def _answer_all(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        done: list[Completion] = []

        async def answer(request: Request) -> None:
            streamed = StreamedAnswer(request, time.monotonic_ns())
            config = self._prepared()
            chunks = await self._engine.async_generate(
                input_ids=list(request.token_ids),
                sampling_params=sampling_parameters(config, request),
                lora_path=ADAPTER if config.lora is not None else None,
                stream=True,
            )
            reason: str | None = None
            async for chunk in chunks:
                reason = take_chunk(streamed, chunk, time.monotonic_ns())
            done.append(streamed.completion("SGLang", reason, time.monotonic_ns()))
            progress(len(done), len(requests))

        await asyncio.gather(*map(answer, requests))
        return sorted(done, key=lambda completion: completion.index)

    def _prepared(self) -> ExperimentConfig:
        return after("prepare", self._config)

    def _ready(self) -> Any:
        return after("load", self._engine)


def engine_arguments(
    config: ExperimentConfig, devices: DeviceSet, model_path: str, tokenizer_path: str, known: Collection[str]
) -> dict[str, Any]:
    """Arguments of `sglang.Engine`, which are those of `ServerArgs` (`known`).

    Raises `EngineSettingError` for a setting that it does not have, and for more devices than are leased.
    """
    given = {key: value for key, value in config.settings.items() if key != "extra" and value is not None}
    extra = config.settings.get("extra")
    more = {f"extra.{key}": value for key, value in extra.items()} if isinstance(extra, Mapping) else {}
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "tokenizer_path": tokenizer_path,
        "dtype": config.dtype or "auto",
        "trust_remote_code": config.trust_remote_code,
        "random_seed": config.seed,
        "log_level": "warning",
    }
    for path, value in {**given, **more}.items():
        name = path.removeprefix("extra.")
        if name not in known or name in RESERVED:
            raise unknown_setting("SGLang", f"sglang.{path}", name, known)
        arguments[name] = value
    require_devices("sglang", [arguments.get(name) for name in SIZES], devices)
    if config.revision is not None:
        arguments["revision"] = config.revision
    if config.weights == "dummy":
        arguments["load_format"] = "dummy"
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
    decoding = config.decoding
    found: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "ignore_eos": request.ignore_eos}
    if decoding.do_sample:
        # SGLang has -1 for all tokens, where the study has 0.
        top_k = -1 if decoding.top_k == 0 else decoding.top_k
        asked = {"top_k": top_k, "top_p": decoding.top_p, "min_p": decoding.min_p}
        found["temperature"] = 1.0 if decoding.temperature is None else decoding.temperature
        found["sampling_seed"] = config.seed
        found.update({key: value for key, value in asked.items() if value is not None})
    else:
        found["temperature"] = 0.0
    if decoding.repetition_penalty is not None:
        found["repetition_penalty"] = decoding.repetition_penalty
    return found


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
        "weights": config.weights,
        "quantized": info.get("quantization") is not None,
        "kv_cache_tokens": info.get("max_total_num_tokens"),
        "do_sample": config.decoding.do_sample,
        "seed": config.seed,
        "lora": config.lora,
    }


def scheduler_died(_signal: int, _frame: object) -> None:
    """Called in place of SGLang's own handler when one of its processes says that it dies."""
    raise _not_started("a process of SGLang's died")


def _known_arguments() -> dict[str, Any]:
    return parameters(LAYOUTS["sglang"].main[0], "sglang")


def _context_length(engine: Any) -> int | None:
    length = getattr(getattr(engine.tokenizer_manager, "model_config", None), "context_len", None)
    return int(length) if length is not None else None


def _not_started(text: str) -> EngineError:
    return EngineError(
        f"SGLang could not run: {text}",
        fix="read the lines before it in worker.log; where memory ran out, lower sglang.mem_fraction_static, "
        "sglang.context_length or the dtype",
    )
