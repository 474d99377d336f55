"""Exports for other collections of energy: BoAmps, and what is proposed for MLPerf, held against their own schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.job.files import read_json
from pytest_llem.results.energy_schema import PhaseEnergy
from pytest_llem.results.exports import export, mlperf
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

ON_PREMISE = {"infrastructure.infraType": "onPremise"}
HOST: dict[str, Any] = {
    "os": "Linux",
    "python": "3.12.1",
    "pytest_llem": "1.0",
    "cpu": {"model": "EPYC 9354", "logical_cores": 64},
    "memory_total_bytes": 512 * 2**30,
    "packages": {"torch": "2.13.0", "numpy": "2"},
    "gpus": [
        {"uuid": f"GPU-{n}", "name": "NVIDIA H100 80GB HBM3", "memory_total_bytes": 85_520_809_984} for n in range(3)
    ],
}


def schema(name: str) -> dict[str, Any]:
    return dict(read_json(Path(__file__).parent / "schemas" / f"{name}.json"))


@pytest.fixture
def on_gpus(bench: Bench) -> Callable[..., Result]:
    """A result of two of three GPUs: 20 J in 2 s, of which a prefill is 2 J a repeat; changes go into its energy."""

    def make(**changes: Any) -> Result:
        plain = bench.result()
        config: dict[str, Any] = {**plain.experiment.config, "device": {"kind": "cuda"}}
        phases = tuple(
            PhaseEnergy(name=name, energy_per_repeat_j=joules, uncertainty_j=0.1, method="difference")
            for name, joules in (("prefill", 2.0), ("decode", 8.0))
        )
        energy = {"meter": "nvml", "scope": "gpu_board", "phases": phases, "gain_uncertainty_rel": 0.05, **changes}
        return plain.model_copy(
            update={
                "experiment": replace(plain.experiment, config=config),
                "engine": replace(plain.engine, effective={"dtype": "bfloat16", "quantized": False, "batch_size": 1}),
                "runner": replace(plain.runner, device_kind="cuda", device_ids=("GPU-1", "GPU-2")),
                "energy": replace(plain.energy, **energy),
                "environment": replace(plain.environment, host=HOST, worker={"python": "3.12.1"}),
            }
        )

    return make


def reports(results: Results, out: Path, **stated: str) -> list[dict[str, Any]]:
    export(results, "boamps", out, {**ON_PREMISE, **{name.replace("__", "."): text for name, text in stated.items()}})
    return [json.loads(file.read_text()) for file in sorted(out.iterdir())]


def closed(part: Any) -> Any:
    """The schema without room for names that it does not know, which a misspelt field would be."""
    if isinstance(part, dict):
        found = {name: closed(each) for name, each in part.items()}
        return {"additionalProperties": False, **found} if part.get("type") == "object" else found
    return [closed(each) for each in part] if isinstance(part, list) else part


def test_a_boamps_report_is_valid_by_its_schema_and_has_its_units(
    on_gpus: Callable[..., Result], tmp_path: Path
) -> None:
    """Joules were taken for kWh, and the memory of all boards for that of one."""
    (entry,) = reports(
        Results((on_gpus(),)),
        tmp_path,
        environment__country="france",
        environment__powerSourceCarbonIntensity="56",
        header__publisher__confidentialityLevel="public",
    )
    jsonschema.validate(entry, closed(schema("boamps")))
    (measure,) = entry["measures"]
    assert measure["powerConsumption"] == pytest.approx(20 / 3.6e6)
    assert (measure["measurementDuration"], measure["gpuTrackingMode"]) == (pytest.approx(2.0), "nvml")
    assert measure["powerCalibrationMeasurement"] == pytest.approx(4 / 3.6e6)
    assert measure["durationCalibrationMeasurement"] == pytest.approx(1.0)
    assert measure["measurementDateTime"] == "2023-11-14 22:13:17"
    assert entry["task"]["nbRequest"] == 6
    assert entry["task"]["algorithms"][0]["quantization"] == "bf16"  # it was "none"
    assert [(each["dataUsage"], each["dataQuantity"]) for each in entry["task"]["dataset"]] == [
        ("input", 8),
        ("output", 4),
    ]
    gpu, cpu, ram = entry["infrastructure"]["components"]
    assert (gpu["componentName"], gpu["nbComponent"], gpu["memorySize"]) == ("NVIDIA H100 80GB HBM3", 2, 80)
    assert (cpu["nbComponent"], ram["memorySize"]) == (64, 512)
    assert entry["environment"] == {"country": "france", "powerSourceCarbonIntensity": 56.0}
    assert entry["quality"] == "high"
    assert "gain of the board's sensor adds 5 %" in entry["task"]["taskDescription"]


def test_a_boamps_report_says_nothing_that_nobody_said(bench: Bench, tmp_path: Path) -> None:
    """A country and a licence that no run knows were defaults, an estimate had a sensor's mode and quality."""
    plain = bench.result()
    estimate = plain.model_copy(update={"energy": replace(plain.energy, measured=False, meter="estimate")})
    (entry,) = reports(Results((estimate,)), tmp_path)
    jsonschema.validate(entry, closed(schema("boamps")))
    assert not {"environment", "quality", "system"} & {*entry}
    assert not {"licensing", "publisher"} & {*entry["header"]}
    assert entry["measures"][0]["cpuTrackingMode"] == "estimate"
    assert "NOT measured" in entry["task"]["taskDescription"]


def test_idle_power_of_another_cycle_is_no_calibration_of_this_one(
    on_gpus: Callable[..., Result], tmp_path: Path
) -> None:
    (entry,) = reports(Results((on_gpus(idle_power_reused_from="c1"),)), tmp_path)
    assert not {name for name in entry["measures"][0] if "Calibration" in name}


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({}, "requires infrastructure.infraType"),
        ({"infrastructure.infraType": "mine"}, "no value of BoAmps"),
        ({**ON_PREMISE, "measures.powerConsumption": "1"}, "no field of BoAmps that is yours"),
        ({**ON_PREMISE, "environment.location": "Paris"}, "requires environment.country"),
        ({**ON_PREMISE, "header.publisher.name": "We"}, "requires header.publisher.confidentialityLevel"),
        ({**ON_PREMISE, "environment.country": "f", "environment.latitude": "nan"}, "not a number"),
    ],
)
def test_what_boamps_does_not_know_is_refused_before_anything_is_written(
    bench: Bench, tmp_path: Path, stated: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        export(Results((bench.result(),)), "boamps", tmp_path / "out", stated)
    assert not (tmp_path / "out").exists()


def test_what_nobody_counted_is_absent(bench: Bench, tmp_path: Path) -> None:
    """Of any command's run requests may not be known, and one of it refused the export of all others."""
    plain = bench.result()
    work = replace(plain.workload, requests=None, failed_requests=None)
    uncounted = plain.model_copy(update={"tokens": replace(plain.tokens, input=None, output=None), "cycle": 2})
    (entry,) = reports(Results((plain.model_copy(update={"workload": work}), uncounted)), tmp_path)
    jsonschema.validate(entry, closed(schema("boamps")))
    assert "nbRequest" not in entry["task"]
    assert not any("dataQuantity" in each for each in entry["task"]["dataset"])


def test_other_formats_take_no_statements_and_boamps_needs_energy(bench: Bench, tmp_path: Path) -> None:
    """`--set` of a format that ignores it looked as if it had been written."""
    with pytest.raises(SettingsError, match="csv takes nothing"):
        export(Results((bench.result(),)), "csv", tmp_path / "all.csv", ON_PREMISE)
    plain = bench.result()
    none = plain.model_copy(update={"energy": replace(plain.energy, energy_j=None)})
    with pytest.raises(StoreError, match="no valid result has energy and tokens"):
        export(Results((none,)), "boamps", tmp_path / "out", ON_PREMISE)


def test_the_energy_that_is_proposed_for_mlperf_is_valid_by_its_schema(on_gpus: Callable[..., Result]) -> None:
    """Joules per output token, prompts included, stood for those of generation alone."""
    entry: dict[str, Any] = mlperf.summary(on_gpus())
    found = entry["energy_report"]
    jsonschema.validate(found, closed(schema("mlperf_energy")))
    assert entry["energy_report_lacks"] == []
    assert (found["prefill_energy_joules"], found["generation_energy_joules"]) == (4.0, 16.0)
    assert found["energy_per_token_joules"] == {"mean": pytest.approx(16.0 / 24)}  # its rule 7
    assert found["total_energy_joules"] >= found["prefill_energy_joules"] + found["generation_energy_joules"]  # rule 3
    assert found["static_power_baseline_watts"] < found["inference_active_power_watts"]["mean"]  # rule 4
    assert (found["scenario"], found["batch_size"], found["accelerator_count"]) == ("singlestream", 1, 2)
    assert (found["input_sequence_length"], found["output_sequence_length"]) == (8, 4)
    assert found["sampling_rate_hz"] == pytest.approx(10.0)
    assert found["software_runtime_versions"] == {"python": "3.12.1", "pytorch": "2.13.0"}


def without(result: Result) -> Iterator[tuple[Result, str]]:
    """A result of which one field is not known, and the field."""
    shorter = replace(result.workload, output_tokens=11)
    yield result.model_copy(update={"workload": shorter}), "output_sequence_length"
    yield result.model_copy(update={"energy": replace(result.energy, phases=())}), "generation_energy_joules"
    yield result.model_copy(update={"energy": replace(result.energy, meter="amdsmi")}), "measurement_method"
    engine = replace(result.engine, effective={"batch_size": 8})
    yield result.model_copy(update={"engine": engine}), "scenario"
    yield result.model_copy(update={"energy": replace(result.energy, idle_power_w=None)}), "static_power_baseline_watts"


def test_what_the_proposal_requires_and_nobody_knows_is_named(on_gpus: Callable[..., Result]) -> None:
    for result, field in without(on_gpus()):
        entry: dict[str, Any] = mlperf.summary(result)
        assert field in entry["energy_report_lacks"]
        assert field not in entry["energy_report"]
    estimate: dict[str, Any] = mlperf.summary(on_gpus(measured=False))
    assert (estimate["energy_report"], estimate["energy_report_lacks"]) == (None, [])
