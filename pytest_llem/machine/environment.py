"""Gathers facts about the machine, its software and an experiment's files, and selects those that must be equal.

The results' store and the cluster's nodes gather facts; `session.measuring`, `results` and nodes select and compare
them. Their names stand in results: names may be added, none renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import cast

import psutil
import pynvml

from pytest_llem import __version__
from pytest_llem.energy import amdsmi_devices
from pytest_llem.engines import engine_info, engines, model_files, starts_server
from pytest_llem.engines.builtin import is_builtin
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import SYNTHETIC, ExperimentConfig
from pytest_llem.job.files import found
from pytest_llem.job.wire import encode
from pytest_llem.workload.build import resolve_alias
from pytest_llem.workload.hub import cached_commit
from pytest_llem.workload.registered import data_sets
from pytest_llem.workload.texts import texts_of_package

PACKAGES = (
    "accelerate",
    "tokenizers",
    "flash-attn",
    "bitsandbytes",
    "numpy",
    "nvidia-ml-py",
    "amdsmi",
    "zeus",
    "codecarbon",
    "ray",
)
"""Packages beside the engines' own that change how fast the same model runs, or how it is measured."""

GPU_IDENTITY = ("uuid", "driver", "power_limit_w", "ecc", "mig")
CLOCK_NAMES = {"graphics": pynvml.NVML_CLOCK_GRAPHICS, "memory": pynvml.NVML_CLOCK_MEM}

DIGITS = 16
"""Chosen: 64 bits, which no number of runs brings to a collision."""
READ_WHOLE_BYTES = 4 << 20
"""Larger files, weights above all, are known by their size and the time of their last change."""


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
        "gpus": [*_nvidia_gpus(), *_amd_gpus()],
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
    power_limit: float | str | None = None,
) -> dict[str, JsonValue]:
    """What must be equal for two energies to come from the same place: flat facts by name.

    `image` is the container image's digest where it is known, else its name; `meter` is the meter that was asked
    for; `inputs` is what is known of local files and of the hub's cache (`input_facts`); `power_limit` is what the
    experiment sets on its GPUs, whatever stood there when the environment was gathered. From the environment:
    the CPU's model, count and governor, each GPU's UUID, driver, power limit, ECC and MIG mode; and when the engine
    runs in that machine's Python (`local`, and `ray` without an image), the versions of its packages and, on the CPU,
    how many CPUs it was left.
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
    for position, gpu in enumerate(gpus if isinstance(gpus, (list, tuple)) else ()):
        if isinstance(gpu, Mapping):
            facts.update({f"gpu{position}_{fact}": gpu.get(fact) for fact in GPU_IDENTITY})
            if power_limit is not None:
                facts[f"gpu{position}_power_limit_w"] = power_limit
    in_this_python = runner == "local" or (runner == "ray" and image is None)
    if in_this_python and isinstance(packages, Mapping):
        facts.update({f"package_{name}": packages.get(name) for name in engine_info(engine).packages})
    if in_this_python and device_kind == "cpu" and isinstance(cpu, Mapping) and "usable_cores" in cpu:
        facts["cpu_usable_cores"] = cpu["usable_cores"]
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
    """Commit, when it was made, whether files differ from it, and the repository's page; `None` outside one."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {
        "commit": commit,
        "committed_at": _git(directory, "show", "-s", "--format=%cI", "HEAD"),
        "dirty": bool(_git(directory, "status", "--porcelain", "--untracked-files=no")),
        "repository": repository_page(_git(directory, "remote", "get-url", "origin") or ""),
    }


def repository_page(remote: str) -> str | None:
    """The address of the page of a repository cloned over HTTPS or SSH, without credentials; `None` of any other."""
    match = re.fullmatch(r"(?:(?:https|ssh)://)?(?:[^@/]*@)?([^/:@]+)(?::\d+/|[:/])(.+?)(?:\.git)?/?", remote)
    if match is None or "." not in match[1] or remote.startswith((".", "/", "file:")):
        return None
    return f"https://{match[1]}/{match[2]}"


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


def _amd_gpus() -> list[JsonValue]:
    with amdsmi_devices.answering() as gpus:
        return [
            {
                "name": gpu.name,
                "uuid": gpu.uuid,
                "driver": gpu.driver,
                "power_limit_w": gpu.power_cap_w,
                "memory_total_bytes": gpu.total_bytes,
                "max_clocks_mhz": {
                    "graphics": gpu.clock_mhz("GFX", "max_clk"),
                    "memory": gpu.clock_mhz("MEM", "max_clk"),
                },
                "partition": gpu.partition,
            }
            for gpu in gpus
        ]


def _nvidia_gpus() -> list[JsonValue]:
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


def input_facts(config: ExperimentConfig) -> dict[str, JsonValue]:
    """A fact per input: `model_files`, `lora_files`, `dataset_files` for what lies here, a digest over names and
    content; `model_commit` and so on for the hub's, the commit that the local cache has under the revision asked for;
    `dataset_texts` of another package's data set or of a task, a digest over the texts that are used, with the answers
    of questions, and what ends a task's; `arrival_file` and `task_files`, digests over the file of arrival times and
    own task files.
    Not what scores answers: stored ones can be scored again (`results.rescored`).

    `lora_fingerprint` is the adapter's `model_files.fingerprint`. Nothing for built-in models, synthetic prompts and
    served models, and for what the cache does not hold.
    """
    facts: dict[str, JsonValue] = {}
    for kind, hub_kind, name, revision in _named(config):
        path = found(name)
        if path is not None:
            facts[f"{kind}_files"] = content_digest(path)
            if kind == "lora":
                # No engine states it as it does the model's, and a gate compares across checkouts of large files.
                facts["lora_fingerprint"] = model_files.fingerprint(path)
        elif (commit := cached_commit(hub_kind, name, revision)) is not None:
            facts[f"{kind}_commit"] = commit
    workload = config.workload
    own = {
        "arrival_file": workload.times_file,
        "task_files": workload.include_path,
    }
    for fact, named in own.items():
        if named is not None and (path := found(named)) is not None:
            facts[fact] = content_digest(path)
    texts = texts_of_package(workload)
    if texts is not None:
        content: object = texts.texts or texts.recorded
        keys = [(question.id, question.target) for question in texts.questions]
        if keys or texts.examples or texts.stop:
            content = (texts.texts or texts.chats, keys, texts.examples, texts.stop, texts.output_tokens)
        facts["dataset_texts"] = hashlib.sha256(json.dumps(encode(content)).encode()).hexdigest()[:DIGITS]
    return facts


def content_digest(path: Path) -> str:
    """Sixteen hex digits over names and content, hidden files left out; large files by size and modification time."""
    digest = hashlib.sha256()
    for name, file in _files(path):
        try:
            facts = file.stat()
            content = _file_digest(str(file), facts.st_size, facts.st_mtime_ns)
        except OSError as problem:
            content = f"unreadable: {problem.strerror}"
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _named(config: ExperimentConfig) -> Iterator[tuple[str, str, str, str | None]]:
    """What a configuration names, as kind, kind on the hub, name and revision."""
    served_elsewhere = engine_info(config.engine).serves_over_http and not starts_server(config)
    if not served_elsewhere and not is_builtin(config.model):
        yield "model", "models", config.model, config.revision
    if config.lora:
        yield "lora", "models", config.lora, None
    workload = resolve_alias(config.workload)
    if workload.dataset != SYNTHETIC and workload.dataset not in data_sets():
        yield "dataset", "datasets", workload.dataset, workload.revision


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if not file.is_dir() and not any(part.startswith((".", "__pycache__")) for part in name.parts):
            yield name.as_posix(), file


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, changed_ns: int) -> str:
    if size > READ_WHOLE_BYTES:
        return f"{size} {changed_ns}"
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
