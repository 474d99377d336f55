"""The section `latency`: distributions of request times, and those of a single request.

`derive` calls it, `slo` and `requests_table` ask for single requests, `summary` takes its percentiles, `metrics` how
many values they take. Latencies must stay those of `vllm bench serve`, where `itl_chunk_s` is what it calls itl.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pstdev

from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.percentiles import STANDARD, least_values, written
from pytest_llem.results.performance_schema import Distribution, Latency


def percentile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile (0 to 1) of ascending values, by linear interpolation between order statistics."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution(values: Iterable[float], percentiles: Sequence[float] = STANDARD) -> Distribution | None:
    """Mean and percentiles, those of too few values `None`; `None` for no values.

    `percentiles` are those of a study; the standard ones are stated anyway.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return None

    def of(share: float) -> float | None:
        return percentile(ordered, share / 100) if n >= least_values(share) else None

    return Distribution(
        n=n,
        mean=fmean(ordered),
        std=pstdev(ordered),
        p50=percentile(ordered, 0.5),
        p90=of(90),
        p99=of(99),
        percentiles={written(each): of(each) for each in percentiles if each not in STANDARD},
    )


@dataclass(frozen=True)
class RequestLatency:
    """The latencies of one answer in seconds; `None` for what its record does not tell, and what it has not.

    ttft is the first token's time after the request's start, tpot the time after it divided by the tokens after it,
    e2el the whole request. An answer ends with its last token.
    """

    ttft_s: float | None
    tpot_s: float | None
    e2el_s: float

    @classmethod
    def of(cls, request: RequestRecord) -> RequestLatency:
        """Those of a request that was answered."""
        (first, last), tokens = first_and_last_token_ns(request), request.output_tokens
        return cls(
            ttft_s=None if first is None else (first - request.start_ns) / 1e9,
            tpot_s=None if first is None or last is None or tokens < 2 else (last - first) / (tokens - 1) / 1e9,
            e2el_s=(request.end_ns - request.start_ns) / 1e9,
        )


def first_and_last_token_ns(request: RequestRecord) -> tuple[int | None, int | None]:
    """When the first and the last token came; `None` for both where the first one is not known, or there is none.

    The end of such a request may be that of a batch, long after its own last token.
    """
    if request.token_times_ns:
        return request.token_times_ns[0], request.token_times_ns[-1]
    if request.first_token_ns is None or not request.output_tokens:
        return None, None
    return request.first_token_ns, request.end_ns


def latency(requests: Sequence[RequestRecord], percentiles: Sequence[float] = STANDARD) -> Latency:
    """Latencies in seconds over successful requests.

    A single request without the time of its first token makes ttft and tpot `None`, one without the times of all tokens
    or arrivals the itl of those: a distribution over the others would be biased.
    """
    each = [RequestLatency.of(request) for request in requests]
    answered = [request for request in requests if request.output_tokens]
    ttft = [one.ttft_s for one in each if one.ttft_s is not None]
    tpot = [one.tpot_s for one in each if one.tpot_s is not None]
    complete = len(ttft) == len(answered)
    return Latency(
        ttft_s=distribution(ttft, percentiles) if complete else None,
        tpot_s=distribution(tpot, percentiles) if complete else None,
        itl_s=_gaps([request.token_times_ns for request in requests], percentiles),
        itl_chunk_s=_gaps([arrivals_ns(request) for request in answered], percentiles),
        e2el_s=distribution((one.e2el_s for one in each), percentiles),
    )


def _gaps(times_ns: Sequence[Sequence[int] | None], percentiles: Sequence[float]) -> Distribution | None:
    known = [times for times in times_ns if times is not None]
    if len(known) < len(times_ns):
        return None
    gaps = ((later - earlier) / 1e9 for times in known for earlier, later in pairwise(times))
    return distribution(gaps, percentiles)


def arrivals_ns(request: RequestRecord) -> Sequence[int] | None:
    """When parts of the answer arrived, however many tokens each brought."""
    if request.chunk_times_ns is not None or request.token_times_ns is None:
        return request.chunk_times_ns
    return tuple(dict.fromkeys(request.token_times_ns))
