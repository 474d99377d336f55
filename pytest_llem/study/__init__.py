"""What to run: schema, sweep, loader and user settings.

A loaded study can be had without what loading needs: an xdist worker gets its studies from the controller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llem.study.experiments import Experiment, Study
from pytest_llem.study.model import Execution, LeftOut, Notice, Overrides

if TYPE_CHECKING:
    from pytest_llem.study.loader import load_study as load_study

__all__ = ["Execution", "Experiment", "LeftOut", "Notice", "Overrides", "Study", "load_study"]


def __getattr__(name: str) -> object:
    if name == "load_study":
        from pytest_llem.study.loader import load_study

        return load_study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
