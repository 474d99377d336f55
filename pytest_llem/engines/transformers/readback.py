"""What a loaded model really runs with, read from the model and from torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from pytest_llem.engines.hub_models import plain_json, shape_of
from pytest_llem.engines.model_files import fingerprint
from pytest_llem.engines.protocol import DeviceMemory, ModelShape
from pytest_llem.engines.torch_facts import cuda_memory
from pytest_llem.engines.transformers.loading import Loaded, model_directory
from pytest_llem.engines.transformers.settings import TransformersSettings
from pytest_llem.errors import JsonValue
from pytest_llem.job import DeviceSet, ExperimentConfig


def effective(config: ExperimentConfig, settings: TransformersSettings, loaded: Loaded) -> dict[str, JsonValue]:
    """Settings as the model has them; `dtype` is that of the largest share of the parameters."""
    model = loaded.model
    directory = model_directory(loaded.source)
    quantization = getattr(model, "quantization_method", None) or getattr(model.config, "quantization_config", None)
    return {
        "model_path": loaded.source.location,
        "model_revision": getattr(model.config, "_commit_hash", None),
        "model_fingerprint": fingerprint(directory) if directory is not None else None,
        "weights": config.weights,
        "tokenizer": loaded.tokenizer_name,
        "dtype": _main_dtype(model),
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "experts_implementation": getattr(model.config, "_experts_implementation", None),
        "device": str(model.device),
        "device_map": plain_json(getattr(model, "hf_device_map", None)),
        "quantized": quantization is not None,
        "quantization_config": plain_json(getattr(model.config, "quantization_config", None)),
        "batch_size": settings.batch_size,
        "use_cache": settings.use_cache,
        "cache_implementation": settings.cache_implementation,
        "compile": settings.compile if isinstance(settings.compile, bool) else dataclasses.asdict(settings.compile),
        "continuous_batching": settings.continuous_batching,
        "num_beams": settings.num_beams,
        "prompt_lookup_num_tokens": settings.prompt_lookup_num_tokens,
        "threads": torch.get_num_threads(),
        "do_sample": config.decoding.do_sample,
        "seed": config.seed,
        "lora": config.lora,
    }


def model_shape(model: Any) -> ModelShape:
    """The architecture numbers of the text model."""
    return shape_of(model.config.get_text_config(), int(model.num_parameters()))


def device_memory(model: Any, devices: DeviceSet) -> tuple[DeviceMemory, ...]:
    """Weights (parameters and buffers) per device, and the peak that torch's CUDA allocator has handed out."""
    weights: dict[str, int] = {}
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        weights[str(tensor.device)] = weights.get(str(tensor.device), 0) + tensor.numel() * tensor.element_size()
    if devices.kind == "cpu":
        return (DeviceMemory("cpu", weights.get("cpu", 0), None),)
    return cuda_memory(devices, [weights.get(f"cuda:{index}", 0) for index in range(len(devices.uuids))])


def _main_dtype(model: Any) -> str | None:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name]) if counts else None
