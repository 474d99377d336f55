"""`vllm bench serve --save-result` for `llem export`: one JSON object per result, in a folder with a file each.

`exports` loads it by name. Keys and units are vLLM's and must stay: `mean|median|p90|p99_ttft_ms` and so on in ms (tpot
without the first token, as there), `request_throughput`, `output_throughput` and `total_token_throughput` per second,
`duration` in seconds, `completed` and `failed` requests, `total_input_tokens`, `total_output_tokens`, `num_prompts`,
`max_concurrency`, `request_rate` (`inf` for offline batches), `backend`, `model_id`, `tokenizer_id`, `date`. Keys for
energy, which vLLM's readers ignore, are added: `energy_j`, `joules_per_output_token`, `avg_power_w`, and uncertainties
(k=2). What was not measured is left out.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import slug, write_json
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result

STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p99": "p99"}


def export(results: Results, out: Path) -> None:
    """A file per valid result in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for result in results.valid:
        name = slug(f"{result.run_id}-{result.study}-{result.experiment.id}")
        write_json(out / f"{name}-{result.experiment.config_hash[:8]}-c{result.cycle}.json", bench_result(result))


def bench_result(result: Result) -> dict[str, JsonValue]:
    """One result in vLLM's keys."""
    model = result.experiment.config.get("model")
    workload = result.experiment.config.get("workload")
    arrival = workload.get("arrival") if isinstance(workload, dict) else None
    settings = arrival if isinstance(arrival, dict) else {}
    rate, concurrency = settings.get("rate_per_s"), settings.get("concurrency")
    requests = result.workload.requests * result.workload.repeats
    entry: dict[str, JsonValue] = {
        "date": result.created_at,
        "backend": result.engine.name,
        "model_id": model if isinstance(model, str) else None,
        "tokenizer_id": model if isinstance(model, str) else None,
        "num_prompts": requests,
        "request_rate": rate if isinstance(rate, (int, float)) else "inf",
        "max_concurrency": concurrency if isinstance(concurrency, int) else None,
        "duration": result.throughput.duration_s or result.timing.get("measure_s"),
        "completed": requests - result.workload.failed_requests,
        "failed": result.workload.failed_requests,
        "total_input_tokens": result.tokens.input,
        "total_output_tokens": result.tokens.output,
        "request_throughput": result.throughput.requests_per_s,
        "output_throughput": result.throughput.output_tokens_per_s,
        "total_token_throughput": result.throughput.total_tokens_per_s,
        "energy_j": result.energy.energy_j,
        "uncertainty_j": result.energy.uncertainty_j,
        "joules_per_output_token": result.energy.joules_per_output_token,
        "joules_per_output_token_uncertainty": result.energy.joules_per_output_token_uncertainty,
        "avg_power_w": result.energy.avg_power_w,
    }
    latency = result.latency
    named = {"ttft": latency.ttft_s, "tpot": latency.tpot_s, "itl": latency.itl_chunk_s, "e2el": latency.e2el_s}
    for name, distribution in named.items():
        for theirs, ours in STATISTICS.items():
            seconds = getattr(distribution, ours, None)
            entry[f"{theirs}_{name}_ms"] = None if seconds is None else seconds * 1000
    return {key: value for key, value in entry.items() if value is not None}
