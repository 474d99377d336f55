"""What the fork server imports before it forks: the engine, and nothing that computes.

Imports are most of the cost of a fresh process (torch and transformers: 4-7 s of CPU), and a forked child has
them for nothing. An import that starts threads or touches CUDA would break every child, so the server checks
both afterwards and refuses to fork when they happened.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

PRELOADS = {
    "transformers": (
        "torch",
        "transformers",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "pytest_llem.engines.transformers.engine",
        "pytest_llem.engines.transformers.loading",
        "pytest_llem.engines.transformers.generation",
        "pytest_llem.engines.transformers.loading",
        "pytest_llem.engines.transformers.phases",
        "pytest_llem.engines.torch_facts",
        "pytest_llem.worker.cycle",
        "pytest_llem.energy",
    ),
    "openai": (
        "aiohttp",
        "pytest_llem.engines.openai.engine",
        "pytest_llem.worker.cycle",
        "pytest_llem.energy",
    ),
}
TOKENIZERS = (
    "transformers",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
)
"""What the client of a server makes prompts with, where it is installed."""


def preload(engine: str) -> None:
    """Import what `engine` needs. `ImportError` tells the caller that the engine cannot run here."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # numpy's OpenBLAS starts its thread pool on import; nothing here computes with numpy.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    tokenizers = TOKENIZERS if engine == "openai" and find_spec("transformers") is not None else ()
    for name in (*PRELOADS[engine], *tokenizers):
        importlib.import_module(name)
    if tokenizers:
        from transformers import AutoConfig, AutoTokenizer

        del AutoConfig, AutoTokenizer
    if engine == "transformers":
        # transformers resolves these names lazily, on first use: use them here, once for all children.
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        del AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig


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
