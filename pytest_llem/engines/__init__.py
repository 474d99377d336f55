"""The engines by name; only the chosen one is imported."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from pytest_llem.engines.protocol import Engine
from pytest_llem.errors import EngineError

SHIPPED = {
    "transformers": "pytest_llem.engines.transformers:TransformersEngine",
    "vllm": "pytest_llem.engines.vllm:VLLMEngine",
    "openai": "pytest_llem.engines.openai:OpenAIEngine",
    "sglang": "pytest_llem.engines.sglang:SGLangEngine",
    "tensorrt_llm": "pytest_llem.engines.tensorrt_llm:TensorRTLLMEngine",
}
UNVERIFIED = ("sglang", "tensorrt_llm")
"""Shipped engines that have not run on the hardware that they need: doctor and every result of theirs say so."""
ENTRY_POINT_GROUP = "pytest_llem.engines"


def known_engines() -> tuple[str, ...]:
    """Names of the shipped engines and of those that other packages register."""
    registered = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return tuple(SHIPPED) + tuple(sorted(registered - set(SHIPPED)))


def open_engine(name: str) -> Engine:
    """A new, unprepared engine; `EngineError` for a name that nobody registered."""
    target = SHIPPED.get(name)
    if target is None:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return _derived(point.load())()
        raise EngineError(
            f"unknown engine {name!r}",
            fix=f"use one of: {', '.join(known_engines())}",
            details={"engine": name},
        )
    module, _, attribute = target.partition(":")
    return cast("Engine", getattr(import_module(module), attribute)())


def _derived(engine: type) -> type[Engine]:
    """The class itself, or one that adds the defaults of `Engine` to it."""
    return engine if issubclass(engine, Engine) else type(engine.__name__, (engine, Engine), {})
