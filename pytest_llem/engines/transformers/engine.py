"""`TransformersEngine`: Hugging Face transformers in the worker's process.

`pytest_llem.engines` opens it by name, the worker drives it as any engine. torch and transformers must be imported in
`prepare` and later, not with this file: what needs them lies in `generation` and `loading`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar

from pytest_llem.engines.hub_models import (
    HubEngine,
    HubTokenizer,
    require_build_for,
    reset_cuda_peaks,
    torch_environment,
)
from pytest_llem.engines.info import EngineInfo
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
from pytest_llem.engines.refusals import not_installed
from pytest_llem.engines.transformers import INFO
from pytest_llem.engines.transformers.settings import TransformersSettings, read_settings
from pytest_llem.errors import EngineError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet

if TYPE_CHECKING:
    from pytest_llem.engines.transformers.generation import Generator


class TransformersEngine(HubEngine):
    """Hugging Face transformers in this process: static batches, padded on the left, through `generate`."""

    name: ClassVar[str] = INFO.name
    info: ClassVar[EngineInfo] = INFO
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding", "settings.batch_size")

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = Capabilities(token_times=True, separable_phases=True)
        self._settings = TransformersSettings()
        self._engine: Generator | None = None

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`."""
        try:
            import torch
            import transformers

            from pytest_llem.engines.transformers.generation import generation_fields
        except ImportError as problem:
            raise not_installed(INFO, problem) from problem
        self._config, self._devices = config, devices
        self._settings = settings = read_settings(config)
        generation_fields(settings, config.decoding)
        require_build_for(devices)
        if devices.on_gpu and not torch.cuda.is_available():
            raise EngineError(
                "a GPU was leased, and torch sees none",
                fix=f"install a build of torch for {devices.kind} that the driver supports, or run on the CPU",
                details={"torch": torch.__version__, "torch_cuda": torch.version.cuda},
            )
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        single_step = settings.num_beams == 1 and not settings.continuous_batching
        self.capabilities = Capabilities(
            token_times=settings.num_beams == 1,
            separable_phases=single_step and settings.prompt_lookup_num_tokens is None,
            memory_counters=devices.on_gpu,
        )
        if self._engine is not None:
            self._engine = self._engine.renewed(config, settings)
        return str(transformers.__version__)

    def load(self) -> None:
        """See `Engine.load`."""
        from pytest_llem.engines.transformers.generation import Generator
        from pytest_llem.engines.transformers.loading import load

        config = self._prepared()
        loaded = load(config, self._settings, "cuda:0" if self._devices.on_gpu else "cpu")
        self._engine = Generator(loaded, config, self._settings)

    def tokenizer(self) -> HubTokenizer:
        """See `Engine.tokenizer`."""
        return HubTokenizer(self._ready().loaded.tokenizer)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Batches are formed in the order of the requests."""
        return self._ready().generate(requests, progress)

    def split_obstacle(self, requests: Sequence[Request]) -> str | None:
        """See `Engine.split_obstacle`."""
        return self._ready().split_obstacle(requests)

    def generate_in_phases(
        self, requests: Sequence[Request], border: Callable[[str], AbstractContextManager[object]]
    ) -> list[tuple[int, ...]]:
        """See `Engine.generate_in_phases`."""
        return self._ready().generate_in_phases(requests, border)

    def reset(self) -> CacheState:
        """See `Engine.reset`: `generate` builds its key-value cache anew for each batch and keeps none."""
        return "disabled" if self._settings.continuous_batching else "none"

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. On the CPU every operation has ended when its call returns."""
        if self._devices.on_gpu:
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
        return "synchronized"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name and meaning."""
        return self._ready().loaded.effective(self._prepared(), self._settings)

    def environment(self) -> Mapping[str, JsonValue]:
        """See `Engine.environment`."""
        return torch_environment()

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`."""
        return self._ready().loaded.shape()

    def reset_peak_memory(self) -> None:
        """See `Engine.reset_peak_memory`."""
        if self._devices.on_gpu:
            reset_cuda_peaks()

    def memory(self) -> tuple[DeviceMemory, ...]:
        """See `Engine.memory`. On the CPU there is no allocator to ask."""
        return self._ready().loaded.memory(self._devices)

    def shutdown(self) -> None:
        """See `Engine.shutdown`. Safe to call twice, and after a failed load."""
        was_loaded = self._engine is not None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        gc.collect()
        if was_loaded and self._devices.on_gpu:
            import torch

            torch.cuda.empty_cache()

    def _ready(self) -> Generator:
        generator: Generator = super()._ready()
        return generator
