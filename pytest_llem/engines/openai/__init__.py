"""Any server that speaks the OpenAI API, measured from the client's side.

`aiohttp` is imported when the engine is prepared, so that everybody else may import this package.
"""

from pytest_llem.engines.openai.engine import OpenAIEngine

__all__ = ["OpenAIEngine"]
