"""`vllm bench serve --save-result` for `llem export`: one JSON object per result, in a folder with a file each.

`exports` loads it by name. Keys and units are those of vLLM's `vllm/benchmarks/serve.py` and must stay: latencies in
ms (tpot without the first token, itl per chunk, std divided by n), `date` in UTC, of the window's end, counts over
all repeats. `request_rate` is `inf` where a client sends all at once or a ramp stands beside it, and `null` offline,
where none sends, and for a schedule. A ramp here is linear in time, there over the requests: its strategy has another
name. `label` is the experiment; what `--metadata` adds there as keys of its own are here run, study, cycle and the
settings that are set, by their names in a study. Added are `arrival_process`, `repeats`, and the energy with meter,
`energy_measured` (false for an estimate) and k=2 uncertainties. What was not measured is `null`.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import slug, write_json
from pytest_llem.job.percentiles import STANDARD, written
from pytest_llem.results.comparability import written_settings
from pytest_llem.results.exports.load_shape import LoadShape, load_of
from pytest_llem.results.reading import Results, measurement_id
from pytest_llem.results.schema import Result

POISSON = ("poisson", "ramp", "all_at_once", "concurrency")
"""Processes with the burstiness of vLLM's default, which it states for loads that have none as well."""


def export(results: Results, out: Path) -> None:
    """A file per valid result in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for result in results.valid:
        name = slug(f"{result.study}-{result.experiment.id}")
        # By the run that measured: a folder that is written again has one file of what another run reused.
        source = f"{slug(result.experiment.config_hash[:8])}-{slug(measurement_id(result).run)}"
        write_json(out / f"{name}-c{result.cycle}-{source}.json", bench_result(result))


def bench_result(result: Result) -> dict[str, JsonValue]:
    """One result in vLLM's keys."""
    model = result.experiment.config.get("model")
    load, energy = load_of(result), result.energy
    of_one, failed = result.workload.requests, result.workload.failed_requests
    requests = None if of_one is None else of_one * result.workload.repeats
    entry: dict[str, JsonValue] = {
        "date": datetime.fromisoformat(result.measured_to or result.created_at).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": result.engine.name,
        "backend": result.engine.name,
        "label": result.experiment.id,
        "model_id": model if isinstance(model, str) else None,
        "tokenizer_id": model if isinstance(model, str) else None,
        "num_prompts": requests,
        "run": measurement_id(result).run,
        "study": result.study,
        "cycle": result.cycle,
        **{name: value for name, value in written_settings(result).items() if value not in (None, (), [])},
        "request_rate": _request_rate(load),
        "burstiness": 1.0 if load.process in POISSON else load.burstiness,
        "max_concurrency": load.max_concurrency,
        **_ramp(load),
        "arrival_process": load.process,
        "repeats": result.workload.repeats,
        "duration": result.throughput.duration_s or result.timing.get("measure_s"),
        "completed": None if requests is None or failed is None else requests - failed,
        "failed": failed,
        "total_input_tokens": result.tokens.input,
        "total_output_tokens": result.tokens.output,
        "request_throughput": result.throughput.requests_per_s,
        "request_goodput": None if result.slo is None else result.slo.goodput_requests_per_s,
        "output_throughput": result.throughput.output_tokens_per_s,
        "total_token_throughput": result.throughput.total_tokens_per_s,
        "energy_meter": energy.meter,
        "energy_measured": energy.measured,
        "energy_scope": energy.scope,
        "energy_j": energy.energy_j,
        "uncertainty_j": energy.uncertainty_j,
        "joules_per_output_token": energy.joules_per_output_token,
        "joules_per_output_token_uncertainty": energy.joules_per_output_token_uncertainty,
        "avg_power_w": energy.avg_power_w,
        "avg_power_w_uncertainty": energy.avg_power_w_uncertainty,
        "gain_uncertainty_rel": energy.gain_uncertainty_rel,
    }
    latency = result.latency
    named = {"ttft": latency.ttft_s, "tpot": latency.tpot_s, "itl": latency.itl_chunk_s, "e2el": latency.e2el_s}
    percentiles = [f"p{written(each)}" for each in sorted((*STANDARD, *latency.percentiles)) if each != 50]
    for name, distribution in named.items():
        seconds = {} if distribution is None else {**distribution.statistics, "std": distribution.std}
        theirs = {"mean": "mean", "median": "p50", "std": "std", **{each: each for each in percentiles}}
        for key, ours in theirs.items():
            value = seconds.get(ours)
            entry[f"{key}_{name}_ms"] = None if value is None else value * 1000
    return entry


def _request_rate(load: LoadShape) -> float | str | None:
    if load.process in ("offline", "schedule", "command"):
        return None
    return "inf" if load.rate_per_s is None or load.process == "ramp" else load.rate_per_s


def _ramp(load: LoadShape) -> dict[str, JsonValue]:
    if load.process != "ramp":
        return {}
    return {
        "ramp_up_strategy": "linear_in_time",
        "ramp_up_start_rps": load.rate_per_s,
        "ramp_up_end_rps": load.end_rate_per_s,
    }
