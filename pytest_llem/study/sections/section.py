"""What engines of other packages declare their section of a study file with.

They register a frozen dataclass, or a subclass of `Section`, under the entry point group `pytest_llem.engine_settings`.
Names here stay; new ones may come.
"""

from __future__ import annotations

from pydantic import JsonValue

from pytest_llem.engines.transformers.settings import Attention
from pytest_llem.job.setting import (
    Dtype,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    about,
    section,
    setting,
)
from pytest_llem.study.strict_model import Section

__all__ = [
    "Attention",
    "Dtype",
    "Extra",
    "Fraction",
    "Name",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Section",
    "about",
    "section",
    "setting",
]

Extra = dict[str, JsonValue]
