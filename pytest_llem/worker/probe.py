"""`python3 -m pytest_llem.worker.probe ENGINE`: prints what an image contains, as one line of JSON.

`containers.preflight` runs it before the first cycle. It imports nothing heavy: it must answer within seconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

MODULES = {
    "transformers": ("torch", "transformers"),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "tensorrt_llm": ("tensorrt_llm",),
    "openai": (),
}
ENTRY_POINT_GROUP = "pytest_llem.engines"
DISTRIBUTIONS = {"tensorrt_llm": "tensorrt-llm"}


def main(engine: str) -> dict[str, Any]:
    """Everything that preflight asks of an image."""
    return {
        "python": platform.python_version(),
        "missing": [name for name in _modules(engine) if importlib.util.find_spec(name) is None],
        "version": _version(engine),
        "torch_cuda": _torch_cuda(),
        "shm_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "writable": _writable("/llem/cache"),
        "uid": os.getuid(),
        "boot_id": _boot_id(),
        "realtime_s": time.time(),
        "gpu": _gpu(),
    }


def _modules(engine: str) -> tuple[str, ...]:
    """What must be importable: for an engine of another package, the module that its entry point names."""
    if engine in MODULES:
        return MODULES[engine]
    points = metadata.entry_points(group=ENTRY_POINT_GROUP, name=engine)
    return tuple(point.module.partition(".")[0] for point in points) or (engine,)


def _version(engine: str) -> str | None:
    try:
        return metadata.version(DISTRIBUTIONS.get(engine, engine))
    except metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    """The CUDA that torch was built with, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        source = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", source, re.MULTILINE)
    return match[1] if match else None


def _writable(place: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _gpu() -> dict[str, Any]:
    try:
        import pynvml
    except ImportError:
        return {"problem": "pynvml is not there"}
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {
            "uuids": [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles],
            "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": int(pynvml.nvmlSystemGetCudaDriverVersion_v2()),
        }
    except pynvml.NVMLError as problem:
        return {"problem": f"NVML: {problem}"}


if __name__ == "__main__":
    sys.stdout.write("\nLLEM-PROBE " + json.dumps(main(sys.argv[1])) + "\n")
