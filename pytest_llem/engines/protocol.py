"""The interface between the worker and an engine, and the types that pass through it.

The worker calls an `Engine`, from which all here derive and others may; `flops` and the footprint take `ModelShape`.
Part of the public interface: names stay importable from here, and new methods come with a default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Literal

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.measurement import Capabilities, DeviceMemory, ModelShape
from pytest_llem.job.report import Note
from pytest_llem.job.request import Completion, Request
from pytest_llem.workload.tokenizer import TextOnly, Tokenizer

__all__ = [
    "CacheState",
    "Capabilities",
    "Completion",
    "DeviceMemory",
    "Engine",
    "ModelShape",
    "Progress",
    "Quiesced",
    "Request",
    "TextOnly",
    "Tokenizer",
]

Quiesced = Literal["synchronized", "drained", "unknown"]
CacheState = Literal["cleared", "disabled", "none", "unknown"]
Progress = Callable[[int, int], None]


class Engine(ABC):
    """An inference engine, used once, in this order: prepare, load, (reset, generate)*, shutdown.

    The abstract methods are required. The others are optional: their default says that the engine has no such part.
    A class that does not derive from this one gets these defaults when it is opened (`open_engine`).
    """

    name: ClassVar[str]
    capabilities: Capabilities
    without_reload: ClassVar[tuple[str, ...]] = ()
    """Settings that may differ between experiments on one loaded model, by dotted path or the beginning of one:
    `workload`, `decoding`, `settings.batch_size`. `prepare` is then called again on the loaded engine."""

    @abstractmethod
    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """Check the settings and return the engine's version; `EngineNotInstalledError` or `EngineSettingError`."""

    @abstractmethod
    def load(self) -> None:
        """Load the model. Raises `ModelNotFoundError`, `OutOfMemoryError` or another `EngineError`."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """Run all requests, batched as the settings say; `progress(done, total)` is called between batches."""

    @abstractmethod
    def reset(self) -> CacheState:
        """Empty every cache that outlives a request, and verify it."""

    @abstractmethod
    def quiesce(self) -> Quiesced:
        """Wait until nothing of this engine runs on the device."""

    @abstractmethod
    def effective(self) -> Mapping[str, JsonValue]:
        """What the engine really runs with: `model_path`, `dtype`, `attn_implementation`, `device`, ..."""

    @abstractmethod
    def shape(self) -> ModelShape | None:
        """The loaded model's architecture."""

    @abstractmethod
    def shutdown(self) -> None:
        """Release everything the engine holds."""

    def reset_peak_memory(self) -> None:  # noqa: B027  optional, and nothing to do without counts
        """Start a new period for the peak of allocated memory."""

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Memory per device, as far as the engine can tell: nothing where the model is in another process."""
        return ()

    def environment(self) -> Mapping[str, JsonValue]:
        """Software facts beyond those of the process: versions and switches of the engine's libraries."""
        return {}

    def load_times(self) -> Mapping[str, float | None]:
        """Seconds by name, each a part of `load_s`: `compile_s` for compilation."""
        return {}

    def read(self, completions: Sequence[Completion]) -> list[Completion]:
        """The completions, complete: what `generate` left unread is read here, when no window is open."""
        return list(completions)

    def reset_statistics(self) -> None:  # noqa: B027  optional, and nothing to do without statistics
        """Start a new period for `statistics`."""

    def statistics(self) -> Mapping[str, JsonValue]:
        """Counts and peaks of the scheduler since `reset_statistics`: preemptions, cache use, ..."""
        return {}

    def remarks(self) -> tuple[Sequence[Note], Sequence[Note]]:
        """Reasons why the measurement is invalid, and warnings; called once, after all answers were read."""
        return (), ()

    def split_obstacle(self, requests: Sequence[Request]) -> str | None:
        """Why prefill and decode of these requests cannot run apart under the current settings, or `None`."""
        return f"the engine {self.name} cannot run them apart"

    def generate_in_phases(
        self, requests: Sequence[Request], border: Callable[[str], AbstractContextManager[object]]
    ) -> list[tuple[int, ...]]:
        """Output ids per request; each batch runs inside `border("first_token")` and then `border("decode")`.

        Called only where `split_obstacle` returned `None`.
        """
        raise NotImplementedError(f"{self.name} splits no phases")
