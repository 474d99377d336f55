"""Intervals of a proportion: how far a share of requests may be from that of the load they came from.

`sections.slo` calls it. It is pure, and its intervals must hold the true share in 95 % of measurements: docs/servers.md
has the rates.
"""

from __future__ import annotations

from collections.abc import Callable

from pytest_llem.results.statistics import CONFIDENCE, incomplete_beta


def binomial_interval(successes: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson, Biometrika 26, 1934, 404-413).

    It holds the true share with at least this confidence for every number of trials. Others, Wilson's too, do so only
    on average over shares, and fall below near 0 and 1 (Brown, Cai and DasGupta, Statistical Science 16, 2001), where
    an SLO's 99 % is. Numbers need not be whole. Raises `ValueError` without trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials}")
    tail, failures = (1 - confidence) / 2, trials - successes
    low = _where(lambda share: incomplete_beta(successes, failures + 1, share) >= tail) if successes else 0.0
    high = _where(lambda share: incomplete_beta(successes + 1, failures, share) >= 1 - tail) if failures else 1.0
    return low, high


def _where(reached: Callable[[float], bool]) -> float:
    """The share at which a condition that stays true begins to hold, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return (low + high) / 2
