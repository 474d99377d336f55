"""What a run leaves behind: results and their schema, the store, summaries, gates and reports.

The package's public names come from here, and users import `load`, `Result`, `Results` and `Outcome`: they stay. They
must be imported only when asked for, because a plain pytest run does without pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llem.results.reading import Results as Results
    from pytest_llem.results.reading import load as load
    from pytest_llem.results.schema import Result as Result
    from pytest_llem.results.state import Outcome as Outcome

__all__ = ["Outcome", "Result", "Results", "load"]
_MODULES = {"load": "reading", "Results": "reading", "Outcome": "state", "Result": "schema"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
