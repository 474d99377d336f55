"""Chips that are all in one, as Zeus tells of them; stand-ins for its classes, since no such chip runs these tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.zeus_meter import ZeusMeter, chip_energy_mj
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window


@dataclass
class Apple:
    """The fields of Zeus's `AppleSiliconMeasurement` (0.16) that matter, in mJ."""

    cpu_total_mj: int | None = None
    performance_cores_mj: list[int] | None = None
    dram_mj: int | None = None
    gpu_mj: int | None = None
    gpu_sram_mj: int | None = None
    ane_mj: int | None = None


@dataclass
class Jetson:
    """The fields of Zeus's `JetsonMeasurement` (0.16), in mJ."""

    cpu_energy_mj: float | None = None
    gpu_energy_mj: float | None = None
    total_energy_mj: float | None = None


@pytest.mark.parametrize(
    ("reading", "energy_mj"),
    [
        (Apple(cpu_total_mj=5, performance_cores_mj=[2, 3], dram_mj=1, gpu_mj=7, gpu_sram_mj=None, ane_mj=0), 13.0),
        (Jetson(cpu_energy_mj=2.0, gpu_energy_mj=3.0, total_energy_mj=9.0), 9.0),
        (Jetson(cpu_energy_mj=2.0, gpu_energy_mj=3.0), 5.0),
    ],
)
def test_what_counts_is_the_chips_total_or_else_its_parts_once(reading: object, energy_mj: float) -> None:
    assert chip_energy_mj(reading) == energy_mj


def test_a_chip_that_tells_nothing_is_an_error_and_not_zero() -> None:
    with pytest.raises(MeterError, match="tells no energy"):
        chip_energy_mj(Apple())


@pytest.fixture
def zeus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the package `zeus`: no GPU, and the chip that a test gives it."""

    class NoGPUError(Exception):
        pass

    class NoChipError(Exception):
        pass

    device, exception = ModuleType("zeus.device"), ModuleType("zeus.device.exception")

    def get_gpus() -> object:
        raise NoGPUError("NVML Shared Library Not Found")

    def get_soc() -> object:
        raise NoChipError("No observable SoC was found")

    vars(device).update(get_gpus=get_gpus, get_soc=get_soc)
    vars(exception).update(ZeusBaseGPUError=NoGPUError, ZeusBaseSoCError=NoChipError)
    for name, module in {"zeus": ModuleType("zeus"), "zeus.device": device, "zeus.device.exception": exception}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("pytest_llem.energy.zeus_meter.version", lambda package: "0.16")
    return device


def meter(out_dir: Path) -> ZeusMeter:
    return ZeusMeter(MeterRequest(MeterSettings("zeus", explicit=True), DeviceSet("cpu"), out_dir))


def test_where_there_is_no_gpu_the_chip_is_read_and_said_to_be_unverified(zeus: ModuleType, tmp_path: Path) -> None:
    readings = [Apple(cpu_total_mj=1000, gpu_mj=500), Apple(cpu_total_mj=2000, gpu_mj=1500), Apple(cpu_total_mj=9000)]

    class AppleSilicon:
        def get_total_energy_consumption(self) -> Apple:
            return readings.pop(0)

    vars(zeus)["get_soc"] = AppleSilicon
    one = meter(tmp_path)
    one.start()
    start, end = one.mark(), one.mark()
    report = one.stop([Window("measure", start, end)])
    assert report.windows[0].energy_j == pytest.approx((9000 - 3500) / 1e3)
    assert (report.scope, report.devices[0].name) == ("module", "AppleSilicon")
    assert "not_verified" in [note.code for note in report.notes]


def test_where_there_is_neither_the_gpus_problem_is_told(zeus: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="NVML Shared Library Not Found"):
        meter(tmp_path).start()
