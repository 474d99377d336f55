"""AIPerf's `profile_export_aiperf.json` and the `profile_export.jsonl` beside it, a line per request: version 0.13.

`command` calls it. Records have times of the day in ns, metrics with their unit (docs.nvidia.com/aiperf, "Working with
Profile Export Files" and "JSON export schema"). Distributions of the summary may take in failed requests, and its time
between tokens leaves out the first piece's tokens: latencies are derived from the records alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from pytest_llem.job.measurement import RequestRecord
from pytest_llem.results.imports.benchmark import NS, Benchmark, BenchmarkFile, count, mapping, number, plain, summed

SUMMARY, RECORDS = "profile_export_aiperf.json", "profile_export.jsonl"
SECONDS_OF = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
LOADS = ("concurrency", "constant", "poisson", "gamma")
"""Its kinds of phases that are this project's loads of the same name."""
PROFILING = "profiling"
"""The phase that is measured; records of the warm-up stand in the same file."""


def is_summary(data: Mapping[str, Any]) -> bool:
    """Whether a file is the summary."""
    return "aiperf_version" in data or {"request_latency", "request_throughput", "input_config"} <= data.keys()


def is_record(line: Mapping[str, Any]) -> bool:
    """Whether a line is one of the records."""
    return "metrics" in line and "request_start_ns" in mapping(line.get("metadata"))


def benchmarks(source: BenchmarkFile) -> list[Benchmark]:
    """The one benchmark, of the summary or the records; what lies beside under the usual name is read as well."""
    summary: Mapping[str, Any] = {}
    records = source
    if source.path.suffix != ".jsonl":
        summary = source.object()
        records = _beside(source, RECORDS)
    elif source.path.with_name(SUMMARY).exists():
        summary = BenchmarkFile.read(source.path.with_name(SUMMARY)).object()
    lines = [line for line in records.lines() if mapping(line.get("metadata")).get("benchmark_phase") == PROFILING]
    if not lines:
        raise source.refused(f"{records.path} has no request that was profiled")
    requests = tuple(_record(records, index, line) for index, line in enumerate(lines))
    good = [each for each in requests if each.error is None]
    counted = number(mapping(summary.get("request_count")).get("avg"))
    if counted is not None and counted != len(good):
        raise source.refused(
            f"{SUMMARY} counts {counted:g} requests, and {RECORDS} has {len(good)}",
            fix="keep the two files of one run beside each other, whole",
        )
    start_ns, end_ns = min(each.start_ns for each in requests), max(each.end_ns for each in requests)
    figures = {
        f"{name}.{statistic}": value
        for name, entry in summary.items()
        for statistic, value in mapping(entry).items()
        if statistic in ("avg", "p50", "p99", "unit") and "unit" in mapping(entry)
    }
    config = mapping(summary.get("input_config"))
    named = _list(mapping(config.get("models")).get("items"))
    phases = [mapping(phase) for phase in _list(config.get("phases"))]
    phase = next((phase for phase in phases if phase.get("kind") == PROFILING), {})
    kind = str(phase.get("type"))
    return [
        Benchmark(
            tool="AIPerf",
            version=str(summary["aiperf_version"]) if summary.get("aiperf_version") else None,
            model=str(mapping(named[0]).get("name")) if named else None,
            name="aiperf",
            duration_s=(end_ns - start_ns) / NS,
            clock="realtime",
            start_ns=start_ns,
            end_ns=end_ns,
            input_tokens=summed([each.input_tokens for each in good]),
            output_tokens=summed([each.output_tokens for each in good]),
            succeeded=len(good),
            failed=len(requests) - len(good),
            load_shape=kind if kind in LOADS else "unknown",
            requests=requests,
            settings=plain({f"phase.{name}": value for name, value in phase.items()}),
            own=plain(figures),
        )
    ]


def _beside(source: BenchmarkFile, name: str) -> BenchmarkFile:
    path: Path = source.path.with_name(name)
    if not path.exists():
        fix = f"keep {name} beside it (its level of export is `records`, the default)"
        raise source.refused("a summary alone has no times of requests", fix=fix)
    return BenchmarkFile.read(path)


def _record(source: BenchmarkFile, index: int, line: Mapping[str, Any]) -> RequestRecord:
    """An answer ends with its last token: after ttft and the latency, both from the request's start on."""
    about, metrics = mapping(line.get("metadata")), mapping(line.get("metrics"))
    start_ns, end_ns = count(about.get("request_start_ns")), count(about.get("request_end_ns"))
    if start_ns is None or end_ns is None:
        raise source.refused(f"request {index}: no times")
    if line.get("error") or about.get("was_cancelled"):
        said = str(mapping(line.get("error")).get("message") or "cancelled")[:200]
        return RequestRecord(0, index, 0, 0, start_ns, end_ns, "error", error=said, failure="error", sent_ns=start_ns)
    given, made = (_tokens(metrics, f"{which}_sequence_length") for which in ("input", "output"))
    whole_s, first_s = (_seconds(metrics, name) for name in ("request_latency", "time_to_first_token"))
    if given is None or made is None or whole_s is None:
        raise source.refused(f"request {index}: no request_latency, or no counts of tokens")
    first_ns = None if first_s is None else start_ns + int(first_s * NS)
    return RequestRecord(
        repeat=0,
        index=index,
        input_tokens=given,
        output_tokens=made,
        start_ns=start_ns,
        end_ns=start_ns + int(whole_s * NS),
        finish_reason="unknown",
        first_token_ns=first_ns,
        chunk_times_ns=_arrivals(metrics, first_ns),
        sent_ns=start_ns,
    )


def _arrivals(metrics: Mapping[str, Any], first_ns: int | None) -> tuple[int, ...] | None:
    """When pieces of the answer came; `None` where it does not tell."""
    entry = mapping(metrics.get("inter_chunk_latency"))
    gaps, unit = [number(gap) for gap in _list(entry.get("value"))], SECONDS_OF.get(str(entry.get("unit")))
    if first_ns is None or unit is None or None in gaps:
        return None
    return tuple(first_ns + int(after * unit * NS) for after in accumulate([0.0, *(gap or 0.0 for gap in gaps)]))


def _tokens(metrics: Mapping[str, Any], name: str) -> int | None:
    return count(mapping(metrics.get(name)).get("value"))


def _seconds(metrics: Mapping[str, Any], name: str) -> float | None:
    entry = mapping(metrics.get(name))
    value, unit = number(entry.get("value")), SECONDS_OF.get(str(entry.get("unit")))
    return None if value is None or unit is None else value * unit


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
