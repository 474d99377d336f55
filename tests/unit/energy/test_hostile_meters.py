"""Every meter on every fault of its sensor: no energy or a reason against it, and never 0.0 J that pass as measured."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, cast

import pynvml
import pytest

from pytest_llem.energy import checked, rapl_source, registry
from pytest_llem.energy.codecarbon_meter import CodeCarbonMeter
from pytest_llem.energy.protocol import EnergyEstimate, Meter, MeterRequest, window_energy
from pytest_llem.energy.zeus_meter import ZeusMeter
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import CpuEnergy, DeviceEnergy, EnergyReport, MeteredDevice, Window, WindowEnergy
from tests.simulated_nvml.simulation import Simulation
from tests.unit.energy.cycle import codes, quicken, uuids
from tests.unit.energy.powercap_tree import PowercapTree

Fault = Literal["none", "frozen", "reset", "jump", "vanished"]
FAULTS: tuple[Fault, ...] = ("frozen", "reset", "jump", "vanished")
POWER_W = 100.0


class Counter:
    """An energy counter of a device that draws `POWER_W`, until a fault befalls it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._fault: Fault = "none"
        self._at_j = 0.0

    def energy_j(self) -> float:
        """What it shows; raises once it has vanished."""
        true_j = 5000 + POWER_W * (time.monotonic() - self._began)
        if self._fault == "vanished":
            raise OSError("no such device")
        if self._fault == "frozen":
            return self._at_j
        return true_j + {"reset": -self._at_j, "jump": 1e6}.get(self._fault, 0.0)

    def befall(self, fault: Fault) -> None:
        """Let the fault happen now."""
        self._at_j = self.energy_j()
        self._fault = fault


Board = tuple[Meter, Callable[[Fault], None]]


class OwnMeter(Meter):
    """As another package may bring one: it trusts its counter."""

    name = "own"

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._marks: dict[int, float] = {}

    def start(self) -> None:
        self.mark()

    def mark(self) -> int:
        energy_j = self._counter.energy_j()
        t_ns = time.monotonic_ns()
        self._marks[t_ns] = energy_j
        return t_ns

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        def part(window: Window) -> EnergyEstimate:
            return EnergyEstimate(self._marks[window.end_ns] - self._marks[window.start_ns], 0.1, "difference", 2)

        accounted = tuple(window_energy(window, {"own": part(window)}) for window in windows)
        return EnergyReport("own", True, "module", "worker", (MeteredDevice("own", None, "gpu"),), accounted)


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def own(counter: Counter) -> Board:
    return OwnMeter(counter), counter.befall


@pytest.fixture
def zeus(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A stand-in for the package, with one GPU; tests/unit/energy/test_peers.py has the real one."""

    class Gpus:
        gpus = (SimpleNamespace(handle=None),)

        def __len__(self) -> int:
            return 1

        def supports_get_total_energy_consumption(self, index: int) -> bool:
            return True

        def get_name(self, index: int) -> str:
            return "GPU"

        def get_total_energy_consumption(self, index: int) -> float:
            return counter.energy_j() * 1e3

    packages = {name: ModuleType(name) for name in ("zeus", "zeus.device", "zeus.device.exception")}
    vars(packages["zeus.device"]).update(get_gpus=Gpus)
    vars(packages["zeus.device.exception"]).update(ZeusBaseGPUError=OSError)
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("pytest_llem.energy.zeus_meter.version", lambda package: "0.16")
    monkeypatch.setattr("pytest_llem.energy.zeus_meter._uuid", lambda gpu: "GPU-0")
    monkeypatch.setattr("pytest_llem.energy.zeus_meter.leased_gpus", lambda request: [SimpleNamespace(uuid="GPU-0")])
    return ZeusMeter(MeterRequest(MeterSettings("zeus"), DeviceSet("cuda", ("GPU-0",)), tmp_path)), counter.befall


@pytest.fixture
def codecarbon_gpu(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return codecarbon(counter, tmp_path, monkeypatch, DeviceSet("cuda", ("GPU-0",)))


@pytest.fixture
def codecarbon_cpu(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return codecarbon(counter, tmp_path, monkeypatch, DeviceSet("cpu"))


def codecarbon(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: DeviceSet) -> Board:
    """A stand-in for the package; tests/unit/energy/test_peers.py has the real one."""

    class Tracker:
        def __init__(self, **options: Any) -> None:
            self._from_j = 0.0

        def start_task(self, name: str) -> None:
            self._from_j = counter.energy_j()

        def stop_task(self, name: str) -> object:
            kwh = (counter.energy_j() - self._from_j) / 3.6e6
            return SimpleNamespace(gpu_energy=kwh, cpu_energy=kwh, ram_energy=1e-6)

        def stop(self) -> None:
            pass

    package = ModuleType("codecarbon")
    vars(package)["OfflineEmissionsTracker"] = Tracker
    monkeypatch.setitem(sys.modules, "codecarbon", package)
    monkeypatch.setattr("pytest_llem.energy.codecarbon_meter.version", lambda package: "3.3")
    monkeypatch.setattr("pytest_llem.energy.codecarbon_meter.leased_gpus", lambda request: [])
    return CodeCarbonMeter(MeterRequest(MeterSettings("codecarbon"), devices, tmp_path)), counter.befall


@pytest.fixture
def rapl_package(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    yield from rapl(counter, tmp_path, monkeypatch, "package")


@pytest.fixture
def rapl_dram(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    yield from rapl(counter, tmp_path, monkeypatch, "dram")


def rapl(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Literal["package", "dram"]
) -> Iterator[Board]:
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "powercap"))
    tree, healthy, ended = PowercapTree(tmp_path / "powercap"), Counter(), threading.Event()
    faulty = tree.package if of == "package" else tree.dram

    def draw() -> None:
        while not ended.wait(0.002):
            try:
                value_uj = round(counter.energy_j() * 1e6)
            except OSError:
                (faulty / "energy_uj").unlink(missing_ok=True)
                continue
            healthy_uj = round(healthy.energy_j() * 1e6)
            tree.set_uj(*((value_uj, healthy_uj) if faulty == tree.package else (healthy_uj, value_uj)))

    drawing = threading.Thread(target=draw)
    drawing.start()
    time.sleep(0.05)
    meter = registry.open_meter(MeterSettings("rapl"), DeviceSet("cpu"), tmp_path)
    assert meter is not None
    yield meter, counter.befall
    ended.set()
    drawing.join()


@pytest.fixture
def nvml(simulation: Simulation, tmp_path: Path) -> Board:
    quicken(simulation)
    gpu = simulation.gpus[0]
    gpu.set_power(400.0)

    def befall(fault: Fault) -> None:
        if fault == "frozen":
            gpu.frozen_at_ns = time.monotonic_ns()
        elif fault == "vanished":
            gpu.error = pynvml.NVML_ERROR_GPU_IS_LOST
        else:
            gpu.counter_offset_mj += 10**9 if fault == "jump" else -(10**6)

    meter = registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda", uuids(simulation)), tmp_path)
    assert meter is not None
    return meter, befall


METERS = ("own", "zeus", "codecarbon_gpu", "codecarbon_cpu", "rapl_package", "rapl_dram", "nvml")


def measured(meter: Meter, befall: Callable[[], None] = lambda: None) -> EnergyReport:
    """A window of 0.4 s, with the fault in the middle."""
    meter.start()
    time.sleep(0.1)
    # The counters of the stand-ins move all the time.
    meter.update_s = 0.02
    start = checked.edge(meter)
    time.sleep(0.2)
    befall()
    time.sleep(0.2)
    end = checked.edge(meter)
    return checked.account(meter, [Window("measure", start, end)])


@pytest.mark.parametrize("name", METERS)
def test_a_healthy_sensor_is_believed(name: str, request: pytest.FixtureRequest) -> None:
    """A table in which every meter refuses everything would be no test."""
    report = measured(request.getfixturevalue(name)[0])

    assert not codes(report) - {"meter_not_on_device"}
    watts = {"rapl_package": 2 * POWER_W, "rapl_dram": 2 * POWER_W, "nvml": 400.0}.get(name, POWER_W)
    window = report.windows[0]
    assert window.energy_j == pytest.approx((window.end_ns - window.start_ns) / 1e9 * watts, rel=0.2)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", METERS)
def test_a_faulty_sensor_is_not(name: str, fault: Fault, request: pytest.FixtureRequest) -> None:
    meter, befall = request.getfixturevalue(name)

    report = measured(meter, lambda: befall(fault))

    assert codes(report) & {"sensor_gap", "counter_reset", "implausible_power", "counter_disagrees"}
    if name != "nvml":
        assert report.windows[0].energy_j is None


class StatingMeter(Meter):
    """States what a test wants, at once."""

    name = "stating"
    sees_standstill = True

    def __init__(self, *parts: object, bound_j: object = 0.1) -> None:
        self.parts = parts
        self.bound_j = bound_j

    def start(self) -> None:
        pass

    def mark(self) -> int:
        return time.monotonic_ns()

    def devices(self) -> tuple[MeteredDevice, ...]:
        return (MeteredDevice("a", None, "gpu"), MeteredDevice("beside", None, "gpu", leased=False))

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        return EnergyReport("stating", True, "gpu_board", "worker", self.devices(), self.accounted(windows))

    def accounted(self, windows: Sequence[Window]) -> tuple[WindowEnergy, ...]:
        def of(window: Window) -> WindowEnergy:
            total, bound = cast("float | None", self.parts[0]), cast("float | None", self.bound_j)
            parts = [DeviceEnergy(id, total, bound) for id in ("a", "beside")[: len(self.parts)]]
            return WindowEnergy(
                *(window.name, window.index, window.start_ns, window.end_ns), total, bound, "x", 2, {}, tuple(parts)
            )

        return tuple(map(of, windows))


@pytest.mark.parametrize("update_s", [0.02, 0.3])
def test_a_slow_sensor_that_says_so_does_not_stand_still(counter: Counter, update_s: float) -> None:
    began = time.monotonic()
    counter.energy_j = lambda: 30.0 * int((time.monotonic() - began) / 0.3)  # type: ignore[method-assign]
    meter = OwnMeter(counter)
    meter.update_s = update_s
    meter.start()
    start_ns = checked.edge(meter)
    time.sleep(0.35)

    report = checked.account(meter, [Window("measure", start_ns, checked.edge(meter))])

    assert (report.windows[0].energy_j is None) == (update_s == 0.02)
    assert all("a sensor slower than every 0.02 s states `update_s`" in note.message for note in report.invalid)


SECOND = [Window("measure", 0, 10**9)]


@pytest.mark.parametrize(
    ("energy_j", "bound_j", "code"),
    [
        (0.0, 0.1, "sensor_gap"),
        (nan, 0.1, "sensor_gap"),
        (inf, 0.1, "sensor_gap"),
        ("12", 0.1, "sensor_gap"),
        (True, 0.1, "sensor_gap"),
        (12.0, nan, "sensor_gap"),
        (12.0, -1.0, "sensor_gap"),
        (None, None, "sensor_gap"),
        (-5.0, 0.1, "counter_reset"),
        (1e6, 0.1, "implausible_power"),
    ],
)
def test_a_number_that_no_working_sensor_states_is_null(energy_j: object, bound_j: object, code: str) -> None:
    report = checked.account(StatingMeter(energy_j, bound_j=bound_j), SECOND)

    assert codes(report) == {code}
    assert report.windows[0].energy_j is None
    assert [part.energy_j for part in report.windows[0].devices] in ([None], [energy_j])


@pytest.mark.parametrize(("energy_j", "bound_j"), [(12.0, 0.1), (12, None), (-0.05, 0.1)])
def test_another_one_is_left_as_it_is(energy_j: float, bound_j: float | None) -> None:
    report = checked.account(StatingMeter(energy_j, bound_j=bound_j), SECOND)

    assert not report.invalid
    assert report.windows[0].energy_j == energy_j


def test_a_device_beside_the_leased_ones_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = StatingMeter(12.0, 12.0)
    part = DeviceEnergy("beside", 0.0, 0.0)
    monkeypatch.setattr(
        meter,
        "accounted",
        lambda windows: (
            replace(StatingMeter.accounted(meter, windows)[0], devices=(DeviceEnergy("a", 12.0, 0.1), part)),
        ),
    )

    report = checked.account(meter, SECOND)

    assert not report.invalid
    assert report.windows[0].energy_j == 12.0
    assert [device.energy_j for device in report.windows[0].devices] == [12.0, None]


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("accounted", ()),
        ("accounted", None),
        ("accounted", ("nonsense",)),
        ("devices", (MeteredDevice("a", None, "gpu"),) * 2),
        ("stop", None),
        ("stop", ZeroDivisionError("division by zero")),
        ("stop", MeterError("the sensor is gone")),
    ],
)
def test_a_report_that_is_none_is_null_and_says_why(
    method: str, result: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else was measured outlives its meter."""
    meter = StatingMeter(12.0)

    def answer(*windows: object) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(meter, method, answer)

    report = checked.account(meter, SECOND)

    assert codes(report) == {"sensor_gap"}
    assert [window.energy_j for window in report.windows] == [None]
    assert all(note.message for note in report.invalid)


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "wall"},
        {"meter": None},
        {"gain_uncertainty_rel": nan},
        {"facts": {"loss": inf}},
        {"facts": {"idle": {"power_w": "low"}}},
        {"notes": ("all is well",)},
        {"host": CpuEnergy(nan, None, shared=False)},
    ],
    ids=str,
)
def test_a_report_that_cannot_be_written_costs_the_energy_alone(change: dict[str, Any]) -> None:
    """`measurement.json` was refused with all that it held."""
    meter = StatingMeter(12.0)
    stop = meter.stop
    meter.stop = lambda windows: replace(stop(windows), **change)  # type: ignore[method-assign]

    report = checked.account(meter, SECOND)

    assert codes(report) == {"sensor_gap"}
    assert report.windows[0].energy_j is None


@pytest.mark.parametrize("answer", [nan, inf, "much", OSError("gone")], ids=str)
def test_a_power_that_is_none_is_not_waited_for(answer: object) -> None:
    meter = StatingMeter(12.0)

    def power_w() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    meter.power_w = power_w  # type: ignore[method-assign]

    assert checked.power_w(meter) is None


@pytest.mark.parametrize("t_ns", [0, None, 1.5, 10**30])
def test_a_meter_with_another_clock_is_an_error(t_ns: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every duration of the cycle would be wrong."""
    meter = StatingMeter(12.0)
    monkeypatch.setattr(meter, "mark", lambda: t_ns)

    with pytest.raises(MeterError, match="no time of CLOCK_MONOTONIC"):
        checked.edge(meter)
