"""What else happened while a cycle was measured: other cycles on the host, other temperatures in other cycles, and
another model in the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import DeviceSettings
from pytest_llem.job.job import MeterSettings
from pytest_llem.job.measurement import CpuEnergy
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.comparability import conditions, differences, mixture
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import metric
from pytest_llem.results.schema import Result
from pytest_llem.results.store import RunStore
from tests.unit.results.conftest import REPORT, Worker

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

    MakeWorker = Callable[..., Worker]


@pytest.mark.parametrize(("workers", "shared"), [(None, False), (1, False), (2, True)])
def test_the_hosts_energy_is_shared_where_other_cycles_may_run(
    bench: Bench, key: CycleKey, workers: int | None, shared: bool
) -> None:
    measurement = bench.measurement()
    assert measurement.energy is not None
    measurement = replace(measurement, energy=replace(measurement.energy, host=CpuEnergy(5.0, 1.0, shared=False)))
    report = replace(REPORT, facts={} if workers is None else {"concurrent_workers": workers})

    result = derive_result(bench.job(key), measurement, report, study=key.study, environment={})

    assert result.energy.host is not None
    assert result.energy.host.shared is shared


@pytest.mark.parametrize(
    ("allowed", "pinned", "stated"), [(8, None, None), (2, None, "2 of 8"), (2, "0-1", "0-1"), (None, None, None)]
)
def test_an_experiment_that_is_left_fewer_cpus_than_there_are_compares_with_its_like_alone(
    bench: Bench, key: CycleKey, allowed: int | None, pinned: str | None, stated: str | None
) -> None:
    """Under `taskset` or a cpuset it would fail a gate as a regression."""
    job = bench.job(key)
    job = replace(job, config=replace(job.config, device=DeviceSettings(cpus=pinned)))
    measurement = replace(bench.measurement(), environment={"cpus_allowed": allowed})
    host: dict[str, JsonValue] = {"cpu": {"model": "X", "logical_cores": 8}}
    result = derive_result(job, measurement, REPORT, study=key.study, environment=host)
    assert conditions(result)["cpus"] == stated


@pytest.fixture
def measure(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> Callable[..., Result]:
    """Measures cycle after cycle, each at a temperature of its own."""
    store = RunStore.create(tmp_path / "llem-results", "run-1", environment={})

    def one(cycle: int, temperature_c: float | None, limits: dict[str, float] | None = None) -> Result:
        measurement = bench.measurement()
        assert measurement.energy is not None
        facts = {"temperature_c": {"package-0": temperature_c}}
        made = worker(replace(key, cycle=cycle), replace(measurement, energy=replace(measurement.energy, facts=facts)))
        made.settings = MeterSettings(thresholds=limits or {})
        result = get_or_measure(store, replace(key, cycle=cycle), made).result
        assert result is not None
        return result

    return one


def drift(result: Result) -> list[str]:
    return [warning.message for warning in result.warnings if warning.code == "temperature_drift"]


def test_a_cycle_much_warmer_than_another_says_so_and_stays_valid(measure: Callable[..., Result]) -> None:
    first, second, third = measure(1, 50.0), measure(2, 59.0), measure(3, 64.0)

    assert first.energy.devices[0].temperature_c == 50.0
    assert drift(first) == drift(second) == []
    assert drift(third) == ["package-0: 64 C while measured, 50 C in cycle 1"]
    assert third.status == "valid"


def test_the_study_sets_how_far_cycles_may_drift(measure: Callable[..., Result]) -> None:
    measure(1, 50.0)

    assert drift(measure(2, 53.0, {"temperature_drift_c": 2.0}))
    assert not drift(measure(3, 70.0, {"temperature_drift_c": 30.0}))


def test_an_unknown_temperature_is_no_drift(measure: Callable[..., Result]) -> None:
    measure(1, None)

    assert not drift(measure(2, 90.0))


Q4: dict[str, JsonValue] = {"dtype": None, "quantization": "Q4_K_M", "quantized": True, "model_fingerprint": "sha256:4"}


def of_model(bench: Bench, effective: dict[str, JsonValue], cycle: int = 1) -> Result:
    measurement = bench.measurement()
    key = CycleKey("study", "a:1", "0123456789abcdef", cycle)
    return bench.result(replace(measurement, engine=replace(measurement.engine, effective=effective)), key)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({}, []),
        ({"model_fingerprint": "sha256:5"}, ["model_fingerprint: sha256:4 -> sha256:5"]),
        ({"quantization": "Q8_0"}, ["quantization: Q4_K_M -> Q8_0"]),
        ({"quantization": None, "quantized": False, "dtype": "float16"}, ["quantization: Q4_K_M -> none"]),
        ({"model_fingerprint": None}, ["model_fingerprint: sha256:4 -> unknown"]),
        ({"model_fingerprint": "counts:n_params=4"}, []),  # the file was readable in one of the runs only
    ],
)
def test_runs_of_two_models_under_one_configuration_are_not_compared(
    bench: Bench, now: dict[str, JsonValue], expected: list[str]
) -> None:
    """A server that runs already may have another file by now: its study, and so the hash, is the same."""
    before, after = conditions(of_model(bench, Q4)), conditions(of_model(bench, {**Q4, **now}))
    assert differences(before, after, metric("energy_j"), 0.05) == expected


@pytest.mark.parametrize("before", [{}, {"quantized": None}, {"quantized": False, "dtype": "float16"}])
def test_a_baseline_from_before_the_model_was_read_is_still_one(bench: Bench, before: dict[str, JsonValue]) -> None:
    old = {name: value for name, value in conditions(of_model(bench, before)).items() if name != "quantization"}
    assert (
        differences(old, conditions(of_model(bench, {**Q4, "dtype": before.get("dtype")})), metric("energy_j"), 0.05)
        == []
    )


def test_a_quantised_checkpoint_of_transformers_is_known_from_its_configuration(bench: Bench) -> None:
    stated: JsonValue = {"quant_method": "awq", "bits": 4}
    assert conditions(of_model(bench, {"quantized": True, "quantization_config": stated}))["quantization"] == "awq"


def test_cycles_between_which_the_server_got_another_model_are_no_repetitions(bench: Bench) -> None:
    """Judged together they would be the noise of one model. A result of an earlier version says nothing of it."""
    cycles = [of_model(bench, Q4), of_model(bench, {}, 2), of_model(bench, {**Q4, "quantization": "Q8_0"}, 3)]
    assert mixture(cycles[:2]) == []
    assert mixture(cycles) == ["the cycles differ in quantization: c1 Q4_K_M, c3 Q8_0"]
    assert mixture(cycles, allow=("quantization",)) == []
