"""What to run: schema, sweep, loader and user settings."""

from pytest_llem.study.loader import load_study
from pytest_llem.study.model import Experiment, LeftOut, Notice, Overrides, Study
from pytest_llem.study.schema import Execution

__all__ = ["Execution", "Experiment", "LeftOut", "Notice", "Overrides", "Study", "load_study"]
