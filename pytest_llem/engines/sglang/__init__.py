"""The SGLang engine: https://docs.sglang.ai, in this process."""

from __future__ import annotations

from pytest_llem.engines.sglang.engine import SGLangEngine

__all__ = ["SGLangEngine"]
