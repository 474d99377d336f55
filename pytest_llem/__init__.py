"""pytest-llem: LLM-inference energy experiments as parametrised pytest tests."""

__version__ = "0.1.0"
