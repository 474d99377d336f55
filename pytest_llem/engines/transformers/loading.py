"""Loads a model and its tokenizer with transformers, onto the CPU or the leased accelerators.

`TransformersEngine` and `generation` use it. It imports torch and transformers, so nothing else may import it.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.engines.hub_models import (
    FALLBACK_TOKENIZER,
    cuda_memory,
    hub_keywords,
    load_config,
    plain_json,
    shape_of,
)
from pytest_llem.engines.model_files import ModelSource, find_adapter, find_model, fingerprint, on_hub, unreachable
from pytest_llem.engines.protocol import DeviceMemory, ModelShape
from pytest_llem.engines.refusals import one_line
from pytest_llem.engines.transformers.settings import LOAD_KEYWORDS, TransformersSettings
from pytest_llem.errors import EngineNotInstalledError, EngineSettingError, JsonValue, OutOfMemoryError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.workload.hub import hub_obstacle

HOST_MEMORY_TEXTS = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


@dataclass
class Loaded:
    """A model ready to generate, and where it came from."""

    model: Any
    tokenizer: Any
    tokenizer_name: str
    source: ModelSource
    pad_id: int
    eos_ids: tuple[int, ...]

    def effective(self, config: ExperimentConfig, settings: TransformersSettings) -> dict[str, JsonValue]:
        """Settings as the model has them; `dtype` is that of the largest share of the parameters."""
        model = self.model
        stated = plain_json(getattr(model.config, "quantization_config", None))
        method = stated.get("quant_method") if isinstance(stated, dict) else None
        return {
            "model_path": self.source.location,
            "model_revision": getattr(model.config, "_commit_hash", None),
            "model_fingerprint": fingerprint(Path(self.source.location)) if self.source.local else None,
            "weights": config.weights,
            "tokenizer": self.tokenizer_name,
            "dtype": _main_dtype(model),
            "attn_implementation": getattr(model.config, "_attn_implementation", None),
            "experts_implementation": getattr(model.config, "_experts_implementation", None),
            "device": str(model.device),
            "device_map": plain_json(getattr(model, "hf_device_map", None)),
            "quantized": (getattr(model, "quantization_method", None) or stated) is not None,
            "quantization": method,
            "quantization_config": stated,
            "batch_size": settings.batch_size,
            "use_cache": settings.use_cache,
            "cache_implementation": settings.cache_implementation,
            "compile": dataclasses.asdict(settings.compile) if settings.compile.mode is not None else False,
            "continuous_batching": settings.continuous_batching,
            "num_beams": settings.num_beams,
            "prompt_lookup_num_tokens": settings.prompt_lookup_num_tokens,
            "threads": torch.get_num_threads(),
            "do_sample": config.decoding.do_sample,
            "seed": config.seed,
            "lora": config.lora,
        }

    def shape(self) -> ModelShape:
        """The architecture numbers of the text model."""
        return shape_of(self.model.config.get_text_config(), int(self.model.num_parameters()))

    def memory(self, devices: DeviceSet) -> tuple[DeviceMemory, ...]:
        """Weights (parameters and buffers) per device, and the peak that torch's CUDA allocator has handed out."""
        weights: dict[str, int] = {}
        seen: set[int] = set()
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            weights[str(tensor.device)] = weights.get(str(tensor.device), 0) + tensor.numel() * tensor.element_size()
        if devices.kind == "cpu":
            return (DeviceMemory("cpu", weights.get("cpu", 0), None),)
        return cuda_memory(devices, [weights.get(f"cuda:{index}", 0) for index in range(len(devices.uuids))])


def load(config: ExperimentConfig, settings: TransformersSettings, device: str) -> Loaded:
    """Load the tokenizer and the model. Raises `ModelNotFoundError`, `OutOfMemoryError` or `EngineError`."""
    transformers_logging.disable_progress_bar()
    source = find_model(config.model, weights=config.weights != "dummy")
    hub = hub_keywords(config, source, settings.revision)
    model_config = load_config(config, source, settings.revision)
    tokenizer, tokenizer_name = _load_tokenizer(config, source, hub)
    torch.manual_seed(config.seed)
    fix = "use a smaller model, a smaller dtype, quantisation, or more devices (transformers.device_map: auto)"
    with out_of_memory(f"loading {config.model} as {config.dtype or 'its own dtype'}", fix):
        if config.weights == "dummy":
            model = _random_model(config, settings, model_config, device)
        else:
            model = _real_model(config, settings, source, hub, device)
        if config.lora is not None:
            model = _with_adapter(model, config.lora)
        model.eval()
    if settings.compile.mode is not None:
        model.forward = _compiled(model, settings)
    eos = model.generation_config.eos_token_id
    eos = eos if eos is not None else tokenizer.eos_token_id
    eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else (() if eos is None else (eos,))
    pad_id = tokenizer.pad_token_id
    pad_id = pad_id if pad_id is not None else (eos_ids[0] if eos_ids else 0)
    return Loaded(model, tokenizer, tokenizer_name, source, pad_id, eos_ids)


def _load_tokenizer(config: ExperimentConfig, source: ModelSource, hub: dict[str, Any]) -> tuple[Any, str]:
    try:
        return AutoTokenizer.from_pretrained(source.location, **hub), config.model
    except (OSError, ValueError, TypeError, KeyError) as problem:
        # A directory that holds nothing but a config is enough for random weights: any token ids will do.
        if config.weights != "dummy":
            raise unreachable(config.model, problem, source.offline) from problem
        return AutoTokenizer.from_pretrained(builtin_path(FALLBACK_TOKENIZER)), FALLBACK_TOKENIZER


def _real_model(
    config: ExperimentConfig, settings: TransformersSettings, source: ModelSource, hub: dict[str, Any], device: str
) -> Any:
    keywords: dict[str, Any] = {"dtype": config.dtype or "auto", **hub}
    if source.offline is not None:
        # With peft installed, transformers asks for an adapter of that name too, by settings of its own.
        keywords["adapter_kwargs"] = {"local_files_only": True}
    keywords.update({key: value for key, value in settings.extra.items() if key in LOAD_KEYWORDS})
    if settings.attn_implementation is not None:
        keywords["attn_implementation"] = settings.attn_implementation
    if settings.quantization.arguments:
        keywords["quantization_config"] = _quantization(settings)
    if settings.max_memory is not None:
        keywords["max_memory"] = {int(k) if k.isdigit() else k: v for k, v in settings.max_memory.items()}
    if settings.device_map is not None:
        keywords["device_map"] = settings.device_map
    elif device != "cpu":
        keywords["device_map"] = {"": device}
    with _explained(config.model):
        try:
            return AutoModelForCausalLM.from_pretrained(source.location, **keywords)
        except OSError as problem:
            raise unreachable(config.model, problem, source.offline) from problem


def _random_model(config: ExperimentConfig, settings: TransformersSettings, model_config: Any, device: str) -> Any:
    refused = {
        "quantization": settings.quantization.arguments,
        "device_map": settings.device_map,
        "max_memory": settings.max_memory,
    }
    for key, value in refused.items():
        if value:
            raise EngineSettingError(
                f"transformers.{key} cannot be combined with weights: dummy",
                fix="leave it out: random weights are made on one device in the study's dtype",
            )
    keywords: dict[str, Any] = {"dtype": config.dtype or model_config.dtype or "float32"}
    if settings.attn_implementation is not None:
        keywords["attn_implementation"] = settings.attn_implementation
    if "experts_implementation" in settings.extra:
        keywords["experts_implementation"] = settings.extra["experts_implementation"]
    with _explained(config.model), torch.device(device):
        model = AutoModelForCausalLM.from_config(model_config, **keywords)
    _fill(model, config.seed)
    return model


def _fill(model: Any, seed: int) -> None:
    """Give matrices normal values, so that multiplying them costs what it costs with trained weights.

    Zeros or uninitialised memory would not: a multiplier's power depends on the bits that toggle. The standard
    deviation is 1/sqrt(columns), which keeps activations finite in half precision at any depth.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and parameter.is_floating_point():
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            elif not bool(torch.isfinite(parameter).all()):
                parameter.fill_(1.0)


def _quantization(settings: TransformersSettings) -> Any:
    from transformers import BitsAndBytesConfig

    # It warns at each matrix product in eight bits of other inputs than float16: lines of log, and energy, per token.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        return BitsAndBytesConfig(**settings.quantization.arguments)
    except (TypeError, ValueError) as problem:
        raise EngineSettingError(
            f"transformers.quantization: {problem}", fix="use the arguments of transformers.BitsAndBytesConfig"
        ) from problem
    except ImportError as problem:
        raise _missing_package(problem) from problem


def _with_adapter(model: Any, adapter: str) -> Any:
    location = find_adapter(adapter)
    try:
        peft = importlib.import_module("peft")
    except ImportError as problem:
        raise EngineNotInstalledError("lora: the package 'peft' is not installed", fix="pip install peft") from problem
    offline = hub_obstacle() if on_hub(adapter) else None
    try:
        adapted = peft.PeftModel.from_pretrained(model, location, local_files_only=offline is not None)
    except (OSError, ValueError) as problem:
        raise unreachable(adapter, problem, offline) from problem
    return adapted.merge_and_unload()


def _compiled(model: Any, settings: TransformersSettings) -> Any:
    chosen = settings.compile
    keywords: dict[str, Any] = {"fullgraph": chosen.fullgraph, "dynamic": chosen.dynamic}
    # torch takes a mode for its own compiler only.
    key, value = ("backend", chosen.backend) if chosen.backend != "inductor" else ("mode", chosen.mode)
    keywords[key] = value
    try:
        return torch.compile(model.forward, **keywords)
    except RuntimeError as problem:
        raise EngineSettingError(f"transformers.compile: {problem}", fix="correct its mode and backend") from problem


def _missing_package(problem: ImportError) -> EngineNotInstalledError:
    text = one_line(problem)
    for package in ("accelerate", "bitsandbytes", "flash_attn", "kernels", "optimum-quanto"):
        if package in text or package.replace("_", "-") in text:
            name = package.replace("_", "-")
            return EngineNotInstalledError(
                f"transformers needs {name} for this: {text[:200]}", fix=f"pip install {name}"
            )
    return EngineNotInstalledError(f"transformers misses a package: {text[:300]}", fix="install what the message names")


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turn what transformers raises for settings that it does not take, or lacks a package for, into our errors."""
    try:
        yield
    except ImportError as problem:
        raise _missing_package(problem) from problem
    except (ValueError, TypeError, AttributeError) as problem:
        raise EngineSettingError(
            f"transformers refuses to load {model!r} like this: {one_line(problem)[:400]}",
            fix="correct the setting that the message names",
            details={"type": type(problem).__name__},
        ) from problem


@contextmanager
def out_of_memory(what: str, fix: str, **details: JsonValue) -> Iterator[None]:
    """Turn the ways in which torch runs out of memory into `OutOfMemoryError`, which says what was being done."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        text = f"the device ran out of memory while {what}: {str(problem).split('. ')[0]}"
        raise OutOfMemoryError(text, fix=fix, details=details) from problem
    except (MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and not any(text in str(problem) for text in HOST_MEMORY_TEXTS):
            raise
        raise OutOfMemoryError(f"the host ran out of memory while {what}", fix=fix, details=details) from problem


def _main_dtype(model: Any) -> str | None:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name]) if counts else None
