"""The `transformers` engine: Hugging Face models in this process, in static batches.

Importing this package imports neither torch nor transformers: `prepare` does, and says so when they are missing.
"""

from pytest_llem.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
