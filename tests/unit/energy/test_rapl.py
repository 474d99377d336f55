from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pytest_llem.energy import rapl_source, registry
from pytest_llem.energy.protocol import Meter
from pytest_llem.energy.rapl_meter import DomainSeries, obstacle
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window
from tests.unit.energy.powercap_tree import PowercapTree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowercapTree:
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "powercap"))
    return PowercapTree(tmp_path / "powercap", range_uj=1_000_000)


def opened(tmp_path: Path, name: str = "rapl") -> Meter:
    meter = registry.open_meter(MeterSettings(name), DeviceSet("cpu"), tmp_path)
    assert meter is not None
    meter.start()
    return meter


def test_a_window_is_the_difference_of_the_counters_at_its_edges(tree: PowercapTree, tmp_path: Path) -> None:
    meter = opened(tmp_path)
    tree.set_uj(100_000, 5_000)
    start = meter.mark()
    tree.set_uj(400_000, 25_000)
    end = meter.mark()
    tree.set_uj(900_000, 90_000)

    report = meter.stop([Window("measure", start, end)])

    assert report.windows[0].energy_j == pytest.approx(0.32)
    assert report.windows[0].estimator == "rapl_counter"
    assert report.host is not None
    assert report.host.package_j == pytest.approx(0.30)
    assert report.host.dram_j == pytest.approx(0.02)
    assert report.scope == "cpu_package+dram"
    assert report.measured


def test_a_counter_that_wraps_in_the_window_is_followed(tree: PowercapTree, tmp_path: Path) -> None:
    tree.set_uj(900_000, 0)
    meter = opened(tmp_path)
    start = meter.mark()
    tree.set_uj(50_000, 0)
    end = meter.mark()

    report = meter.stop([Window("measure", start, end)])

    assert report.windows[0].energy_j == pytest.approx(0.15)


def test_wraps_between_the_edges_are_seen_by_the_sampler_process(tree: PowercapTree, tmp_path: Path) -> None:
    """Two reads at the edges alone would lose two whole ranges of the counter here."""
    meter = opened(tmp_path)
    start = meter.mark()
    for value in (600_000, 100_000, 700_000, 200_000):
        tree.set_uj(value, 0)
        seen = (tmp_path / "samples.jsonl").read_text()
        while f'"counter_mj": {value / 1e3}' not in seen:
            time.sleep(0.01)
            seen = (tmp_path / "samples.jsonl").read_text()
    end = meter.mark()

    report = meter.stop([Window("measure", start, end)])

    assert report.windows[0].energy_j == pytest.approx(2.2)


def test_an_edge_outside_the_readings_gives_no_energy() -> None:
    domain = rapl_source.Domain("package-0", "cpu", "unused", 1_000_000)
    series = DomainSeries(domain, (1_000_000_000, 2_000_000_000), (5.0, 25.0))

    assert series.between(500_000_000, 1_500_000_000) is None
    assert series.between(1_500_000_000, 2_500_000_000) is None


def test_an_edge_between_readings_is_interpolated_and_its_bound_covers_any_power_shape() -> None:
    domain = rapl_source.Domain("package-0", "cpu", "unused", 1_000_000)
    series = DomainSeries(domain, (0, 1_000_000_000, 2_000_000_000), (0.0, 10.0, 30.0))

    found = series.between(0, 1_500_000_000)

    assert found is not None
    assert found.energy_j == pytest.approx(20.0)
    assert found.uncertainty_j >= 10.0


def test_auto_takes_rapl_where_it_is_readable(tree: PowercapTree, tmp_path: Path) -> None:
    meter = registry.open_meter(MeterSettings("auto"), DeviceSet("cpu"), tmp_path)

    assert meter is not None
    assert meter.name == "rapl"


def test_auto_falls_back_to_the_estimate_without_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "absent"))

    meter = registry.open_meter(MeterSettings("auto"), DeviceSet("cpu"), tmp_path)

    assert meter is not None
    assert meter.name == "estimate"


def test_rapl_by_name_without_counters_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "absent"))

    with pytest.raises(MeterError, match="no RAPL counters") as caught:
        registry.open_meter(MeterSettings("rapl"), DeviceSet("cpu"), tmp_path)

    assert caught.value.fix is not None
    assert "modprobe" in caught.value.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_counters_are_an_error_with_the_exact_command(tree: PowercapTree) -> None:
    (tree.package / "energy_uj").chmod(0o000)

    found = obstacle(rapl_source.domains())

    assert found is not None
    assert found.fix is not None
    assert f"chmod a+r {tree.package}/energy_uj" in found.fix


def test_the_sampler_ends_with_the_meter(tree: PowercapTree, tmp_path: Path) -> None:
    meter = opened(tmp_path)
    pid = meter._sampler.pid  # type: ignore[attr-defined]

    meter.stop([])

    assert not Path(f"/proc/{pid}").exists()
