"""Intervals of a proportion: how far a share of requests may be from that of the load they came from.

`sections.slo` and `search` call it, `gates` over the cycles of an experiment. It is pure: docs/load.md has how
often its intervals hold the true share.

Requests are no independent trials. Neighbours wait in the same queue, and a repeat sends the same requests at the same
times again, which tells of the server and not of the load. So the binomial interval is that of an effective number of
requests (Korn and Graubard, Survey Methodology 24, 1998, 193-201): of as many independent ones as would tell the share
as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, variance

from pytest_llem.results.distributions import incomplete_beta
from pytest_llem.results.statistics import CONFIDENCE

BATCHES = 10
"""Chosen: more would be shorter than a queue takes to empty, fewer say too little (Schmeiser, "Batch size effects in
the analysis of simulation output", Operations Research 30, 1982: 10 to 30)."""


def effective_count(outcomes: Sequence[float], most: int) -> float:
    """How many independent requests, up to `most`, would tell their share as well as these do.

    `outcomes` are in order of arrival: of each request the share of its repeats that were good. Their mean scatters as
    the means of ten batches of neighbours say. Where all are alike nothing shows it, and each counts as one.
    """
    count, batches = len(outcomes), min(BATCHES, len(outcomes))
    share = fmean(outcomes)
    if batches < 2 or not 0 < share < 1:
        return float(count)
    edges = [batch * count // batches for batch in range(batches + 1)]
    spread = variance([fmean(outcomes[start:end]) for start, end in pairwise(edges)]) / batches
    return min(max(share * (1 - share) / spread, 1.0), most) if spread else float(most)


def pooled(shares: Sequence[float], counts: Sequence[float], *, correlated: bool = False) -> tuple[float, float]:
    """The share over cycles that send the same requests again, and the effective number of those.

    They count once, and for less where cycles differ by more than chance explains. `correlated` ones shared a server.
    """
    share, count = fmean(shares), fmean(counts)
    between = variance(shares) / (1 if correlated else len(shares)) if len(shares) > 1 else 0.0
    return share, min(count, max(1.0, share * (1 - share) / between)) if between else count


@lru_cache(maxsize=1024)
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


def reaches(at: float, low: float, high: float) -> bool | None:
    """Whether a share with this interval is at least `at`; `None` where the interval holds that."""
    if low >= at:
        return True
    return False if high < at else None


def _where(reached: Callable[[float], bool]) -> float:
    """The share at which a condition that stays true begins to hold, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return (low + high) / 2
