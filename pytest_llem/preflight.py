"""What can be known before anything runs: is the engine there at all?"""

from __future__ import annotations

from importlib.util import find_spec

MODULES = {
    "transformers": ("torch", "transformers"),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "tensorrt_llm": ("tensorrt_llm",),
}


def missing_modules(engine: str) -> tuple[str, ...]:
    """The engine's Python packages that this interpreter cannot find; nothing is imported."""
    return tuple(name for name in MODULES.get(engine, ()) if find_spec(name) is None)
