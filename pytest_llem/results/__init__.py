"""What a run leaves behind: results and their schema, the store, summaries, gates and reports.

`load(path)` reads results back, typed: `for result in load("llem-results/RUN").valid: result.energy.energy_j`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llem.results.loading import Results as Results
    from pytest_llem.results.loading import load as load
    from pytest_llem.results.outcome import Outcome as Outcome
    from pytest_llem.results.schema import Result as Result

__all__ = ["Outcome", "Result", "Results", "load"]

_HOME = {"load": "loading", "Results": "loading", "Outcome": "outcome", "Result": "schema"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
