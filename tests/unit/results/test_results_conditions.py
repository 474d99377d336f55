"""What else happened while a cycle was measured: other cycles on the host, and other temperatures in other cycles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.job import MeterSettings
from pytest_llem.job.measurement import CpuEnergy
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
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
