"""Imports what an engine needs before the fork server forks, since imports cost a fresh process 4-7 s of CPU.

The fork server calls it. An import that starts threads or initialises CUDA would break every child: it is then refused.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from pytest_llem.engines import engine_info

WORKER = ("pytest_llem.worker.cycle", "pytest_llem.energy")
"""What every cycle needs of this package."""


def preload(engine: str) -> None:
    """Import what `engine` needs. `ImportError` tells the caller that the engine cannot run here."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # numpy's OpenBLAS starts its thread pool on import; nothing here computes with numpy.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    info = engine_info(engine)
    optional = [name for name in info.preload_if_installed if find_spec(re.split("[.:]", name)[0]) is not None]
    for name in (*info.preload, info.engine.partition(":")[0], *WORKER, *optional):
        module, _, attribute = name.partition(":")
        imported = importlib.import_module(module)
        if attribute:
            getattr(imported, attribute)


def unsafe_to_fork() -> str | None:
    """Why a fork of this process would not be safe, or `None`.

    A second thread may hold a lock that a child then waits for without end; an initialised CUDA context does not
    survive a fork.
    """
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else 1
    if threads != 1:
        return f"the imports started {threads - 1} thread(s)"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the imports initialised CUDA"
    return None
