"""Which engines a study may name."""

from __future__ import annotations

from functools import cache

ENGINE_SECTIONS = ("transformers", "vllm", "sglang", "tensorrt_llm", "openai")
"""The engines whose sections the schema describes."""


@cache
def engine_names() -> tuple[str, ...]:
    """The engines of the schema, and those that other packages register; a section of theirs may hold anything."""
    from pytest_llem.engines import known_engines

    return ENGINE_SECTIONS + tuple(name for name in known_engines() if name not in ENGINE_SECTIONS)
