"""Precision on demand: whether the cycles so far pin down the headline metric well enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import TYPE_CHECKING

from pytest_llem.results.metrics import metric
from pytest_llem.results.statistics import student_quantile

if TYPE_CHECKING:
    from pytest_llem.results.outcome import Outcome
    from pytest_llem.study.model import Execution

CONFIDENCE = 0.95
LEAST_CYCLES = 3


def relative_half_width(values: Sequence[float]) -> float | None:
    """Half width of the two-sided 95 % interval of the geometric mean, relative to it: 0.02 is 2 %.

    Student's t on the logarithms, as everywhere in the gates; `None` below three cycles or for values that have no
    logarithm. It speaks of this run alone: cycles of one run share temperature, clocks and node state.
    """
    if len(values) < LEAST_CYCLES or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    quantile = student_quantile(1 - (1 - CONFIDENCE) / 2, len(logs) - 1)
    return math.expm1(quantile * stdev(logs) / math.sqrt(len(logs)))


def precise_after(outcomes: Sequence[Outcome], execution: Execution) -> float | None:
    """The half width of the headline's interval after these cycles, where it reaches `target_ci`; else `None`."""
    if execution.target_ci is None or len(outcomes) < execution.cycles:
        return None
    headline = metric(execution.headline)
    found = [headline.of(outcome.result) for outcome in outcomes if outcome.valid and outcome.result is not None]
    width = relative_half_width([value for value in found if value is not None])
    return width if width is not None and width <= execution.target_ci else None
