"""`VLLMEngine`: vLLM's offline engine, with its own scheduler.

`pytest_llem.engines` opens it, the worker drives it. vLLM may be imported only in `prepare` and later, not before.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pytest_llem.engines.hub_models import (
    HubEngine,
    HubTokenizer,
    check_lengths,
    cuda_memory,
    require_build_for,
    reset_cuda_peaks,
    shape_of,
    tokenizer_of,
    torch_environment,
)
from pytest_llem.engines.info import EngineInfo
from pytest_llem.engines.model_files import find_adapter, find_model, fingerprint, on_hub, unreachable
from pytest_llem.engines.protocol import (
    CacheState,
    Capabilities,
    Completion,
    DeviceMemory,
    ModelShape,
    Progress,
    Quiesced,
    Request,
)
from pytest_llem.engines.refusals import load_error, not_installed, one_line, require_devices
from pytest_llem.engines.streamed import StreamedAnswer
from pytest_llem.engines.vllm import INFO
from pytest_llem.engines.vllm.settings import VLLMArguments, read_arguments
from pytest_llem.engines.vllm.statistics import SchedulerStatistics
from pytest_llem.errors import EngineError, EngineSettingError, JsonValue, LlemError, OutOfMemoryError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.workload.arrivals import schedule
from pytest_llem.workload.hub import switch_off_when_absent
from pytest_llem.workload.sessions import Replay

MEMORY_TEXTS = (
    "out of memory", "can't allocate memory", "No available memory for the cache blocks", "Free memory on device",
    "KV cache is needed",
)  # fmt: skip


class VLLMEngine(HubEngine):
    """vLLM's offline engine; with one device its core runs in this process, so that nothing outlives it."""

    name: ClassVar[str] = INFO.name
    info: ClassVar[EngineInfo] = INFO
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding", "settings.sampling")

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = Capabilities(token_times=True, prefix_cache=True, serves=True)
        self._arguments = VLLMArguments({}, {})
        self._statistics = SchedulerStatistics()
        self._passes = 0

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`."""
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if on_hub(config.model):
            # Before vLLM imports the hub's client, which else tries for half a minute.
            switch_off_when_absent()
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
        except ImportError as problem:
            raise not_installed(INFO, problem, f"{INFO.install}, in an environment of its own") from problem
        engine_fields = {field.name for field in dataclasses.fields(EngineArgs)}
        sampling_fields = set(vllm.SamplingParams.__struct_fields__)
        self._arguments = read_arguments(config, engine_fields, sampling_fields)
        self._config, self._devices = config, devices
        require_build_for(devices)
        require_devices("vllm", self._arguments.sizes, devices)
        try:
            self._sampling(Request(0, (0,), 1))
        except _refusals() as problem:
            raise EngineSettingError(
                f"vLLM refuses the decoding settings: {one_line(problem)}", fix="correct the one it names"
            ) from problem
        if self._arguments.devices == 1:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self.capabilities = dataclasses.replace(self.capabilities, memory_counters=self._counts_memory())
        return str(vllm.__version__)

    def load(self) -> None:
        """See `Engine.load`. Compilation and graph capture are part of it."""
        import vllm

        config = self._prepared()
        self._source = find_model(config.model, weights=config.weights != "dummy")
        location = self._source.location
        tokenizer, self._tokenizer_name = tokenizer_of(config, self._source)
        arguments: dict[str, Any] = {
            "model": location,
            "tokenizer": tokenizer,
            "dtype": config.dtype or "auto",
            "seed": config.seed,
            "revision": config.revision,
            "trust_remote_code": config.trust_remote_code,
            "disable_log_stats": False,
            **self._arguments.engine,
        }
        if config.weights == "dummy":
            arguments["load_format"] = "dummy"
        if config.lora is not None:
            find_adapter(config.lora)
            arguments["enable_lora"] = True
        try:
            self._engine = vllm.LLM(**arguments)
        except OSError as problem:
            raise unreachable(config.model, problem, self._source.offline) from problem
        except (ValueError, TypeError, RuntimeError, AttributeError) as problem:
            fix = "lower vllm.max_model_len or the dtype, raise vllm.gpu_memory_utilization, or use more devices"
            raise load_error("vLLM", config.model, problem, MEMORY_TEXTS, fix) from problem
        self._statistics.attach(self._engine.llm_engine)
        self._load_adapter()

    def tokenizer(self) -> HubTokenizer:
        """See `Engine.tokenizer`."""
        return HubTokenizer(self._ready().get_tokenizer())

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Token times are those at which a step of the engine returned the tokens."""
        llm = self._ready()
        engine = llm.llm_engine
        check_lengths(requests, None, engine.vllm_config.model_config.max_model_len)
        self._passes += 1
        workload = self._prepared().workload
        keys = [f"{self._passes}-{request.index}" for request in requests]
        entries = {key: StreamedAnswer(request) for key, request in zip(keys, requests, strict=True)}
        places = {request.index: place for place, request in enumerate(requests)}
        done: list[Completion] = []
        replay = Replay(requests, schedule(workload, requests), time.monotonic_ns())
        try:
            while len(done) < len(requests):
                for place, due_ns in replay.due(time.monotonic_ns()):
                    # One that falls due during a step waits for its end: that wait is part of its latency.
                    self._send(keys[place], entries[keys[place]], due_ns)
                if engine.has_unfinished_requests():
                    outputs = engine.step()
                    now = time.monotonic_ns()
                    finished = [take_output(entries[output.request_id], output, now) for output in outputs]
                    for completion in (answer for answer in finished if answer is not None):
                        done.append(completion)
                        replay.ended(places[completion.index], now)
                elif (next_ns := replay.next_ns()) is not None:
                    time.sleep(max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
                progress(len(done), len(requests))
        except RuntimeError as problem:
            raise self._run_error(problem) from problem
        return sorted(done, key=lambda completion: completion.index)

    def reset(self) -> CacheState:
        """See `Engine.reset`."""
        llm = self._ready()
        if not llm.llm_engine.vllm_config.cache_config.enable_prefix_caching:
            return "disabled"
        return "cleared" if llm.reset_prefix_cache() else "unknown"

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. A core in another process can only be known to have no requests left."""
        if self._engine is not None and self._engine.llm_engine.has_unfinished_requests():
            return "unknown"
        if self._arguments.devices > 1:
            return "drained"
        if self._devices.on_gpu:
            import torch

            torch.cuda.synchronize()
        return "synchronized"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name."""
        vllm_config = self._ready().llm_engine.vllm_config
        model, cache = vllm_config.model_config, vllm_config.cache_config
        parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
        return {
            "model_path": self._source.location,
            "model_revision": getattr(model.hf_config, "_commit_hash", None),
            "model_fingerprint": fingerprint(Path(self._source.location)) if self._source.local else None,
            "weights": self._prepared().weights,
            "tokenizer": self._tokenizer_name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantized": model.quantization is not None,
            "quantization": model.quantization,
            "max_model_len": model.max_model_len,
            "enforce_eager": bool(model.enforce_eager),
            "kv_cache_dtype": str(cache.cache_dtype),
            "block_size": cache.block_size,
            "kv_cache_blocks": cache.num_gpu_blocks,
            "kv_cache_tokens": cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None,
            "enable_prefix_caching": bool(cache.enable_prefix_caching),
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "data_parallel_size": parallel.data_parallel_size,
            "device": str(vllm_config.device_config.device_type),
            "in_process": self._arguments.devices == 1,
            "do_sample": self._prepared().decoding.do_sample,
            "lora": self._prepared().lora,
            "seed": self._prepared().seed,
        }

    def environment(self) -> Mapping[str, JsonValue]:
        """See `Engine.environment`."""
        return torch_environment()

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`. The parameters are not counted: vLLM fuses and shards them."""
        return shape_of(self._ready().llm_engine.vllm_config.model_config.hf_text_config, None)

    def reset_peak_memory(self) -> None:
        """See `Engine.reset_peak_memory`."""
        if self._counts_memory():
            reset_cuda_peaks()

    def memory(self) -> tuple[DeviceMemory, ...]:
        """See `Engine.memory`. The peak includes the KV cache that vLLM allocates in advance."""
        return cuda_memory(self._devices) if self._counts_memory() else ()

    def reset_statistics(self) -> None:
        """See `Engine.reset_statistics`."""
        self._statistics.reset()

    def statistics(self) -> Mapping[str, JsonValue]:
        """See `Engine.statistics`."""
        return self._statistics.read()

    def load_times(self) -> Mapping[str, float | None]:
        """See `Engine.load_times`; a core in a process of its own does not tell, nor does every kind of compiler."""
        vllm_config = self._ready().llm_engine.vllm_config
        seconds = float(vllm_config.compilation_config.compilation_time)
        if self._arguments.devices > 1 or (seconds == 0 and not vllm_config.model_config.enforce_eager):
            return {"compile_s": None}
        return {"compile_s": seconds}

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        if self._engine is None:
            return
        core = self._engine.llm_engine.engine_core
        self._engine = None
        core.shutdown()
        del core
        # It collects garbage, after which the weights are gone.
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()

    def _send(self, key: str, entry: StreamedAnswer, due_ns: int | None) -> None:
        sampling = self._sampling(entry.request)
        entry.sent_ns = time.monotonic_ns()
        entry.due_ns = due_ns
        entry.start_ns = entry.sent_ns if due_ns is None else min(due_ns, entry.sent_ns)
        prompt = {"prompt_token_ids": list(entry.request.token_ids)}
        self._engine.llm_engine.add_request(key, prompt, sampling, lora_request=self._lora())

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Only in texts vLLM finds strings, and those that name a special token only where texts have these.
        found = {"detokenize": True, "skip_special_tokens": False}
        ends = {"stop": list(request.stop), **found} if request.stop else {"detokenize": False}
        return SamplingParams(
            max_tokens=request.max_new_tokens,
            ignore_eos=request.ignore_eos,
            output_kind=RequestOutputKind.DELTA,
            **ends,
            **self._arguments.sampling,
        )

    def _lora(self) -> Any:
        adapter = self._prepared().lora
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, find_adapter(adapter))

    def _load_adapter(self) -> None:
        """Load the adapter now: left alone, vLLM does it, and fails, with the first request."""
        request = self._lora()
        if request is None:
            return
        try:
            self._engine.llm_engine.add_lora(request)
        except OSError as problem:
            raise unreachable(request.lora_path, problem, self._source.offline) from problem
        except (ValueError, RuntimeError) as problem:
            raise EngineSettingError(
                f"vLLM refuses the adapter {request.lora_path!r}: {one_line(problem)}",
                fix="correct what it names: vllm.extra.max_lora_rank for the rank",
            ) from problem

    def _counts_memory(self) -> bool:
        return self._devices.on_gpu and self._arguments.devices == 1

    def _run_error(self, problem: RuntimeError) -> LlemError:
        text = one_line(problem)
        if type(problem).__name__ == "OutOfMemoryError" or "out of memory" in text:
            return OutOfMemoryError(
                f"vLLM ran out of memory while generating: {text}",
                fix="lower vllm.max_num_seqs, vllm.max_num_batched_tokens or vllm.gpu_memory_utilization",
            )
        return EngineError(f"vLLM failed while generating: {text}", fix="read the lines before it in worker.log")


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for settings that it does not take; its newer versions have an exception of their own."""
    try:
        own = importlib.import_module("vllm.exceptions").VLLMValidationError
    except (ImportError, AttributeError):
        return ValueError, TypeError
    return own, ValueError, TypeError


def take_output(answer: StreamedAnswer, output: Any, now_ns: int) -> Completion | None:
    """Add a step's `RequestOutput` (with what is new alone) to an answer; the completion once it is finished."""
    part = output.outputs[0]
    answer.add(part.token_ids, now_ns)
    if output.prompt_token_ids is not None:
        answer.input_tokens = len(output.prompt_token_ids)
    if output.num_cached_tokens is not None:
        answer.cached_tokens = max(0, output.num_cached_tokens)
    return answer.completion("vLLM", part.finish_reason, now_ns) if output.finished else None
