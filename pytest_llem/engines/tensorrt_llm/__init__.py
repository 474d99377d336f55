"""The TensorRT-LLM engine: https://nvidia.github.io/TensorRT-LLM, in this process."""

from __future__ import annotations

from pytest_llem.engines.tensorrt_llm.engine import TensorRTLLMEngine

__all__ = ["TensorRTLLMEngine"]
