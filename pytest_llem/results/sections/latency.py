"""The `latency` section: distributions from the times of requests and their tokens; `derive` calls it.

Definitions follow `vllm bench serve`: ttft is the first token's time after the request's start, tpot the time after
the first token divided by the tokens after the first, itl every gap between two tokens, e2el the whole request.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pytest_llem.job.measurement import RequestRecord
from pytest_llem.results.schema import Distribution, Latency


def percentile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile (0 to 1) of ascending values, by linear interpolation between order statistics."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution(values: Sequence[float]) -> Distribution | None:
    """Mean, p50, p90 and p99; `None` for no values."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.50, 0.90, 0.99))
    return Distribution(mean=sum(ordered) / len(ordered), p50=p50, p90=p90, p99=p99)


def latency(requests: Sequence[RequestRecord]) -> Latency:
    """Latencies in seconds over successful requests.

    A single request without the time of its first token makes ttft and tpot `None`, one without the times of all tokens
    makes itl `None`: a distribution over the others would be biased. An answer ends with its last token.
    """
    answered = [request for request in requests if request.output_tokens]
    timed = [(request, first) for request in answered if (first := first_token_ns(request)) is not None]
    complete = len(timed) == len(answered)
    all_timed = all(request.token_times_ns is not None for request in requests)
    ttft = [(first - request.start_ns) / 1e9 for request, first in timed]
    tpot = [(last_token_ns(r) - first) / (r.output_tokens - 1) / 1e9 for r, first in timed if r.output_tokens > 1]
    itl = [(later - earlier) / 1e9 for r in answered for earlier, later in pairwise(r.token_times_ns or ())]
    return Latency(
        ttft_s=distribution(ttft) if complete else None,
        tpot_s=distribution(tpot) if complete else None,
        itl_s=distribution(itl) if all_timed else None,
        e2el_s=distribution([(request.end_ns - request.start_ns) / 1e9 for request in requests]),
    )


def first_token_ns(request: RequestRecord) -> int | None:
    """Time of a request's first token, CLOCK_MONOTONIC; `None` where it is unknown."""
    return request.token_times_ns[0] if request.token_times_ns else request.first_token_ns


def last_token_ns(request: RequestRecord) -> int:
    """Time of a request's last token, CLOCK_MONOTONIC."""
    return request.token_times_ns[-1] if request.token_times_ns else request.end_ns
