"""What an inference engine is to the worker: one protocol, one file per engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.report import Note

Quiesced = Literal["synchronized", "drained", "unknown"]
CacheState = Literal["cleared", "disabled", "none", "unknown"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Capabilities:
    """What an engine can tell beyond its outputs. What it lacks is `null` in the result, never a guess."""

    token_times: bool = False
    separable_phases: bool = False
    memory_counters: bool = False
    prefix_cache: bool = False
    serves: bool = False


@dataclass(frozen=True)
class Request:
    """One prompt, as token ids, and how many tokens to generate at most (exactly, when `ignore_eos`).

    `text` is the prompt of a data set that is sent whole; there may be no token ids beside it (see `TextOnly`).
    """

    index: int
    token_ids: tuple[int, ...]
    max_new_tokens: int
    ignore_eos: bool = True
    text: str | None = None


@dataclass(frozen=True)
class Completion:
    """What became of one request. Times are CLOCK_MONOTONIC nanoseconds.

    `output_ids` ends at the end-of-sequence token and holds no padding. `token_times_ns` has one entry per output
    token, or is `None` where the engine cannot say. A failed request has an `error` and counts nowhere else.

    A server that answers with text has no ids: then `output_tokens` is the number it stated, and `text` the answer.
    `first_token_ns` is for those who know when the answer began, but not the time of each token. `failure` is the class
    of an `error` (`timeout`, `http_429`, ...).
    """

    index: int
    input_tokens: int
    output_ids: tuple[int, ...]
    start_ns: int
    end_ns: int
    finish_reason: Literal["length", "stop", "error"]
    token_times_ns: tuple[int, ...] | None = None
    cached_tokens: int | None = None
    error: str | None = None
    output_tokens: int | None = None
    text: str | None = None
    first_token_ns: int | None = None
    failure: str | None = None

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return len(self.output_ids) if self.output_tokens is None else self.output_tokens

    @property
    def began_ns(self) -> int | None:
        """When the first token came; `None` where that is unknown, or where there was none."""
        return self.token_times_ns[0] if self.token_times_ns else self.first_token_ns


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device in bytes: the model's weights, and the allocator's peak since `reset_peak_memory`."""

    id: str
    weights_bytes: int | None
    peak_allocated_bytes: int | None


@dataclass(frozen=True)
class ModelShape:
    """The architecture numbers from which FLOPs and cache sizes follow; `None` where the model has no such notion."""

    model_type: str | None
    parameters: int | None
    layers: int | None
    hidden_size: int | None
    intermediate_size: int | None
    vocab_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    experts: int | None = None
    experts_per_token: int | None = None
    config: Mapping[str, JsonValue] = field(default_factory=dict)


class Tokenizer(Protocol):
    """The little that workloads need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    def chat(self, text: str) -> list[int]:
        """Token ids of a user's message in the model's chat template; `EngineSettingError` when it has none."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a sequence, where the model wants one."""


class TextOnly:
    """Stands in for a `Tokenizer` where an engine takes texts, and nothing here can turn them into tokens.

    Texts of a data set then go as they are; whatever needs tokens is an `EngineSettingError` that says `reason`.
    """

    def __init__(self, reason: str, fix: str) -> None:
        self._reason = reason
        self._fix = fix

    def encode(self, text: str) -> list[int]:
        """Always an `EngineSettingError`."""
        raise EngineSettingError(self._reason, fix=self._fix)

    def decode(self, ids: Sequence[int]) -> str:
        """Always an `EngineSettingError`."""
        raise EngineSettingError(self._reason, fix=self._fix)

    def chat(self, text: str) -> list[int]:
        """Always an `EngineSettingError`."""
        raise EngineSettingError(self._reason, fix=self._fix)

    @property
    def bos_id(self) -> int | None:
        """Nothing is known of the model's tokens."""
        return None


@runtime_checkable
class KeepsStatistics(Protocol):
    """An engine whose scheduler counts what it does (an optional part of the engine protocol)."""

    def reset_statistics(self) -> None:
        """Start a new period for `statistics`."""

    def statistics(self) -> Mapping[str, JsonValue]:
        """Counts and peaks since `reset_statistics`: preemptions, cache use, ..."""


@runtime_checkable
class ReadsLater(Protocol):
    """An engine that leaves work with its answers for when nothing is measured (an optional part of the protocol)."""

    def read(self, completions: Sequence[Completion]) -> list[Completion]:
        """The completions that `generate` returned, whole: until now they lack texts, ids and times of tokens."""


@runtime_checkable
class Remarks(Protocol):
    """An engine with something to say about what it did (an optional part of the engine protocol)."""

    def remarks(self) -> tuple[Sequence[Note], Sequence[Note]]:
        """Reasons why the measurement is invalid, and warnings: asked once, when all answers were read."""


@runtime_checkable
class TimesLoad(Protocol):
    """An engine that knows the parts of its load time (an optional part of the engine protocol)."""

    def load_times(self) -> Mapping[str, float | None]:
        """Seconds by name, each a part of `load_s`: `compile_s` for compilation."""


class ServesOthers(Protocol):
    """An engine that can take over another experiment without loading again (an optional part of the protocol).

    On its loaded model `prepare` is then called again, with a configuration that differs in `without_reload` alone.
    """

    without_reload: ClassVar[tuple[str, ...]]
    """What may differ, by dotted path or the beginning of one: `workload`, `decoding`, `settings.batch_size`."""


class Engine(Protocol):
    """An inference engine, used once, in this order: prepare, load, (reset, generate)*, shutdown."""

    name: ClassVar[str]
    capabilities: Capabilities

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """Check the settings against the installed engine and return the engine's version.

        Raises `EngineNotInstalledError` or `EngineSettingError`.
        """

    def load(self) -> None:
        """Load the model. Raises `ModelNotFoundError`, `OutOfMemoryError` or another `EngineError`."""

    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer."""

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """Run all requests, batched as the settings say; `progress(done, total)` is called between batches."""

    def reset(self) -> CacheState:
        """Empty every cache that outlives a request, and verify it."""

    def quiesce(self) -> Quiesced:
        """Wait until nothing of this engine runs on the device."""

    def effective(self) -> Mapping[str, JsonValue]:
        """What the engine really runs with: `model_path`, `dtype`, `attn_implementation`, `device`, ..."""

    def shape(self) -> ModelShape | None:
        """The loaded model's architecture."""

    def reset_peak_memory(self) -> None:
        """Start a new period for the peak of allocated memory."""

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Memory per device, as far as the engine can tell."""

    def shutdown(self) -> None:
        """Release everything the engine holds."""
