"""`python3 -m pytest_llem.worker.probe ENGINE [MODULE...]`: prints what an image contains, as one line of JSON.

`containers.preflight` runs it before the first cycle and repeats its mark `LLEM-PROBE `: change both. It may import
nothing heavy, because it must answer within seconds, nor this package, because an image's Python may be too old for it.
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
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

ENTRY_POINT_GROUP = "pytest_llem.engines"


def main(engine: str, modules: list[str]) -> dict[str, Any]:
    """Everything that preflight asks of an image; without `modules`, the image's own entry points name the engine's."""
    needed = modules or _registered_modules(engine)
    return {
        "python": platform.python_version(),
        "missing": [name for name in needed if importlib.util.find_spec(name) is None],
        "version": _version(needed[-1]),
        "torch_cuda": _torch_built_with("cuda"),
        "torch_build": torch_build(),
        "shm_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "writable": _writable("/llem/cache"),
        "uid": os.getuid(),
        "boot_id": _boot_id(),
        "realtime_s": time.time(),
        "gpu": _gpu(),
    }


def _registered_modules(engine: str) -> list[str]:
    """The modules that an image's entry points name for an engine of another package, else the engine's own name."""
    try:
        points = metadata.entry_points(group=ENTRY_POINT_GROUP, name=engine)
    except TypeError:
        return [engine]  # before Python 3.10, which preflight refuses
    return [point.module.partition(".")[0] for point in points] or [engine]


def _version(module: str) -> str | None:
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return None


@cache
def torch_build() -> str | None:
    """The kind of device that torch was built for, as `device.kind` names it; `None` without torch."""
    if _torch_version_file() is None:
        return None
    kinds = {"cuda": "cuda", "hip": "rocm"}
    return next((kind for library, kind in kinds.items() if _torch_built_with(library) is not None), "cpu")


def _torch_built_with(library: str) -> str | None:
    """The version of `cuda` or `hip` that torch was built with."""
    source = _torch_version_file() or ""
    match = re.search(rf"^{library}\b[^=\n]*=\s*['\"]([\d.]+)", source, re.MULTILINE)
    return match[1] if match else None


def _torch_version_file() -> str | None:
    """What torch says of its build, read from its file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        return (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None


def _writable(directory: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=directory):
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
    sys.stdout.write("\nLLEM-PROBE " + json.dumps(main(sys.argv[1], sys.argv[2:])) + "\n")
