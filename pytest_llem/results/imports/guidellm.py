"""GuideLLM's `benchmarks.json`: its `benchmark/schemas` and `schemas/base/request_stats.py`, version 0.8.1.

`command` calls it. Times are those of the day in seconds. What it calls time per output token has the first one in
it, and its distribution of time between tokens weighs a request by its tokens: neither is one of this project, so
latencies are derived from its requests alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.report import Note
from pytest_llem.results.imports.benchmark import (
    NS,
    Benchmark,
    BenchmarkFile,
    count,
    mapping,
    number,
    plain,
    summed,
    text,
)

LOADS = {
    "synchronous": "concurrency",
    "concurrent": "concurrency",
    "throughput": "all_at_once",
    "constant": "constant",
    "poisson": "poisson",
}
"""Its strategies under this project's names of loads."""
ROUNDING = 1e-9
"""Chosen: what adding a million floats up may miss by (IEEE 754), and far less than a token of a million."""


def is_it(data: Mapping[str, Any]) -> bool:
    """Whether a file is one of this tool."""
    return isinstance(data.get("benchmarks"), list) and "guidellm_version" in mapping(data.get("metadata"))


def benchmarks(source: BenchmarkFile, data: Mapping[str, Any]) -> list[Benchmark]:
    """One for each of the file, in its order."""
    version = text(mapping(data["metadata"])["guidellm_version"])
    found = [_benchmark(source, mapping(one), position, version) for position, one in enumerate(data["benchmarks"])]
    if not found:
        raise source.refused("it holds no benchmark")
    return found


def _benchmark(source: BenchmarkFile, data: Mapping[str, Any], position: int, version: str | None) -> Benchmark:
    times, metrics = mapping(data.get("scheduler_metrics")), mapping(data.get("metrics"))
    config = mapping(data.get("config"))
    strategy, backend = mapping(config.get("strategy")), mapping(config.get("backend"))
    started, ended = number(times.get("measure_start_time")), number(times.get("measure_end_time"))
    totals = mapping(metrics.get("request_totals"))
    succeeded = count(totals.get("successful"))
    unsuccessful = [count(totals.get(name, 0)) for name in ("errored", "incomplete")]
    if started is None or ended is None or ended <= started or succeeded is None or None in unsuccessful:
        raise source.refused(f"benchmark {position + 1}: no times of its measurement, or no count of requests")
    if number(data.get("warmup_duration")) or number(data.get("cooldown_duration")):
        fix = "let it run without them (--warmup, --cooldown): requests across their edges have tokens on both sides"
        raise source.refused(f"benchmark {position + 1}: it has a warm-up or cool-down", fix=fix)
    listed = mapping(data.get("requests")).get("successful")
    requests = _requests(source, listed if isinstance(listed, list) else [])
    notes = []
    if len(requests) != succeeded:
        why = f"the file has {len(requests)} of {succeeded} requests: latencies are not known, nor all of their times"
        notes.append(Note("requests_not_listed", why))
    whole = requests if requests and len(requests) == succeeded else None
    kind = str(strategy.get("type_") or "unknown")
    figures = {
        f"{name}.{statistic}": mapping(mapping(metrics.get(name)).get("successful")).get(statistic)
        for name in metrics
        for statistic in ("mean", "median")
    }
    return Benchmark(
        tool="GuideLLM",
        version=version,
        model=str(backend["model"]) if backend.get("model") else None,
        name=f"guidellm-{kind}-{position + 1}",
        duration_s=ended - started,
        clock="realtime",
        start_ns=int(started * NS),
        end_ns=int(ended * NS),
        input_tokens=_sum(source, metrics, "prompt_token_count"),
        output_tokens=_sum(source, metrics, "output_token_count"),
        succeeded=succeeded,
        failed=summed(unsuccessful) or 0,
        load_shape=LOADS.get(kind, "unknown"),
        requests=whole,
        settings=plain({f"strategy.{name}": value for name, value in strategy.items()}),
        own={name: value for name, value in plain(figures).items() if value is not None},
        notes=tuple(notes),
    )


def _sum(source: BenchmarkFile, metrics: Mapping[str, Any], name: str) -> int | None:
    """Over all successful requests, also those that are not listed; it adds floats up, which may miss by a rounding."""
    stated = number(mapping(mapping(metrics.get(name)).get("successful")).get("total_sum"))
    if stated is None:
        return None
    if stated < 0 or abs(stated - round(stated)) > ROUNDING * max(1.0, stated):
        raise source.refused(f"{name}.successful.total_sum {stated:g} is no count")
    return round(stated)


def _requests(source: BenchmarkFile, listed: Sequence[Any]) -> tuple[RequestRecord, ...]:
    """An answer ends with its last token, where the time of that is known."""
    records = []
    for index, entry in enumerate(map(mapping, listed)):
        timings = mapping(mapping(entry.get("info")).get("timings"))
        start_s, end_s = number(timings.get("request_start")), number(timings.get("request_end"))
        first_s, last_s = (number(timings.get(f"{which}_token_iteration")) for which in ("first", "last"))
        given, made = count(entry.get("prompt_tokens")), count(entry.get("output_tokens"))
        if start_s is None or end_s is None or given is None or made is None:
            raise source.refused(f"request {index}: no times, or no counts of tokens")
        records.append(
            RequestRecord(
                repeat=0,
                index=index,
                input_tokens=given,
                output_tokens=made,
                start_ns=int(start_s * NS),
                end_ns=int((end_s if last_s is None else last_s) * NS),
                finish_reason="unknown",
                first_token_ns=None if first_s is None else int(first_s * NS),
                cached_tokens=count(entry.get("cached_tokens")),
                sent_ns=int(start_s * NS),
            )
        )
    return tuple(records)
