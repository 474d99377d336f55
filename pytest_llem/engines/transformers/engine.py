"""`TransformersEngine`: Hugging Face transformers in the worker's process.

The worker drives it as any engine. torch and transformers are imported in `prepare` and later, not with this file.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar

from pytest_llem.engines import torch_facts
from pytest_llem.engines.hub_models import HubTokenizer, check_lengths
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
from pytest_llem.engines.refusals import after, not_installed
from pytest_llem.engines.transformers.info import INFO
from pytest_llem.engines.transformers.settings import TransformersSettings, read_settings
from pytest_llem.errors import EngineError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet

if TYPE_CHECKING:
    from pytest_llem.engines.transformers.generation import ContinuousGenerator, Generator
    from pytest_llem.engines.transformers.loading import Loaded


class TransformersEngine(Engine):
    """Hugging Face transformers in this process: static batches, padded on the left, through `generate`."""

    name: ClassVar[str] = INFO.name
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding", "settings.batch_size")

    def __init__(self) -> None:
        self.capabilities = Capabilities(token_times=True, separable_phases=True)
        self._config: ExperimentConfig | None = None
        self._settings = TransformersSettings()
        self._devices = DeviceSet("cpu")
        self._loaded: Loaded | None = None
        self._generator: Generator | None = None
        self._continuous: ContinuousGenerator | None = None

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`."""
        try:
            import torch
            import transformers

            from pytest_llem.engines.transformers.generation import generation_fields
        except ImportError as problem:
            raise not_installed(INFO, problem) from problem
        self._config, self._devices = config, devices
        self._settings = read_settings(config)
        generation_fields(self._settings, config.decoding)
        if devices.kind == "cuda" and not torch.cuda.is_available():
            raise EngineError(
                "an NVIDIA GPU was leased, and torch sees none",
                fix="install a CUDA build of torch that the driver supports, or run on the CPU",
                details={"torch": torch.__version__, "torch_cuda": torch.version.cuda},
            )
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)
        single_step = self._settings.num_beams == 1 and not self._settings.continuous_batching
        self.capabilities = Capabilities(
            token_times=self._settings.num_beams == 1,
            separable_phases=single_step and self._settings.prompt_lookup_num_tokens is None,
            memory_counters=devices.kind == "cuda",
        )
        if self._generator is not None:
            self._renew_generator(self._generator)
        return str(transformers.__version__)

    def load(self) -> None:
        """See `Engine.load`."""
        from pytest_llem.engines.transformers.generation import Generator
        from pytest_llem.engines.transformers.loading import load

        config = self._prepared()
        loaded = load(config, self._settings, "cuda:0" if self._devices.kind == "cuda" else "cpu")
        own = loaded.model.generation_config
        eos = own.eos_token_id if own.eos_token_id is not None else loaded.tokenizer.eos_token_id
        eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else (() if eos is None else (eos,))
        pad = loaded.tokenizer.pad_token_id
        pad_id = pad if pad is not None else (eos_ids[0] if eos_ids else 0)
        self._loaded = loaded
        self._generator = Generator(loaded.model, self._settings, config.decoding, pad_id=pad_id, eos_ids=eos_ids)

    def tokenizer(self) -> HubTokenizer:
        """See `Engine.tokenizer`."""
        return HubTokenizer(self._ready().tokenizer)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Batches are formed in the order of the requests."""
        import torch

        from pytest_llem.engines.transformers.loading import out_of_memory

        check_lengths(requests, self._ready().model.config.get_text_config())
        config, generator = self._prepared(), self._generator
        if generator is None:
            raise EngineError("generate was called before load", fix="call load() first")
        if config.decoding.do_sample:
            torch.manual_seed(config.seed)
        size = self._settings.batch_size
        fix = f"lower transformers.batch_size (now {size}), the token counts or the dtype"
        if self._settings.continuous_batching:
            with out_of_memory(f"generating with up to {size} requests at once", fix, batch_size=size):
                completions = self._continuous_generator(generator, requests).run(
                    requests, lambda n: progress(n, len(requests))
                )
            return sorted(completions, key=lambda completion: completion.index)
        done: list[Completion] = []
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            finished = len(done)
            with out_of_memory(f"generating with batch size {len(batch)}", fix, batch_size=size):
                done += generator.run_batch(batch, lambda finished=finished: progress(finished, len(requests)))  # type: ignore[misc]
            progress(len(done), len(requests))
        return done

    def split_obstacle(self, requests: Sequence[Request]) -> str | None:
        """See `Engine.split_obstacle`."""
        from pytest_llem.engines.transformers.generation import split_obstacle

        fixed = all(request.ignore_eos for request in requests)
        return split_obstacle(self._settings, self._prepared().decoding, ignore_eos=fixed)

    def generate_in_phases(
        self, requests: Sequence[Request], border: Callable[[str], AbstractContextManager[object]]
    ) -> list[tuple[int, ...]]:
        """See `Engine.generate_in_phases`."""
        from pytest_llem.engines.transformers.generation import generate_in_phases

        loaded, generator = self._ready(), self._generator
        size = self._settings.batch_size
        found: list[tuple[int, ...]] = []
        for first in range(0, len(requests), size):
            pad_id = generator.pad_id if generator is not None else 0
            found += generate_in_phases(loaded.model, requests[first : first + size], pad_id, border)
        return found

    def reset(self) -> CacheState:
        """See `Engine.reset`: `generate` builds its key-value cache anew for each batch and keeps none."""
        return "disabled" if self._settings.continuous_batching else "none"

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. On the CPU every operation has ended when its call returns."""
        if self._devices.kind == "cuda":
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
        return "synchronized"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name and meaning."""
        from pytest_llem.engines.transformers.loading import effective

        return effective(self._prepared(), self._settings, self._ready())

    def environment(self) -> Mapping[str, JsonValue]:
        """Versions and switches of torch and its libraries that decide how fast the same model runs."""
        return torch_facts.environment()

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`."""
        from pytest_llem.engines.transformers.loading import model_shape

        return model_shape(self._ready().model)

    def reset_peak_memory(self) -> None:
        """See `Engine.reset_peak_memory`."""
        if self._devices.kind == "cuda":
            torch_facts.reset_peak_memory()

    def memory(self) -> tuple[DeviceMemory, ...]:
        """See `Engine.memory`. On the CPU there is no allocator to ask."""
        from pytest_llem.engines.transformers.loading import device_memory

        return device_memory(self._ready().model, self._devices)

    def shutdown(self) -> None:
        """See `Engine.shutdown`. Safe to call twice, and after a failed load."""
        was_loaded = self._loaded is not None
        if self._continuous is not None:
            self._continuous.close()
            self._continuous = None
        self._loaded = self._generator = None
        gc.collect()
        if was_loaded and self._devices.kind == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _continuous_generator(self, generator: Generator, requests: Sequence[Request]) -> ContinuousGenerator:
        from pytest_llem.engines.transformers.generation import ContinuousGenerator

        longest = max(len(request.token_ids) + request.max_new_tokens for request in requests)
        if self._continuous is not None and longest > self._continuous.longest:
            self._continuous.close()
            self._continuous = None
        if self._continuous is None:
            self._continuous = ContinuousGenerator(
                generator.model, generator.open_ended(), self._settings.batch_size, generator.eos_ids, longest
            )
        return self._continuous

    def _renew_generator(self, before: Generator) -> None:
        """Generate as the newly prepared settings say, on the model that is loaded."""
        from pytest_llem.engines.transformers.generation import Generator

        if self._continuous is not None:
            self._continuous.close()
            self._continuous = None
        decoding = self._prepared().decoding
        self._generator = Generator(
            before.model, self._settings, decoding, pad_id=before.pad_id, eos_ids=before.eos_ids
        )

    def _prepared(self) -> ExperimentConfig:
        return after("prepare", self._config)

    def _ready(self) -> Loaded:
        return after("load", self._loaded)
