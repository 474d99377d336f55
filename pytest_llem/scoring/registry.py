"""Finds the scorer that a workload asks for: one of this package, of another, or of the user's own file.

`session` and the worker call it before anything is measured, `results` afterwards. Names are published and stay.
"""

from __future__ import annotations

from pytest_llem.errors import SettingsError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.scoring.scorer import Scorer
from pytest_llem.scoring.texts import TEXT_SCORERS


def scorer_of(settings: WorkloadSettings) -> Scorer | None:
    """The scorer, `None` where answers are not scored. Raises `SettingsError` where there is no such scorer."""
    if settings.score is None:
        return None
    if isinstance(settings.score, str) and settings.score in TEXT_SCORERS:
        return TEXT_SCORERS[settings.score]
    raise SettingsError(f"unknown scorer {settings.score!r}", fix=f"use one of: {', '.join(TEXT_SCORERS)}")
