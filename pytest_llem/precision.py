"""Precision on demand: whether the cycles so far pin down the headline metric well enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from pytest_llem.results.statistics import student_quantile

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
