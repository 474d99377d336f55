"""Studies: reads their files, checks the settings, and expands sweeps into experiments.

`session.options` calls `load_study`; the session, the runners, the servers and `machine.devices` read what it returns.
The other names must need neither pydantic nor YAML, because xdist workers receive loaded studies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llem.study.experiments import Experiment, Study
from pytest_llem.study.model import Execution, Notice, OmittedPoint, Overrides

if TYPE_CHECKING:
    from pytest_llem.study.loader import load_study as load_study

__all__ = ["Execution", "Experiment", "Notice", "OmittedPoint", "Overrides", "Study", "load_study"]


def __getattr__(name: str) -> object:
    if name == "load_study":
        from pytest_llem.study.loader import load_study

        return load_study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
