"""Percentiles of latencies that a study chooses: how each is written, and how many values it takes.

`metric_names` makes names of them (`ttft_p99_9_s`), `study.parts` checks them, and results state them. How one is
written must stay: results, baselines and columns hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

STANDARD = (50.0, 90.0, 99.0)
"""Those that every result states, whatever a study chooses."""
FINEST = 1000
"""Parts of a percent that are told apart. Chosen: 99.999 takes 100,000 values, more than any study has requests."""


def written(percentile: float) -> str:
    """A percentile as it is written: `95`, `99.9`."""
    return f"{round(percentile * FINEST) / FINEST:g}"


def least_values(percentile: float) -> int:
    """How many values a percentile takes, so that one is expected beyond it: 1/(1 - p), below the median 1/p.

    With fewer, interpolation gives nearly the largest, which grows with their number. The median of any number stands.
    """
    part, whole = round(percentile * FINEST), 100 * FINEST
    return 1 if 2 * part == whole else -(-whole // min(part, whole - part))


def problems(percentiles: Iterable[float]) -> Iterator[tuple[int, str]]:
    """What is wrong with a list of percentiles that are above 0 and below 100, and the place in it."""
    before = 0.0
    for place, percentile in enumerate(percentiles):
        if abs(percentile * FINEST - round(percentile * FINEST)) > 1e-6:
            yield place, f"{percentile} has more than three decimals"
        elif percentile == before:
            yield place, f"{written(percentile)} stands there twice"
        elif percentile < before:
            yield place, f"{written(percentile)} comes after {written(before)}"
        before = percentile
