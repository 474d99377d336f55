"""MLPerf Inference names for `llem export`: a JSON list, one entry per result, keys as in LoadGen and MLPerf Power.

`exports` loads it by name; keys must stay those of `mlperf_log_summary.txt`. Scenarios are LoadGen's: `SingleStream`
is one request after another, `MultiStream` one batch after another, `Offline` all at once, `Server` Poisson arrivals,
other loads are none (`null`); throughput has the scenario's own keys. `Result is` says `VALID` for a valid result of
at least 600 s. It is no submission: `deviations`, never empty, say why. From MLPerf Power are `Average power (W)` and
`Energy per sample (J)`, of the measure window; added are `energy_measured` (false for an estimate) and k=2
uncertainties. `energy_report` is the object that mlcommons/inference pull request 2587 proposes
(`energy-reporting/mlperf_energy_schema_v6.json`), with the fields that were measured as it defines them;
`energy_report_lacks` names those that it requires and that are not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json
from pytest_llem.job.percentiles import STANDARD, written
from pytest_llem.results.exports.load_shape import LoadShape, load_of
from pytest_llem.results.exports.sensor import sensor_of
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import DECODE, MEASURE, PREFILL

MIN_DURATION_S = 600.0
"""MLPerf Inference rules, section "Scenarios", and LoadGen's mlperf.conf: `min_duration` of every scenario."""
QUERY_SAMPLES = 8
"""LoadGen's mlperf.conf: `MultiStream.samples_per_query`."""
RATES = {
    "Offline": ("Samples per second", "Tokens per second"),
    "Server": ("Completed samples per second", "Completed tokens per second"),
    "SingleStream": ("QPS w/ loadgen overhead", "TPS w/ loadgen overhead"),
}
"""Throughput by scenario; LoadGen writes none of `MultiStream`, and the proposal for energy has no name for it."""
METHODS = ("nvml", "rapl")
"""Names of the proposal that are interfaces of shipped meters; AMD SMI is not its `rocm_smi`."""
RUNTIMES = {"python": "python", "torch": "pytorch", "vllm": "vllm"}
REQUIRED = (
    "task_type",
    "total_energy_joules",
    "static_power_baseline_watts",
    "inference_active_power_watts",
    "measurement_method",
    "sampling_rate_hz",
    "thermal_stabilization_seconds",
    "scenario",
    "accelerator_count",
    "energy_per_token_joules",
    "prefill_energy_joules",
    "generation_energy_joules",
    "output_token_count",
    "batch_size",
    "input_sequence_length",
    "output_sequence_length",
)
"""Of every report, and of those of an LLM."""


def export(results: Results, out: Path) -> None:
    """All results as one JSON list; invalid ones say `INVALID`, as LoadGen does."""
    write_json(out, [summary(result) for result in results])


def summary(result: Result) -> dict[str, JsonValue]:
    """One result in MLPerf's names."""
    duration = result.throughput.duration_s or result.timing.get("measure_s")
    long_enough = duration is not None and duration >= MIN_DURATION_S
    latency, energy, load = result.latency, result.energy, load_of(result)
    scenario = scenario_of(load)
    reported = energy_report(result, load, scenario)
    rates = (result.throughput.requests_per_s, result.throughput.output_tokens_per_s)
    entry: dict[str, JsonValue] = {
        "SUT name": f"{result.study}[{result.experiment.id}] on {result.engine.name} {result.engine.version}",
        "Scenario": scenario,
        "Mode": "PerformanceOnly",
        **dict(zip(RATES.get(scenario or "", ()), rates, strict=False)),
        "requests_per_s": rates[0],
        "output_tokens_per_s": rates[1],
        "Result is": "VALID" if result.validity.valid and long_enough else "INVALID",
        "Min duration satisfied": None if duration is None else ("Yes" if long_enough else "NO"),
        "Average power (W)": energy.avg_power_w,
        "Energy per sample (J)": energy.joules_per_request,
        "energy_measured": energy.measured,
        "avg_power_w_uncertainty": energy.avg_power_w_uncertainty,
        "joules_per_request_uncertainty": energy.joules_per_request_uncertainty,
        "gain_uncertainty_rel": energy.gain_uncertainty_rel,
        "energy_report": reported,
        "energy_report_lacks": [] if reported is None else [name for name in REQUIRED if name not in reported],
        "run_id": result.run_id,
        "cycle": result.cycle,
        "deviations": [*_deviations(result, load, scenario, duration)],
    }
    percentiles = sorted((*STANDARD, *latency.percentiles))
    named = (
        ("Mean latency", "latency", None if scenario == "MultiStream" else latency.e2el_s),
        ("Mean First Token latency", "first token latency", latency.ttft_s),
        ("Mean Time per Output Token", "time to output token", latency.tpot_s),
    )
    for mean, what, distribution in named:
        keys = {f"{mean} (ns)": "mean"}
        keys |= {f"{_two_decimals(p)} percentile {what} (ns)": f"p{written(p)}" for p in percentiles}
        for key, statistic in keys.items():
            seconds = distribution.statistics.get(statistic) if distribution is not None else None
            entry[key] = None if seconds is None else round(seconds * 1e9)
    return entry


def energy_report(result: Result, load: LoadShape, scenario: str | None) -> dict[str, JsonValue] | None:
    """The proposal's object of a result, without what is not known; `None` without a sensor's energy.

    `energy_per_token_joules` is of generation alone there: `joules_per_output_token` has the prompts as well.
    """
    energy, work = result.energy, result.workload
    if not energy.measured or energy.energy_j is None:
        return None
    phases = {each.name: joules for each in energy.phases if (joules := each.energy_per_repeat_j or 0.0) > 0}
    of_window = {name: joules * work.repeats for name, joules in phases.items()}
    prefill, generation = of_window.get(PREFILL), of_window.get(DECODE)
    read = [each for each in energy.windows if each.name == MEASURE]
    seconds = sum(each.end_ns - each.start_ns for each in read) / 1e9
    rate = sum(each.samples for each in read) / seconds if seconds else 0.0
    of_workload = result.experiment.config.get("workload")
    lengths = {"input": work.input_tokens, "output": work.output_tokens}
    equal = {
        name: length
        for name, tokens in lengths.items()
        if isinstance(of_workload, Mapping)
        and isinstance(length := of_workload.get(f"{name}_tokens"), int)
        and tokens == length * (work.requests or 0) > 0  # none is longer, so all are as long
    }
    host, packages = result.environment.host, result.environment.host.get("packages")
    versions = {"python": host.get("python"), **(dict(packages) if isinstance(packages, Mapping) else {})}
    method = sensor_of(result)
    fields: dict[str, JsonValue] = {
        "task_type": "llm",
        "total_energy_joules": energy.energy_j,
        "static_power_baseline_watts": energy.idle_power_w,
        "inference_active_power_watts": None if energy.avg_power_w is None else {"mean": energy.avg_power_w},
        "measurement_method": method if method in METHODS else None,
        "sampling_rate_hz": rate if rate >= 1 else None,
        "thermal_stabilization_seconds": result.warmup.duration_s,
        "scenario": scenario.lower() if scenario in RATES else None,
        "accelerator_count": len(result.runner.device_ids) or None,
        "energy_per_token_joules": {"mean": generation / result.tokens.output}
        if generation is not None and result.tokens.output
        else None,
        "prefill_energy_joules": prefill,
        "generation_energy_joules": generation,
        "output_token_count": result.tokens.output or None,
        "batch_size": load.batch_size or (1 if load.max_concurrency == 1 else None),
        "input_sequence_length": equal.get("input"),
        "output_sequence_length": equal.get("output"),
        "software_runtime_versions": {
            RUNTIMES[name]: str(version) for name, version in versions.items() if name in RUNTIMES and version
        },
    }
    return {name: value for name, value in fields.items() if value is not None}


def _two_decimals(percentile: float) -> str:
    """As LoadGen writes them, and with a third decimal where there is one."""
    whole, _, decimals = written(percentile).partition(".")
    return f"{whole}.{decimals:0<2}"


def scenario_of(load: LoadShape) -> str | None:
    """The scenario of LoadGen that a load is, `None` for those that are none."""
    if load.process == "poisson":
        return "Server"
    if load.process == "concurrency":
        return "SingleStream" if load.max_concurrency == 1 else None
    if load.process not in ("offline", "all_at_once"):
        return None
    if load.batch_size is None:
        return "Offline"
    return "SingleStream" if load.batch_size == 1 else "MultiStream"


def _deviations(result: Result, load: LoadShape, scenario: str | None, duration: float | None) -> Iterator[str]:
    energy = result.energy
    yield "queries were not issued by LoadGen"
    yield "a benchmark's numbers of queries, latency targets, early stopping and accuracy were not checked"
    source = "estimated by a model of the hardware" if energy.meter != "none" and not energy.measured else "measured"
    yield (
        f"energy is that of {energy.scope or 'nothing'}, {source} ({energy.meter}), not of the whole system at the wall"
    )
    if duration is None or duration < MIN_DURATION_S:
        yield f"measured for {0 if duration is None else duration:.3g} s, not for {MIN_DURATION_S:.0f} s"
    if scenario is None:
        shape = f"{load.max_concurrency} requests in flight" if load.process == "concurrency" else load.process
        yield f"the load ({shape}) is no scenario of LoadGen, whose Server has Poisson arrivals"
    if scenario == "MultiStream":
        yield "the latency of a query is that of its slowest sample, which is not known"
    if scenario == "MultiStream" and load.batch_size != QUERY_SAMPLES:
        yield f"{load.batch_size} samples per query, not {QUERY_SAMPLES}"
    if result.workload.repeats > 1:
        yield f"{result.workload.repeats} repeats of the same {result.workload.requests} samples, in the same order"
