from __future__ import annotations

import os
import random
import shutil
import threading
import time
from itertools import pairwise
from math import cos
from pathlib import Path

import pytest

from pytest_llem.energy import checked, rapl_source, registry
from pytest_llem.energy.protocol import Meter, MeterRequest
from pytest_llem.energy.rapl_meter import DomainSeries, obstacle
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window
from tests.timed import on_a_clock
from tests.unit.energy.powercap_tree import PowercapTree

pytestmark = on_a_clock


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowercapTree:
    return PowercapTree.shown(tmp_path / "powercap", monkeypatch, range_uj=1_000_000)


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


@on_a_clock
def test_another_window_is_accounted_from_the_samplers_readings(tree: PowercapTree, tmp_path: Path) -> None:
    """The edges' own readings are gone then, and with them all of another window."""
    meter = opened(tmp_path)
    start, times = meter.mark(), []
    for step in range(1, 8):
        tree.set_uj(100_000 + 10_000 * step, 5_000 + 1_000 * step)
        times.append(time.monotonic_ns())
        time.sleep(0.1)
    report = meter.stop([Window("measure", start, meter.mark())])
    part = Window("measure", times[1] + 50_000_000, times[5] + 50_000_000)

    other = type(meter)(MeterRequest(MeterSettings("rapl"), DeviceSet("cpu"), tmp_path))
    again = checked.account_again(other, report, [part])

    # Four steps, and at each edge where the sampler's reading lies in one.
    assert again.windows[0].energy_j == pytest.approx(0.044, abs=0.022)
    assert again.scope == "cpu_package+dram"
    assert not again.invalid


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
    # A counter that works moves on
    tree.set_uj(300_000, 0)

    report = meter.stop([Window("measure", start, end)])

    assert report.windows[0].energy_j == pytest.approx(2.2)


PACKAGE_UJ = 262_143_328_850
"""The range of a package's counter: 32 bits of 61 uJ."""


def test_edges_that_interleave_with_the_sampler_are_no_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a process is kept from running between the look at the clock and that at the counter."""
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "powercap"))
    tree = PowercapTree(tmp_path / "powercap", range_uj=PACKAGE_UJ)
    began = time.monotonic()
    ended = threading.Event()

    def draw() -> None:
        while not ended.is_set():
            # 150 W, as of one moment
            tree.set_uj(round((time.monotonic() - began) * 150e6), round((time.monotonic() - began) * 10e6))

    read_uj, rng = rapl_source.read_uj, random.Random(3)

    def interrupted(domain: rapl_source.Domain) -> int:
        time.sleep(rng.choice((0.0, 0.0, 0.03, 0.06)))
        value = read_uj(domain)
        time.sleep(rng.choice((0.0, 0.0, 0.03, 0.06)))
        return value

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        meter = opened(tmp_path)
        monkeypatch.setattr(rapl_source, "read_uj", interrupted)
        edges = [meter.mark() for _ in range(40)]
        report = meter.stop([Window("measure", *pair, index) for index, pair in enumerate(pairwise(edges))])
    finally:
        ended.set()
        drawing.join()

    assert not report.invalid
    for window in report.windows:
        # The thread that writes the counter is kept from running as well.
        slack_j = (window.uncertainty_j or 0.0) + 160 * 0.1
        assert window.energy_j == pytest.approx(160 * (window.end_ns - window.start_ns) / 1e9, abs=slack_j)


def reading(ms: float, value_j: float, half_ms: float = 0.01) -> rapl_source.RaplReading:
    return rapl_source.RaplReading(round(ms * 1e6), round(half_ms * 1e6), round(value_j * 1e6))


@pytest.mark.parametrize(
    ("readings", "energies_j", "codes"),
    [
        ([reading(0, 262_140), reading(100, 5)], [262_140, 262_148.32885], []),
        # Read between 40 and 100 ms, and stamped with the middle, after a reading of 80 ms.
        ([reading(0, 100), reading(69, 110), reading(70, 107, 30), reading(100, 115)], [100, 110, 115], []),
        # The same around a wrap
        ([reading(0, 262_140), reading(69, 5), reading(70, 262_143, 30), reading(100, 8)], None, []),
        # Apart in time, a small fall cannot be the order
        ([reading(0, 100), reading(100, 50), reading(200, 60)], [100, 100, 110], ["counter_reset"]),
        ([reading(0, 100_000), reading(100, 3), reading(200, 13)], [100_000, 100_000, 100_010], ["counter_reset"]),
        ([reading(0, 100), reading(100, 1100)], [100, 1100], ["implausible_power"]),
        ([reading(0, 100), reading(400_000, 200)], [100, 200], ["sensor_gap"]),
    ],
)
def test_a_wrap_is_told_from_a_late_reading_a_reset_and_a_jump(
    readings: list[rapl_source.RaplReading], energies_j: list[float] | None, codes: list[str]
) -> None:
    course, faults = rapl_source.followed(readings, PACKAGE_UJ)

    if energies_j is None:
        energies_j = [262_140, 5 + PACKAGE_UJ / 1e6, 8 + PACKAGE_UJ / 1e6]
    assert [one.value_uj / 1e6 for one in course] == pytest.approx(energies_j)
    assert [fault.code for fault in faults] == codes


def test_the_bound_holds_where_readings_are_kept_from_running() -> None:
    """By 3 or 40 ms, before or after the look at the counter: power between two such readings was told too low."""
    rng = random.Random(2)

    def drawn_j(t_ns: float) -> float:
        return 150 * t_ns / 1e9 + 25 * (1 - cos(t_ns / 3e8))

    def read(t_ns: int) -> rapl_source.RaplReading:
        looks_ns = t_ns + rng.choice((2_000, 2_000, 2_000, 3_000_000, 40_000_000))
        ends_ns = looks_ns + rng.choice((2_000, 2_000, 2_000, 3_000_000, 40_000_000))
        value_j = drawn_j(looks_ns // rapl_source.UPDATE_NS * rapl_source.UPDATE_NS)
        return rapl_source.RaplReading((t_ns + ends_ns) // 2, (ends_ns - t_ns) // 2, round(value_j * 1e6))

    held = 0
    for _ in range(200):
        start, end = read(rng.randrange(300_000_000, 500_000_000)), read(rng.randrange(1_000_000_000, 1_700_000_000))
        readings = [read(ms * 1_000_000) for ms in range(0, 2_000, 100)]
        domain = rapl_source.Domain("package-0", "cpu", "unused", PACKAGE_UJ)
        found = DomainSeries.of(domain, [*readings, start, end]).between(start.t_ns, end.t_ns)
        assert found is not None
        held += abs(found.energy_j - drawn_j(end.t_ns) + drawn_j(start.t_ns)) <= found.uncertainty_j

    assert held >= 0.95 * 200


@pytest.mark.parametrize(
    ("values_j", "code"), [((10, 5), "counter_reset"), ((10, 2000), "implausible_power"), ((10, 10), "sensor_gap")]
)
def test_a_counter_that_jumps_or_stands_still_gives_no_energy(
    values_j: tuple[float, float], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = PowercapTree.shown(tmp_path / "powercap", monkeypatch)
    first, then = (round(value * 1e6) for value in values_j)
    tree.set_uj(first, 0)
    meter = opened(tmp_path)
    start = meter.mark()
    tree.set_uj(then, 0)
    time.sleep(0.7 if code == "sensor_gap" else 0.02)

    report = meter.stop([Window("measure", start, meter.mark())])

    assert report.windows[0].energy_j is None
    assert code in {note.code for note in report.invalid}


def test_a_dram_counter_that_never_moves_is_none(tree: PowercapTree, tmp_path: Path) -> None:
    """Some processors show one and do not keep it: 0 J of memory passed for measured."""
    meter = opened(tmp_path)
    start = meter.mark()
    for value in range(100_000, 700_001, 100_000):
        time.sleep(0.1)
        tree.set_uj(value, 0)
    end = meter.mark()
    tree.set_uj(800_000, 0)

    report = meter.stop([Window("measure", start, end)])

    assert report.windows[0].energy_j == pytest.approx(0.7)
    assert not report.invalid
    assert "dram_not_counted" in {note.code for note in report.notes}
    assert (report.scope, [device.id for device in report.devices]) == ("cpu_package", ["package-0"])
    assert report.host is not None
    assert report.host.dram_j is None


def test_a_package_under_two_control_types_counts_once(tree: PowercapTree, tmp_path: Path) -> None:
    again = tree.package.with_name("intel-rapl-msr:0")
    shutil.copytree(tree.package, again)

    assert [domain.id for domain in rapl_source.domains()] == ["package-0", "dram-0"]


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


def test_a_package_that_never_moves_is_no_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual machine: a whole study was measured before its results said so."""
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "powercap"))
    PowercapTree(tmp_path / "powercap")

    with pytest.raises(MeterError, match=r"RAPL counter never moves: .*intel-rapl:0/energy_uj"):
        registry.open_meter(MeterSettings("rapl"), DeviceSet("cpu"), tmp_path)

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
