"""The `vllm` engine: vLLM's offline engine, all requests at once, with its own scheduler.

Importing this package does not import vLLM: `prepare` does, and says so when it is missing.
"""

from pytest_llem.engines.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]
