"""MLPerf Inference names for `llem export`: a JSON list, one entry per result, keys as in LoadGen and MLPerf Power.

`exports` loads it by name; keys must stay theirs. From `mlperf_log_summary.txt`: `SUT name`, `Scenario` (`Offline`;
`Server` for arrival processes), `Mode`, `Samples per second`, `Tokens per second`, `Result is` (our validity), `Min
duration satisfied` (>= 60 s, MLPerf Power's least), latencies in ns as `50.00 percentile latency (ns)`. From MLPerf
Power: `Average power (W)`, `Energy per sample (J)`, of the measure window. LoadGen did not issue the queries and no
wall meter measured, so this is no submission, as `deviations` states in every entry.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result

MIN_DURATION_S = 60.0
"""MLPerf Power: the shortest run that it accepts."""
PERCENTILES = {"50.00": "p50", "90.00": "p90", "99.00": "p99"}


def export(results: Results, out: Path) -> None:
    """All results as one JSON list; invalid ones say `INVALID`, as LoadGen does."""
    write_json(out, [summary(result) for result in results])


def summary(result: Result) -> dict[str, JsonValue]:
    """One result in MLPerf's names."""
    duration = result.timing.get("measure_s")
    latency = result.latency
    entry: dict[str, JsonValue] = {
        "SUT name": f"{result.study}[{result.experiment.id}] on {result.engine.name} {result.engine.version}",
        "Scenario": "Offline" if result.workload.load_shape == "offline" else "Server",
        "Mode": "PerformanceOnly",
        "Samples per second": result.throughput.requests_per_s,
        "Tokens per second": result.throughput.output_tokens_per_s,
        "Result is": "VALID" if result.validity.valid else "INVALID",
        "Min duration satisfied": None if duration is None else ("Yes" if duration >= MIN_DURATION_S else "NO"),
        "Average power (W)": result.energy.avg_power_w,
        "Energy per sample (J)": result.energy.joules_per_request,
        "run_id": result.run_id,
        "cycle": result.cycle,
        "deviations": [
            "queries were not issued by LoadGen",
            f"energy is that of {result.energy.scope or 'nothing'} by the meter {result.energy.meter}, not of the "
            "whole system at the wall",
        ],
    }
    if latency.e2el_s is not None:
        entry["Mean latency (ns)"] = round(latency.e2el_s.mean * 1e9)
    named = (
        ("latency", latency.e2el_s),
        ("first token latency", latency.ttft_s),
        ("time to output token", latency.tpot_s),
    )
    for what, distribution in named:
        for percentile, statistic in PERCENTILES.items():
            seconds = getattr(distribution, statistic, None)
            if seconds is not None:
                entry[f"{percentile} percentile {what} (ns)"] = round(seconds * 1e9)
    return entry
