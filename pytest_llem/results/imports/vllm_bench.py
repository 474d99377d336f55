"""`vllm bench serve --save-result`, with `--save-detailed` request by request: vLLM's `vllm/benchmarks/serve.py`, 0.32.

`command` calls it. Its `start_times` are Python's `perf_counter`, on Linux CLOCK_MONOTONIC (time(3) of Python), and its
duration ends with the last answer. Its ttft, tpot, e2el and, between arrivals, itl are those of this project, so that a
summary's are taken over: in ms, std divided by n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.percentiles import least_values
from pytest_llem.results.imports.benchmark import NS, Benchmark, BenchmarkFile, count, number, plain, text
from pytest_llem.results.performance_schema import Distribution, Latency

DETAILS = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "errors")
COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens")
SETTINGS = ("request_rate", "burstiness", "max_concurrency", "num_prompts", "backend", "label")


def is_it(data: Mapping[str, Any]) -> bool:
    """Whether a file is one of this tool."""
    return {"duration", "completed", "total_input_tokens", "num_prompts", "date"} <= data.keys()


def benchmarks(source: BenchmarkFile, data: Mapping[str, Any]) -> list[Benchmark]:
    """The one benchmark of the file."""
    if "energy_meter" in data:
        raise source.refused("an export of pytest-llem", fix="name the run that it is of: its own results have it all")
    duration_s, succeeded = number(data.get("duration")), count(data.get("completed"))
    if not duration_s or succeeded is None or "total_output_tokens" not in data:
        raise source.refused("no duration, or no count of what was generated, in it")
    requests = _requests(source, data)
    for name in COUNTS:
        if data.get(name) is not None and count(data[name]) is None:
            raise source.refused(f"{name} {data[name]!r} is no count")
    failed = count(data.get("failed"))
    if failed is None:  # older versions do not state it
        failed = max(0, (count(data.get("num_prompts")) or succeeded) - succeeded)
    end_ns = None if requests is None else max((each.end_ns for each in requests), default=None)
    taken = {*SETTINGS, *DETAILS, "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"}
    return [
        Benchmark(
            tool="vllm bench serve",
            version=None,
            model=text(data.get("model_id")),
            name="vllm-bench-serve",
            duration_s=duration_s,
            clock="monotonic",
            start_ns=None if end_ns is None else end_ns - int(duration_s * NS),
            end_ns=end_ns,
            input_tokens=count(data.get("total_input_tokens")),
            output_tokens=count(data.get("total_output_tokens")),
            succeeded=succeeded,
            failed=failed,
            load_shape=_load(data),
            requests=requests,
            latency=_latency(data, succeeded),
            settings=plain({name: data[name] for name in SETTINGS if name in data}),
            own=plain({name: value for name, value in data.items() if name not in taken}),
            date=text(data.get("date")),
        )
    ]


def _requests(source: BenchmarkFile, data: Mapping[str, Any]) -> tuple[RequestRecord, ...] | None:
    """The requests one by one; `None` in a summary, and in what versions without start times wrote."""
    columns: list[Sequence[Any]] = [data.get(name) or () for name in DETAILS]
    if not all(columns):
        return None
    if len({len(column) for column in columns}) > 1:
        raise source.refused("its lists of requests have different lengths")
    records = []
    for index, (given, made, start, ttft, gaps, error) in enumerate(zip(*columns, strict=True)):
        start_s, first_s = number(start), number(ttft)
        steps = [number(gap) for gap in gaps]
        if start_s is None or first_s is None or None in steps or count(given) is None or count(made) is None:
            raise source.refused(f"request {index}: a time or a count is no number")
        start_ns = int(start_s * NS)
        offsets = [*accumulate([first_s, *(step or 0.0 for step in steps)])]
        arrivals = tuple(start_ns + int(offset * NS) for offset in offsets)
        records.append(
            RequestRecord(
                repeat=0,
                index=index,
                input_tokens=count(given) or 0,
                output_tokens=0 if error else count(made) or 0,
                start_ns=start_ns,
                end_ns=arrivals[-1],
                finish_reason="error" if error else "unknown",
                error=str(error)[:200] if error else None,
                failure="error" if error else None,
                first_token_ns=None if error else arrivals[0],
                chunk_times_ns=None if error else arrivals,
                sent_ns=start_ns,
            )
        )
    return tuple(records)


def _load(data: Mapping[str, Any]) -> str:
    if data.get("ramp_up_strategy"):
        return "ramp"
    if number(data.get("request_rate")) is not None:
        return "poisson" if number(data.get("burstiness")) in (None, 1.0) else "gamma"
    return "all_at_once" if data.get("max_concurrency") is None else "concurrency"


def _latency(data: Mapping[str, Any], n: int) -> Latency:
    """Those of a summary. Percentiles of too few values are `None`, as everywhere."""

    def of(name: str) -> Distribution | None:
        known = {key: number(data.get(f"{key}_{name}_ms")) for key in ("mean", "median", "std", "p90", "p99")}
        mean, median = known["mean"], known["median"]
        if mean is None or median is None or not n:
            return None
        std = known["std"]

        def percentile(share: float) -> float | None:
            value = known[f"p{share:g}"]
            return None if value is None or n < least_values(share) else value / 1e3

        counted = n if name in ("ttft", "e2el") else None  # tpot has those of two tokens and more
        return Distribution(
            n=counted,
            mean=mean / 1e3,
            std=None if std is None else std / 1e3,
            p50=median / 1e3,
            p90=percentile(90),
            p99=percentile(99),
        )

    return Latency(ttft_s=of("ttft"), tpot_s=of("tpot"), itl_s=None, itl_chunk_s=of("itl"), e2el_s=of("e2el"))
