"""Latency distributions from the times of requests and their tokens.

Definitions follow `vllm bench serve`: ttft is the first token's time after the request's start, tpot the time after
the first token divided by the tokens after the first, itl every gap between two tokens, e2el the whole request.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pytest_llem.measurement import RequestRecord
from pytest_llem.results.schema import Distribution, Latency


def percentile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile (0 to 1) of ascending values, by linear interpolation between order statistics."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def distribution(values: Sequence[float]) -> Distribution | None:
    """Mean, p50, p90 and p99; `None` for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 0.50),
        p90=percentile(ordered, 0.90),
        p99=percentile(ordered, 0.99),
    )


def latency(requests: Sequence[RequestRecord]) -> Latency:
    """Latencies in seconds over successful requests.

    One request without token times leaves ttft, tpot and itl `None`: a distribution over the others would be biased.
    """
    times: list[tuple[RequestRecord, tuple[int, ...]]] = []
    complete = True
    for request in requests:
        if request.token_times_ns is None:
            complete = False
        elif request.token_times_ns:
            times.append((request, request.token_times_ns))
    ttft = [(tokens[0] - request.start_ns) / 1e9 for request, tokens in times]
    tpot = [(tokens[-1] - tokens[0]) / (len(tokens) - 1) / 1e9 for _, tokens in times if len(tokens) > 1]
    itl = [(later - earlier) / 1e9 for _, tokens in times for earlier, later in pairwise(tokens)]
    return Latency(
        ttft_s=distribution(ttft) if complete else None,
        tpot_s=distribution(tpot) if complete else None,
        itl_s=distribution(itl) if complete else None,
        e2el_s=distribution([(request.end_ns - request.start_ns) / 1e9 for request in requests]),
    )
