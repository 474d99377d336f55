"""SGLang and TensorRT-LLM as far as their documentation describes what this project calls: neither runs without a GPU.

Both answer with the token ids 10, 11, 12, ... and hand them out two at a time, as a scheduler that is ahead does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

EOS = 12


def steps(wanted: int, *, ignore_eos: bool) -> list[list[int]]:
    """All tokens so far after each step, ending at the end of sequence unless that is ignored."""
    ids = [10 + number for number in range(wanted)]
    if not ignore_eos and EOS in ids:
        ids = ids[: ids.index(EOS) + 1]
    return [ids[: end + 1] for end in range(1, len(ids), 2)] + ([ids] if len(ids) % 2 else [])


@dataclass
class ServerArgs:
    """A few of SGLang's server arguments."""

    model_path: str
    tokenizer_path: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    random_seed: int | None = None
    load_format: str = "auto"
    log_level: str = "info"
    device: str | None = None
    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    max_running_requests: int | None = None
    mem_fraction_static: float | None = None
    disable_radix_cache: bool = False
    quantization: str | None = None
    enable_lora: bool | None = None
    lora_paths: dict[str, str] | None = None
    custom_sigquit_handler: Any = None


class SGLangEngine:
    """`sglang.Engine`."""

    made: ClassVar[list[SGLangEngine]] = []

    def __init__(self, **arguments: Any) -> None:
        self.server_args = ServerArgs(**arguments)
        self.loop = asyncio.new_event_loop()
        model_config = SimpleNamespace(dtype="torch.float32", context_len=2048)
        self.tokenizer_manager = SimpleNamespace(model_config=model_config)
        self.refused_flushes = 1
        self.requests: list[dict[str, Any]] = []
        self.ended = False
        self.made.append(self)

    async def async_generate(self, **request: Any) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(request)
        sampling = request["sampling_params"]
        given = len(request["input_ids"])
        return self._chunks(sampling["max_new_tokens"], given, ignore_eos=sampling["ignore_eos"])

    async def _chunks(self, wanted: int, given: int, *, ignore_eos: bool) -> AsyncIterator[dict[str, Any]]:
        parts = steps(wanted, ignore_eos=ignore_eos)
        for ids in parts:
            await asyncio.sleep(0)
            ended = ids is parts[-1]
            reason = {"type": "stop", "matched": EOS} if ids[-1] == EOS and not ignore_eos else {"type": "length"}
            facts = {"completion_tokens": len(ids), "prompt_tokens": given, "cached_tokens": 0}
            yield {"text": "", "output_ids": ids, "meta_info": {**facts, "finish_reason": reason if ended else None}}

    def flush_cache(self) -> Any:
        self.refused_flushes -= 1
        return SimpleNamespace(success=self.refused_flushes < 0)

    def get_server_info(self) -> dict[str, Any]:
        return {**vars(self.server_args), "max_total_num_tokens": 4096, "version": "0.5.5"}

    def shutdown(self) -> None:
        self.ended = True
        self.loop.close()


def sglang_modules() -> dict[str, ModuleType]:
    """What to put into `sys.modules`."""
    modules = {name: ModuleType(name) for name in ("sglang", "sglang.srt", "sglang.srt.server_args")}
    vars(modules["sglang"]).update(Engine=SGLangEngine, __version__="0.5.5")
    vars(modules["sglang.srt.server_args"]).update(ServerArgs=ServerArgs)
    return modules


@dataclass
class KvCacheConfig:
    """TensorRT-LLM's class of that name."""

    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float = 0.9


@dataclass
class QuantConfig:
    """TensorRT-LLM's class of that name."""

    quant_algo: str | None = None


@dataclass
class SchedulerConfig:
    """TensorRT-LLM's class of that name."""

    capacity_scheduler_policy: str = "GUARANTEED_NO_EVICT"


@dataclass
class TorchLlmArgs:
    """A few of TensorRT-LLM's arguments."""

    model: str
    tokenizer: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    load_format: str = "auto"
    backend: str = "pytorch"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_batch_size: int = 2048
    max_seq_len: int | None = None
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    quant_config: QuantConfig | None = None
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass
class SamplingParams:
    """TensorRT-LLM's class of that name."""

    max_tokens: int = 32
    ignore_eos: bool = False
    detokenize: bool = True
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None


class LLM:
    """`tensorrt_llm.LLM`."""

    made: ClassVar[list[LLM]] = []

    def __init__(self, **arguments: Any) -> None:
        self.args = TorchLlmArgs(**arguments)
        self.requests: list[tuple[dict[str, Any], SamplingParams]] = []
        self.ended = False
        self.made.append(self)

    async def generate_async(
        self, inputs: dict[str, Any], *, sampling_params: SamplingParams, streaming: bool
    ) -> AsyncIterator[Any]:
        assert streaming
        self.requests.append((inputs, sampling_params))
        parts = steps(sampling_params.max_tokens, ignore_eos=sampling_params.ignore_eos)
        for ids in parts:
            await asyncio.sleep(0)
            reason = "stop" if ids[-1] == EOS and not sampling_params.ignore_eos else "length"
            part = SimpleNamespace(token_ids=ids, finish_reason=reason if ids is parts[-1] else None)
            yield SimpleNamespace(outputs=[part], cached_tokens=0)

    def shutdown(self) -> None:
        self.ended = True


def tensorrt_llm_modules() -> dict[str, ModuleType]:
    """What to put into `sys.modules`."""
    modules = {name: ModuleType(name) for name in ("tensorrt_llm", "tensorrt_llm.llmapi")}
    vars(modules["tensorrt_llm"]).update(LLM=LLM, SamplingParams=SamplingParams, __version__="1.2.0")
    vars(modules["tensorrt_llm.llmapi"]).update(
        TorchLlmArgs=TorchLlmArgs,
        KvCacheConfig=KvCacheConfig,
        QuantConfig=QuantConfig,
        SchedulerConfig=SchedulerConfig,
    )
    return modules
