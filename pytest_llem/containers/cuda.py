"""The CUDA major version of this machine, by which images are chosen."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache


@cache
def cuda_major() -> int | None:
    """What the driver supports, else what `nvcc` is; `None` on a machine without either."""
    return _from_nvml() or _from_nvcc()


def _from_nvml() -> int | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlSystemGetCudaDriverVersion_v2()) // 1000 or None
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _from_nvcc() -> int | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"release (\d+)\.", text)
    return int(match[1]) if match else None
