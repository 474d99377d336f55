"""What a run leaves behind: results and their schema, the store, summaries, gates and reports."""

from __future__ import annotations

from pytest_llem.results.outcome import Outcome
from pytest_llem.results.schema import Result

__all__ = ["Outcome", "Result"]
