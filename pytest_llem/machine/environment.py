"""Gathers facts about the machine and its software, and selects those that make energies comparable.

Gathered once per run, by the session and by each node of a cluster. The names of facts stand in results.
"""

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
from pytest_llem.engines import engine_info, engines
from pytest_llem.errors import JsonValue

PACKAGES = (
    "accelerate",
    "tokenizers",
    "flash-attn",
    "bitsandbytes",
    "numpy",
    "nvidia-ml-py",
    "zeus",
    "codecarbon",
    "ray",
)
"""Packages beside the engines' own that change how fast the same model runs, or how it is measured."""

GPU_IDENTITY = ("uuid", "driver", "power_limit_w", "ecc", "mig")
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
        "packages": {name: version for name in _packages() if (version := _version(name)) is not None},
        "git": git_state(Path.cwd()),
    }


def identity(
    environment: Mapping[str, JsonValue],
    *,
    engine: str,
    runner: str,
    image: str | None,
    device_kind: str,
    device_count: int,
    meter: str,
    inputs: Mapping[str, JsonValue],
) -> dict[str, JsonValue]:
    """What must be equal for two energies to come from the same place: flat facts by name.

    `image` is the container image's digest where it is known, else its name; `meter` is the meter that was asked
    for; `inputs` is what is known of local files and of the hub's cache (`inputs.input_facts`). From the environment:
    the CPU's model, count and governor, each GPU's UUID, driver, power limit, ECC and MIG mode, and the versions of the
    engine's packages when it runs in that machine's Python (`local`, and `ray` without an image).
    """
    packages = environment.get("packages")
    cpu = environment.get("cpu")
    gpus = environment.get("gpus")
    facts: dict[str, JsonValue] = {
        "engine": engine,
        "runner": runner,
        "image": image,
        "device_kind": device_kind,
        "device_count": device_count,
        "meter": meter,
        **inputs,
    }
    if isinstance(cpu, Mapping):
        facts.update({f"cpu_{fact}": cpu.get(fact) for fact in ("model", "logical_cores", "governor")})
    for place, gpu in enumerate(gpus if isinstance(gpus, (list, tuple)) else ()):
        if isinstance(gpu, Mapping):
            facts.update({f"gpu{place}_{fact}": gpu.get(fact) for fact in GPU_IDENTITY})
    if (runner == "local" or (runner == "ray" and image is None)) and isinstance(packages, Mapping):
        facts.update({f"package_{name}": packages.get(name) for name in engine_info(engine).packages})
    return facts


def fingerprint(identity: Mapping[str, JsonValue]) -> str:
    """Twelve hex digits over an `identity`."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What differs between two identities, a sentence each."""
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


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


def _packages() -> tuple[str, ...]:
    of_engines = [name for info in engines().values() for name in info.packages]
    return tuple(dict.fromkeys((*of_engines, *PACKAGES, "pytest")))


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
