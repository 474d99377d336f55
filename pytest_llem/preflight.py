"""What can be known before anything runs: is the engine there at all?"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pytest_llem.errors import EngineNotInstalledError

MODULES = {
    "transformers": ("torch", "transformers"),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "tensorrt_llm": ("tensorrt_llm",),
}
INSTALL = {
    "transformers": 'pip install "pytest-llem[transformers]"',
    "vllm": 'pip install "pytest-llem[vllm]", or run it in a container: --llem-runner=vllm=docker',
    "sglang": "run it in a container: --llem-runner=sglang=docker",
    "tensorrt_llm": "run it in a container: --llem-runner=tensorrt_llm=docker",
}


def missing_modules(engine: str) -> tuple[str, ...]:
    """The engine's Python packages that this interpreter cannot find; nothing is imported."""
    return tuple(name for name in MODULES.get(engine, ()) if find_spec(name) is None)


def require_local_engine(engine: str, study: Path) -> None:
    """Raise `EngineNotInstalledError` when the engine of a study cannot be imported in this environment."""
    missing = missing_modules(engine)
    if missing:
        raise EngineNotInstalledError(
            f"{study}: engine {engine!r} is not installed here: no module named {missing[0]!r}",
            fix=INSTALL.get(engine, f"install {', '.join(missing)}"),
            details={"engine": engine, "missing": list(missing)},
        )
