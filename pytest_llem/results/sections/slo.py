"""The section `slo`: how many requests kept the limits of the study, and what serving those in time cost.

`derive` calls it. A good request is that of `vllm bench serve --goodput`: it succeeded and kept every limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from pytest_llem.job.config import SloSettings
from pytest_llem.job.measurement import Measured, RequestRecord
from pytest_llem.results.energy_schema import Energy
from pytest_llem.results.proportion import binomial_interval
from pytest_llem.results.schema import SloSection
from pytest_llem.results.sections.energy import divided, inverse, ratio, uncertainty_of, value_of
from pytest_llem.results.sections.performance import RequestLatency, arrivals_ns

_OBSERVED: Mapping[str, Callable[[RequestRecord, RequestLatency], float | None]] = {
    "ttft_s": lambda request, latency: latency.ttft_s,
    "tpot_s": lambda request, latency: latency.tpot_s if request.output_tokens > 1 else 0.0,
    "itl_s": lambda request, latency: None if arrivals_ns(request) is None else latency.gap_s or 0.0,
    "e2el_s": lambda request, latency: latency.e2el_s,
}
"""What each limit is held against; an answer of one token, or in one part, has no time between tokens and keeps any."""


def limits(settings: SloSettings) -> dict[str, float]:
    """The limits that are set, by name; empty where there is no SLO."""
    stated = asdict(settings)
    return {name: stated[name] for name in _OBSERVED if stated[name] is not None}


def kept(settings: SloSettings, request: RequestRecord) -> dict[str, bool | None]:
    """Whether a request kept each limit that is set; `None` where its record does not tell.

    A request that failed, or whose answer is empty, kept none: `vllm bench serve` counts both as failed.
    """
    if request.error is not None or not request.output_tokens:
        return dict.fromkeys(limits(settings), False)
    latency = RequestLatency.of(request)
    observed = {name: _OBSERVED[name](request, latency) for name in limits(settings)}
    return {name: None if value is None else value <= getattr(settings, name) for name, value in observed.items()}


def is_good(settings: SloSettings, request: RequestRecord) -> bool | None:
    """Whether a request kept every limit; `None` where its record does not tell, and without an SLO."""
    each = kept(settings, request).values()
    return None if None in each or not each else all(each)


def derive_slo(
    settings: SloSettings, requests: Sequence[RequestRecord], duration_s: float, energy: Energy
) -> SloSection | None:
    """The section over the requests of all repeats; `None` where nothing is limited.

    A single request whose record does not tell a time leaves that limit unjudged: a share of the others is biased.
    """
    stated = limits(settings)
    if not stated:
        return None
    each = [kept(settings, request) for request in requests]
    met = {name: _share([of[name] for of in each]) for name in stated}
    unknown = [name for name, share in met.items() if share is None]
    good, count, tokens, share, low, high = None, None, None, None, None, None
    if not unknown:
        good = [request for request, of in zip(requests, each, strict=True) if all(of.values())]
        count, tokens, share = len(good), sum(request.output_tokens for request in good), len(good) / len(requests)
        low, high = binomial_interval(count, len(requests))
    drawn = None
    if energy.energy_j is not None:
        drawn = Measured(energy.energy_j, math.inf if energy.uncertainty_j is None else energy.uncertainty_j)
    joules = divided(drawn, count or 0)
    per_joule = inverse(joules) if count != 0 else drawn and Measured(0.0, 0.0)
    return SloSection(
        **asdict(settings),
        requests=len(requests),
        good=count,
        met=met,
        share=share,
        share_low=low,
        share_high=high,
        reached=None if low is None or high is None else _reached(settings.at, low, high),
        goodput_requests_per_s=ratio(count, duration_s),
        goodput_output_tokens_per_s=ratio(tokens, duration_s),
        joules_per_good_request=value_of(joules),
        joules_per_good_request_uncertainty=uncertainty_of(joules),
        good_requests_per_joule=value_of(per_joule),
        good_requests_per_joule_uncertainty=uncertainty_of(per_joule),
        reason=_reason(requests, unknown, count),
    )


def _share(kept_it: Sequence[bool | None]) -> float | None:
    return sum(map(bool, kept_it)) / len(kept_it) if kept_it and None not in kept_it else None


def _reached(at: float, low: float, high: float) -> bool | None:
    if low >= at:
        return True
    return False if high < at else None


def _reason(requests: Sequence[RequestRecord], unknown: Sequence[str], good: int | None) -> str | None:
    if not requests:
        return "no request was measured"
    if unknown:
        return f"the engine did not tell the times that {' and '.join(unknown)} needs, of every request"
    return None if good else f"none of {len(requests)} requests was good, so no energy was spent on one"
