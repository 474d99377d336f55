"""What exports say in other tools' words: the load, the scenario, the time, what was estimated, what deviates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.job.measurement import TruncatedPrompts
from pytest_llem.results.energy_schema import EnergyDevice
from pytest_llem.results.exports import aienergyscore, export, mlperf, otel, vllm_bench
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.terminal import spreadsheet

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

Make = Callable[..., Result]


@pytest.fixture
def make(bench: Bench) -> Make:
    """A result of the bench with another load, engine, energy or duration."""

    def make(
        *,
        engine: str = "transformers",
        effective: Mapping[str, Any] | None = None,
        arrival: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        workload: Mapping[str, Any] | None = None,
        decoding: Mapping[str, Any] | None = None,
        device: Mapping[str, Any] | None = None,
        measured: bool = True,
        seconds: float = 2.0,
    ) -> Result:
        result = bench.result()
        config = result.experiment.config
        config = {
            **config,
            "settings": dict(settings or {}),
            "workload": {**config["workload"], "arrival": arrival and dict(arrival), **(workload or {})},  # type: ignore[dict-item]
            "decoding": {**config["decoding"], **(decoding or {})},  # type: ignore[dict-item]
            "device": {**config["device"], **(device or {})},  # type: ignore[dict-item]
        }
        shape = str(arrival["process"]) if arrival else "offline"
        return result.model_copy(
            update={
                "experiment": replace(result.experiment, config=config),
                "engine": replace(result.engine, name=engine, effective={"dtype": "float32", **(effective or {})}),
                "workload": replace(result.workload, load_shape=shape),
                "energy": replace(result.energy, measured=measured, meter="rapl" if measured else "estimate"),
                "throughput": replace(result.throughput, duration_s=seconds),
            }
        )

    return make


CLIENT = {"engine": "openai"}
POISSON = {"process": "poisson", "rate_per_s": 2.5}
LOADS: dict[str, tuple[dict[str, Any], float | str | None, int | None, str | None]] = {
    "static batches": ({"effective": {"batch_size": 4}}, None, None, "MultiStream"),
    "one by one": ({"effective": {"batch_size": 1}}, None, None, "SingleStream"),
    "continuous batching": ({"effective": {"batch_size": 4, "continuous_batching": True}}, None, None, "Offline"),
    "an engine's own scheduler": ({"engine": "vllm"}, None, None, "Offline"),
    "a client, all at once": (CLIENT, "inf", None, "Offline"),
    "a client's concurrency": ({**CLIENT, "settings": {"concurrency": 16}}, "inf", 16, None),
    "a client, one at a time": ({**CLIENT, "settings": {"concurrency": 1}}, "inf", 1, "SingleStream"),
    "concurrency": ({**CLIENT, "arrival": {"process": "concurrency", "concurrency": 8}}, "inf", 8, None),
    "both": (
        {"arrival": {"process": "concurrency", "concurrency": 8}, **CLIENT, "settings": {"concurrency": 4}},
        "inf",
        4,
        None,
    ),
    "poisson": ({**CLIENT, "arrival": POISSON, "settings": {"concurrency": 16}}, 2.5, 16, "Server"),
    "gamma": ({**CLIENT, "arrival": {**POISSON, "process": "gamma", "burstiness": 0.5}}, 2.5, None, None),
    "ramp": ({**CLIENT, "arrival": {**POISSON, "process": "ramp", "end_rate_per_s": 5.0}}, "inf", None, None),
    "schedule": ({**CLIENT, "arrival": {"process": "schedule", "file": "t.txt"}}, None, None, None),
    "constant": ({**CLIENT, "arrival": {"process": "constant", "rate_per_s": 2.5}}, 2.5, None, None),
}


@pytest.mark.parametrize("load", LOADS)
def test_each_load_is_named_as_the_other_tools_name_it(make: Make, load: str) -> None:
    """Static batches were `inf`, a client's concurrency was lost, and every arrival process was LoadGen's Server."""
    changes, rate, concurrency, scenario = LOADS[load]
    result = make(**changes)
    bench = vllm_bench.bench_result(result)
    entry: dict[str, Any] = mlperf.summary(result)
    assert (bench["request_rate"], bench["max_concurrency"]) == (rate, concurrency)
    assert entry["Scenario"] == scenario
    unnamed = [text for text in entry["deviations"] if "is no scenario of LoadGen" in text]
    assert len(unnamed) == (scenario is None)


def test_vllm_bench_says_how_bursty_a_load_was_and_how_a_ramp_went(make: Make) -> None:
    gamma = vllm_bench.bench_result(make(**LOADS["gamma"][0]))
    ramp = vllm_bench.bench_result(make(**LOADS["ramp"][0]))
    assert (gamma["burstiness"], ramp["burstiness"]) == (0.5, 1.0)
    assert "ramp_up_strategy" not in gamma
    assert {name: ramp[name] for name in ramp if name.startswith("ramp")} == {
        "ramp_up_strategy": "linear_in_time",
        "ramp_up_start_rps": 2.5,
        "ramp_up_end_rps": 5.0,
    }


def test_vllm_bench_has_every_key_that_its_tables_read(make: Make) -> None:
    """`std_*` were missing, and so were keys of what was not measured. A p99 of six latencies is none."""
    entry = vllm_bench.bench_result(make())
    # The columns of vLLM's .buildkite/performance-benchmarks/scripts/convert-results-json-to-markdown.py.
    of_latency = [f"{kind}_{name}_ms" for name in ("ttft", "tpot", "itl") for kind in ("mean", "median", "p99", "std")]
    other = ["model_id", "completed", "max_concurrency", "request_throughput", "total_token_throughput"]
    assert {*of_latency, *other, "output_throughput", "failed", "duration", "burstiness", "endpoint_type"} <= {*entry}
    assert entry["std_e2el_ms"] == pytest.approx(0.0, abs=1e-6)
    assert (entry["p99_ttft_ms"], entry["max_concurrency"], entry["request_rate"]) == (None, None, None)
    assert datetime.strptime(str(entry["date"]), "%Y%m%d-%H%M%S") == datetime(2023, 11, 14, 22, 13, 19)


def test_estimates_are_marked_in_every_format(make: Make, tmp_path: Path) -> None:
    estimate = make(measured=False)
    assert vllm_bench.bench_result(estimate)["energy_measured"] is False
    entry = mlperf.summary(estimate)
    assert entry["energy_measured"] is False
    assert "estimated by a model of the hardware" in str(entry["deviations"])
    assert "energy is estimated, not measured" in str(aienergyscore.score(Results((estimate,)))["deviations"])
    assert {"llem.estimated_energy", "llem.estimated_power"} <= {*metrics(estimate)}
    assert not {"hw.energy", "hw.power"} & {*metrics(estimate)}
    export(Results((estimate,)), "csv", tmp_path / "all.csv")
    header, row = (tmp_path / "all.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))['"measured"'] == "false"


@pytest.mark.parametrize(
    ("seconds", "satisfied", "verdict"), [(60, "NO", "INVALID"), (599.9, "NO", "INVALID"), (600, "Yes", "VALID")]
)
def test_mlperf_asks_for_ten_minutes(make: Make, seconds: float, satisfied: str, verdict: str) -> None:
    """One minute was enough, and a result was VALID whose minimum duration was not satisfied."""
    entry: dict[str, Any] = mlperf.summary(make(seconds=seconds))
    assert (entry["Min duration satisfied"], entry["Result is"]) == (satisfied, verdict)
    assert any("not for 600 s" in text for text in entry["deviations"]) == (satisfied == "NO")


def test_mlperf_names_throughput_as_its_scenario_does(make: Make) -> None:
    offline, server = mlperf.summary(make()), mlperf.summary(make(**CLIENT, arrival=POISSON))
    assert offline["Samples per second"] == pytest.approx(3.0)
    assert offline["Tokens per second"] == pytest.approx(12.0)
    assert server["Completed samples per second"] == pytest.approx(3.0)
    assert server["Completed tokens per second"] == pytest.approx(12.0)
    assert "Samples per second" not in server
    batches = mlperf.summary(make(effective={"batch_size": 8}))
    assert not {"Samples per second", "Completed samples per second"} & {*batches}
    assert batches["requests_per_s"] == pytest.approx(3.0)
    assert batches["Mean latency (ns)"] is None
    assert offline["99.00 percentile latency (ns)"] is None
    assert offline["Mean First Token latency (ns)"] == pytest.approx(1e8)


H100 = "NVIDIA H100 80GB HBM3"


def scored(make: Make, board: str = H100, cycles: int = 10, **changes: Any) -> dict[str, Any]:
    """A score of as many cycles, whose settings are the method's but for the changes."""
    right: dict[str, Any] = {
        "effective": {"batch_size": 1, "dtype": "float16", **changes.pop("effective", {})},
        "workload": {"dataset": "aienergyscore", "input_tokens": None, **changes.pop("workload", {})},
    }
    result = make(**right, **changes)
    work = replace(result.workload, requests=1000, output_tokens=100_000)
    gpus: Any = [{"uuid": "GPU-1", "name": board}]
    whole = result.model_copy(
        update={
            "workload": work,
            "runner": replace(result.runner, device_ids=("GPU-1",), device_kind="cuda"),
            "energy": replace(result.energy, scope="gpu_board", meter="codecarbon" if result.energy.measured else "x"),
            "environment": replace(result.environment, host={"gpus": gpus}),
        }
    )
    return aienergyscore.score(Results(tuple(whole.model_copy(update={"cycle": n + 1}) for n in range(cycles))))


def test_a_score_by_the_method_deviates_only_where_every_export_does(make: Make) -> None:
    entry = scored(make)
    assert entry["settings_match"]
    assert entry["deviations"] == [*aienergyscore.ALWAYS]
    assert "documented method" in entry["definition"]
    assert entry["wh_per_1000_queries_uncertainty"] > 0


@pytest.mark.parametrize(
    ("changes", "deviation"),
    [
        ({"decoding": {"do_sample": True}}, "sampled answers"),
        ({"workload": {"ignore_eos": False}}, "100 output tokens per prompt, not 100 each"),
        ({"workload": {"input_tokens": 128}}, "all prompts cut to 128 tokens"),
        ({"workload": {"chat_template": True}}, "chat template"),
        ({"workload": {"system_prompt": "Be brief."}}, "a system prompt or examples"),
        ({"workload": {"few_shot": 2}}, "a system prompt or examples"),
        ({"workload": {"dataset": "synthetic"}}, "data set synthetic"),
        ({"board": "NVIDIA H100 PCIe"}, "board NVIDIA H100 PCIe"),
        ({"board": "NVIDIA H100 NVL"}, "board NVIDIA H100 NVL"),
        ({"board": "NVIDIA GH200 480GB"}, "not one H100 80GB"),
        ({"board": "NVIDIA H200"}, "not one H100 80GB"),
        ({"effective": {"dtype": "bfloat16"}}, "dtype bfloat16"),
        ({"effective": {"batch_size": 2}}, "batch size 2"),
        ({"settings": {"quantization": {"load_in_8bit": True}}}, "quantised"),
        ({"engine": "vllm"}, "engine vllm"),
        ({"device": {"power_limit_w": 400}}, "power_limit_w 400 set"),
        ({"cycles": 9}, "9 valid cycles, not 10"),
    ],
)
def test_each_difference_from_the_method_is_a_deviation(make: Make, changes: dict[str, Any], deviation: str) -> None:
    """Output length, sampling and the board's variant were not looked at."""
    entry = scored(make, **changes)
    assert not entry["settings_match"]
    assert any(deviation in text for text in entry["deviations"])


def test_a_limit_that_cut_no_prompt_is_no_deviation(make: Make) -> None:
    result = make(workload={"dataset": "aienergyscore", "input_tokens": 4096})
    for cut, deviations in ((0, 0), (7, 1)):
        work = replace(result.workload, prompts_truncated=TruncatedPrompts(cut, 10 * cut, cut))
        entry: dict[str, Any] = aienergyscore.score(Results((result.model_copy(update={"workload": work}),)))
        assert len([text for text in entry["deviations"] if "prompts cut to 4096" in text]) == deviations


def test_other_boards_are_a_score_of_their_own(make: Make, tmp_path: Path) -> None:
    """The mean of two machines is the score of neither."""
    result = make()
    gpus: Any = [{"uuid": "GPU-1", "name": H100}]
    there = replace(result.environment, host={"gpus": gpus})
    moved = result.model_copy(
        update={"environment": there, "runner": replace(result.runner, device_ids=("GPU-1",)), "run_id": "run-2"}
    )
    export(Results((result, moved)), "aienergyscore", tmp_path / "score.json")
    assert [entry["cycles"] for entry in json.loads((tmp_path / "score.json").read_text())] == [1, 1]


def metrics(result: Result) -> dict[str, Any]:
    data: Any = otel.metrics_data(result)
    return {entry["name"]: entry for entry in data["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}


def attributes(entries: Any) -> dict[str, Any]:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in entries}


def test_otel_points_have_the_time_of_the_measure_window(make: Make) -> None:
    """They had that of the derivation, which may be another day's."""
    (point,) = metrics(make())["hw.energy"]["sum"]["dataPoints"]
    # The bench's window is 2 s to 4 s on the monotonic clock, which read 5 s at 1,700,000,000 s of Unix time.
    assert point["startTimeUnixNano"] == "1699999997000000000"
    assert point["timeUnixNano"] == "1699999999000000000"


def test_otel_says_where_the_time_is_that_of_the_derivation(make: Make) -> None:
    older = make().model_copy(update={"measured_from": None, "measured_to": None})
    (point,) = metrics(older)["hw.energy"]["sum"]["dataPoints"]
    assert "startTimeUnixNano" not in point
    data: Any = otel.metrics_data(older)
    assert attributes(data["resourceMetrics"][0]["resource"]["attributes"])["llem.time"] == "derived"


def test_otel_points_have_the_attributes_that_the_conventions_require(make: Make) -> None:
    points = metrics(make(engine="openai", settings={"api": "chat"}))["gen_ai.server.time_to_first_token"]["gauge"]
    known = attributes(points["dataPoints"][0]["attributes"])
    assert (known["gen_ai.operation.name"], known["gen_ai.provider.name"]) == ("chat", "openai")
    assert [attributes(point["attributes"])["llem.statistic"] for point in points["dataPoints"]] == ["mean", "p50"]


def test_otel_counts_leased_devices_alone_and_knows_their_types(make: Make) -> None:
    result = make()
    device = result.energy.devices[0]
    beside: EnergyDevice = replace(device, id="GPU-2", kind="gpu", leased=False)
    memory: EnergyDevice = replace(device, id="dram-0", kind="dram")
    several = result.model_copy(update={"energy": replace(result.energy, devices=(device, memory, beside))})
    points = metrics(several)["hw.energy"]["sum"]["dataPoints"]
    assert [attributes(point["attributes"])["hw.type"] for point in points] == ["cpu", "memory"]


@pytest.mark.parametrize("text", ["=1", "-1+cmd", "\n=1", "＝1", "＠SUM(1)"])
def test_no_spreadsheet_sees_a_formula(text: str) -> None:
    assert spreadsheet(text) == f"'{text}"
