"""The section `slo`: how many requests kept the limits of the study, and what serving those in time cost.

`derive` calls it. A good request is that of `vllm bench serve --goodput`: it succeeded and kept every limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import fmean

from pytest_llem.job.config import SloSettings
from pytest_llem.job.measurement import Measured, RequestRecord
from pytest_llem.results.comparability import CORRELATED
from pytest_llem.results.energy_schema import Energy
from pytest_llem.results.performance_schema import SloSection
from pytest_llem.results.proportion import binomial_interval, effective_count, pooled, reaches
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import divided, drawn_by, inverse, ratio, uncertainty_of, value_of
from pytest_llem.results.sections.performance import RequestLatency, arrivals_ns
from pytest_llem.results.statistics import CONFIDENCE

_OBSERVED: Mapping[str, Callable[[RequestRecord, RequestLatency], float | None]] = {
    "ttft_s": lambda request, latency: latency.ttft_s,
    "tpot_s": lambda request, latency: latency.tpot_s if request.output_tokens > 1 else 0.0,
    "itl_s": lambda request, latency: _longest_gap_s(request) if request.output_tokens > 1 else 0.0,
    "e2el_s": lambda request, latency: latency.e2el_s,
}
"""What each limit is held against; an answer of one token has no time between tokens, and keeps any."""


def _longest_gap_s(request: RequestRecord) -> float | None:
    """0 for an answer that came in one part."""
    arrivals = arrivals_ns(request)
    return None if arrivals is None else max((after - before for before, after in pairwise(arrivals)), default=0) / 1e9


def limits(settings: SloSettings) -> dict[str, float]:
    """The limits that are set, by name; empty where there is no SLO."""
    return {name: limit for name in _OBSERVED if (limit := getattr(settings, name)) is not None}


def kept(settings: SloSettings, request: RequestRecord) -> dict[str, bool | None]:
    """Whether a request kept each limit that is set; `None` where its record does not tell.

    A request that failed, or whose answer is empty, kept none: `vllm bench serve` counts both as failed.
    """
    stated = limits(settings)
    if request.error is not None or not request.output_tokens:
        return dict.fromkeys(stated, False)
    latency = RequestLatency.of(request)
    observed = {name: _OBSERVED[name](request, latency) for name in stated}
    return {name: None if value is None else value <= stated[name] for name, value in observed.items()}


def is_good(settings: SloSettings, request: RequestRecord) -> bool | None:
    """Whether a request kept every limit; `None` where its record does not tell of one, and without an SLO."""
    each = kept(settings, request).values()
    return False if False in each else None if None in each or not each else True


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
    count, tokens, share, effective, low, high = None, None, None, None, None, None
    if not unknown:
        good = [all(of.values()) for of in each]
        count = sum(good)
        tokens = sum(request.output_tokens for request, counts in zip(requests, good, strict=True) if counts)
        share, effective = count / len(requests), effective_count(_in_order(requests, good), len(requests))
        low, high = binomial_interval(share * effective, effective)
    drawn = drawn_by(energy)
    joules = divided(drawn, count or 0)
    per_joule = inverse(joules) if count != 0 else drawn and Measured(0.0, 0.0)
    return SloSection(
        **asdict(settings),
        requests=len(requests),
        good=count,
        met=met,
        share=share,
        effective_requests=effective,
        share_low=low,
        share_high=high,
        offered_per_s=offered_per_s(requests),
        reached=None if low is None or high is None else reaches(settings.at, low, high),
        goodput_requests_per_s=ratio(count, duration_s),
        goodput_output_tokens_per_s=ratio(tokens, duration_s),
        joules_per_good_request=value_of(joules),
        joules_per_good_request_uncertainty=uncertainty_of(joules),
        good_requests_per_joule=value_of(per_joule),
        good_requests_per_joule_uncertainty=uncertainty_of(per_joule),
        reason=_reason(requests, unknown, count),
    )


def share_interval(results: Sequence[Result], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """The interval of the share of good requests over an experiment's cycles; `None` where they do not tell it."""
    told = [(of.share, of.effective_requests) for of in (result.slo for result in results) if of is not None]
    known = [(share, count) for share, count in told if share is not None and count is not None]
    if not known:
        return None, None
    shares, counts = zip(*known, strict=True)
    share, count = pooled(shares, counts, correlated=results[0].runner.isolation in CORRELATED)
    return binomial_interval(share * count, count, confidence)


def _in_order(requests: Sequence[RequestRecord], good: Sequence[bool]) -> list[float]:
    """Of each request, in the order in which they came, the share of its repeats that were good."""
    first: dict[int, int] = {}
    outcomes: dict[int, list[bool]] = {}
    for request, counts in zip(requests, good, strict=True):
        first.setdefault(request.index, request.start_ns)
        outcomes.setdefault(request.index, []).append(counts)
    return [fmean(outcomes[index]) for index in sorted(outcomes, key=first.__getitem__)]


def offered_per_s(requests: Sequence[RequestRecord]) -> float | None:
    """The rate at which requests, or sessions, were due within repeats; `None` where all were at once."""
    due: dict[int, list[int]] = {}
    for request in requests:
        if request.turn in (None, 1):
            due.setdefault(request.repeat, []).append(request.start_ns if request.due_ns is None else request.due_ns)
    span_s = sum(max(times) - min(times) for times in due.values()) / 1e9
    return (sum(map(len, due.values())) - len(due)) / span_s if span_s else None


def _share(kept_it: Sequence[bool | None]) -> float | None:
    return sum(map(bool, kept_it)) / len(kept_it) if kept_it and None not in kept_it else None


def _reason(requests: Sequence[RequestRecord], unknown: Sequence[str], good: int | None) -> str | None:
    if not requests:
        return "no request was measured"
    if unknown:
        return f"the engine did not tell the times that {' and '.join(unknown)} needs, of every request"
    return None if good else f"none of {len(requests)} requests was good, so no energy was spent on one"
