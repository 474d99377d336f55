"""What all engines do alike with settings and errors: used too early, not installed, unknown setting, sampling.

Engines and `vllm.settings` call it. Standard library only: it must load where no engine is installed.
"""

from __future__ import annotations

import difflib
import math
import sys
import sysconfig
from collections.abc import Collection, Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, TypeVar

from pytest_llem.engines.info import EngineInfo
from pytest_llem.errors import (
    EngineError,
    EngineNotInstalledError,
    EngineSettingError,
    JsonValue,
    LlemError,
    OutOfMemoryError,
)
from pytest_llem.job.config import Decoding
from pytest_llem.job.job import DeviceSet

T = TypeVar("T")


def after(step: Literal["prepare", "load"], value: T | None) -> T:
    """What an engine has after a step of its protocol; `EngineError` when it is used before."""
    if value is None:
        raise EngineError(f"the engine was used before {step}", fix=f"call {step}() first")
    return value


def not_installed(info: EngineInfo, problem: ImportError, fix: str | None = None) -> EngineNotInstalledError:
    """The error for an engine whose packages cannot be imported here; the fix is to install it if none is given."""
    message = f"the engine {info.name} is not installed here: {problem}"
    return EngineNotInstalledError(message, fix=hidden_module() or fix or info.install, details={"engine": info.name})


def hidden_module() -> str | None:
    """What to do about a module of the user's (PYTHONPATH) that took the place of an installed one."""
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or not file:
            continue
        place = str(Path(file).parents[1 if Path(file).stem == "__init__" else 0])
        # A package may bring others' modules in directories of its own, and put these in front, as Ray does.
        if place in sys.path and not any(Path(place).is_relative_to(part) for part in installed):
            behind = [later for later in sys.path[sys.path.index(place) + 1 :] if later in installed]
            other = PathFinder.find_spec(name, behind)
            if other is not None and other.origin not in (None, file):
                return f"rename {file}: it hides the module {name} in {other.origin}"
    return None


def one_line(problem: BaseException) -> str:
    """A library's words as one line, which may be cut."""
    return " ".join(str(problem).split())[:500]


def load_error(title: str, model: str, problem: Exception, memory_texts: Iterable[str], fix: str) -> LlemError:
    """What an exception of an engine's constructor means; `fix` is for a lack of memory, which `memory_texts` tell."""
    text = one_line(problem)
    if type(problem).__name__ == "OutOfMemoryError" or any(part in text for part in memory_texts):
        return OutOfMemoryError(f"no memory to load {model}: {text}", fix=fix)
    if isinstance(problem, (ValueError, TypeError, AssertionError)):
        return EngineSettingError(f"{title} refuses these settings: {text}", fix="correct the setting that it names")
    return EngineError(f"{title} could not start: {text}", fix="read the lines before it in worker.log")


def unknown_setting(product: str, path: str, name: str, known: Collection[str]) -> EngineSettingError:
    """The error for a setting at `path` of a study that the installed `product` does not have."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return EngineSettingError(
        f"{path}: the installed {product} has no such setting",
        fix=f"did you mean {near[0]!r}?" if near else f"remove it, or install the version of {product} that has it",
        details={"key": path},
    )


def require_devices(engine: str, sizes: Iterable[JsonValue], devices: DeviceSet) -> int:
    """How many devices the product of the parallel `sizes` needs; `EngineSettingError` when fewer GPUs are leased."""
    needed = math.prod(size for size in sizes if isinstance(size, int))
    if devices.on_gpu and needed > max(1, len(devices.uuids)):
        raise EngineSettingError(
            f"{engine}: the parallel sizes need {needed} devices, and {len(devices.uuids)} are leased",
            fix="lower the parallel sizes, or lease more devices",
        )
    return needed


def sampling_settings(decoding: Decoding) -> dict[str, Any]:
    """The settings of `decoding` that a study gives, by their common names; those of sampling only if it samples."""
    names = ("temperature", "top_k", "top_p", "min_p") if decoding.do_sample else ()
    return {name: value for name in (*names, "repetition_penalty") if (value := getattr(decoding, name)) is not None}
