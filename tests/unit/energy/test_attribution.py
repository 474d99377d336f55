"""Whose joules they are: which GPUs a cycle ran on, and whether their counters and their power readings agree.

On simulated GPUs, through the real pynvml and a real sampler process, at twice the rate of an idle machine's.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import ticks_from
from pytest_llem.energy.validity import DeviceEvidence, Evidence, check, counter_ratio
from pytest_llem.job.config import Thresholds
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import EnergyReport, Window, WindowEnergy
from tests.simulated_nvml.plugin import MakeSimulation
from tests.simulated_nvml.simulation import Gpu, Simulation
from tests.simulated_nvml.virtual import virtual_sampler
from tests.unit.energy.cycle import Cycle, calibrate, codes, quicken, remarks, uuids

FOREIGN_NAMESPACE = 2**22 + 7


@dataclass(frozen=True)
class Server:
    """A server whose process tree is known, or not."""

    pid: int | None


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that runs already: no child of the process that measures."""
    launcher = psutil.Popen(["setsid", "--fork", "sh", "-c", "echo $$; read line"], stdin=-1, stdout=-1, text=True)
    yield Server(int(launcher.stdout.readline()))
    launcher.communicate()


@pytest.fixture
def machine(make_simulation: MakeSimulation) -> Callable[[int], Simulation]:
    def make(gpus: int) -> Simulation:
        simulation = make_simulation(gpus)
        quicken(simulation)
        calibrate(simulation)
        return simulation

    return make


def run(
    out_dir: Path,
    devices: DeviceSet,
    busy: list[Gpu],
    settings: MeterSettings | None = None,
    server: Server | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> EnergyReport:
    cycle = Cycle(out_dir, devices, settings or MeterSettings("auto"), server)  # type: ignore[arg-type]
    cycle.quiet()
    cycle.load(busy, 0.3)
    meanwhile()
    cycle.quiet()
    return cycle.stop()


def holds(report: EnergyReport, *gpus: Gpu) -> None:
    """The energy is that of these GPUs, and they alone count."""
    [window] = report.windows
    truth_j = sum(gpu.energy_between_j(window.start_ns, window.end_ns) for gpu in gpus)
    assert window.energy_j == pytest.approx(truth_j, abs=2 * (window.uncertainty_j or 0.0))
    assert {device.id for device in report.devices if device.leased} == {gpu.uuid.decode() for gpu in gpus}


def test_a_meter_that_is_named_sums_the_leased_gpus_only(machine: Callable[[int], Simulation], tmp_path: Path) -> None:
    board = machine(4)
    board.gpus[1].set_pids(os.getpid())
    board.gpus[2].set_pids(1)

    settings = MeterSettings("nvml", explicit=True, uuids=uuids(board))
    report = run(tmp_path, DeviceSet("cuda", uuids(board)[1:2]), [board.gpus[1]], settings)

    assert not report.invalid, "others may use the other GPUs"
    holds(report, board.gpus[1])
    assert {device.id for device in report.devices} == set(uuids(board))
    assert all(device.energy_j for device in report.windows[0].devices)


def test_a_broken_gpu_beside_the_leased_one_does_no_harm(
    machine: Callable[[int], Simulation], tmp_path: Path, server: Server
) -> None:
    board = machine(2)
    board.gpus[0].set_pids(server.pid or 0)
    board.gpus[1].error = 15

    settings = MeterSettings("nvml", explicit=True, uuids=uuids(board))
    report = run(tmp_path, DeviceSet("cuda", uuids(board)[:1]), [board.gpus[0]], settings, server)

    assert not report.invalid
    holds(report, board.gpus[0])


@pytest.mark.parametrize("gpus", [(1,), (0, 1)])
def test_a_server_is_metered_on_exactly_the_gpus_that_hold_its_processes(
    machine: Callable[[int], Simulation], tmp_path: Path, server: Server, gpus: tuple[int, ...]
) -> None:
    """Whatever was leased: the first GPU, as by default."""
    board = machine(3)
    busy = [board.gpus[index] for index in gpus]
    for gpu in busy:
        gpu.set_pids(server.pid or 0)

    report = run(tmp_path, DeviceSet("cuda", uuids(board)[:1]), busy, server=server)

    assert not report.invalid
    holds(report, *busy)
    assert "server_gpu_not_leased" in remarks(report)


def test_a_server_that_takes_another_gpu_later_is_seen_there(
    machine: Callable[[int], Simulation], tmp_path: Path, server: Server
) -> None:
    board = machine(2)
    board.gpus[0].set_pids(server.pid or 0)

    def spread() -> None:
        board.gpus[1].set_pids(server.pid or 0)

    report = run(tmp_path, DeviceSet("cuda", uuids(board)[:1]), board.gpus, server=server, meanwhile=spread)

    assert "server_gpu_unknown" in codes(report)


@pytest.mark.parametrize("case", ["no process", "another namespace", "unknown pid"])
@pytest.mark.parametrize("named", [False, True])
def test_a_server_whose_gpu_is_not_known_is_invalid_unless_the_study_names_it(
    machine: Callable[[int], Simulation], tmp_path: Path, server: Server, case: str, named: bool
) -> None:
    board = machine(2)
    if case == "another namespace":
        board.gpus[0].set_pids(FOREIGN_NAMESPACE)
    one = Server(None) if case == "unknown pid" else server

    settings = MeterSettings("auto", named_gpus=named)
    report = run(tmp_path, DeviceSet("cuda", uuids(board)[:1]), [board.gpus[0]], settings, one)

    assert ("server_gpu_unknown" in codes(report)) is not named
    assert ("server_gpu_unknown" in remarks(report)) is named
    holds(report, board.gpus[0])


def test_a_leased_gpu_that_nothing_ran_on_is_no_gpu_of_the_cycle(
    machine: Callable[[int], Simulation], tmp_path: Path
) -> None:
    board = machine(2)
    leased = DeviceSet("cuda", uuids(board))

    idle = run(tmp_path, leased, [board.gpus[0]])
    board.gpus[1].set_pids(os.getpid())
    held = run(tmp_path, leased, [board.gpus[0]])

    assert [uuids(board)[1] in note.message for note in idle.invalid if note.code == "meter_not_on_device"] == [True]
    assert not held.invalid, "a process of the cycle is on it"


def test_a_counter_that_states_a_part_of_the_power_is_invalid_and_told_by_its_ratio(
    machine: Callable[[int], Simulation], tmp_path: Path
) -> None:
    board = machine(1)
    good = run(tmp_path, DeviceSet("cuda", uuids(board)), board.gpus)
    board.gpus[0].counter_gain = 0.57
    bad = run(tmp_path, DeviceSet("cuda", uuids(board)), board.gpus)

    assert "counter_disagrees" not in codes(good)
    assert "counter_disagrees" in codes(bad)
    assert ratio(good) == pytest.approx(1.0, abs=0.1)
    assert ratio(bad) == pytest.approx(0.57, abs=0.06)


def ratio(report: EnergyReport) -> object:
    ratios = report.facts["counter_power_ratio"]
    assert isinstance(ratios, dict)
    return next(iter(ratios.values()))


def test_a_counter_that_shows_more_than_a_board_can_draw_is_invalid(
    machine: Callable[[int], Simulation], tmp_path: Path
) -> None:
    board = machine(1)
    board.gpus[0].counter_gain = 3.0

    report = run(tmp_path, DeviceSet("cuda", uuids(board)), board.gpus)

    assert {"implausible_power", "counter_disagrees"} <= codes(report)


@dataclass(frozen=True)
class Load:
    """Power over time: `high_w` for `high_s`, then `low_w` for `low_s`, again and again, under a ripple."""

    high_w: float = 430.0
    high_s: float = 100.0
    low_w: float = 430.0
    low_s: float = 0.0
    ripple_w: float = 0.0


LOADS = {
    "steady": Load(),
    "ripple": Load(ripple_w=60.0),
    "bursts": Load(620.0, 0.061, 150.0, 0.071),
    "near the counter's period": Load(600.0, 0.077, 300.0, 0.020),
    "half of it": Load(600.0, 0.0402, 300.0, 0.01),
    "repeats": Load(600.0, 0.9, 120.0, 0.4),
}


@pytest.mark.parametrize("instant", [1, 0])
@pytest.mark.parametrize("load", LOADS)
def test_a_right_counter_is_not_blamed_and_one_at_57_percent_is(
    simulation: Simulation, load: str, instant: int
) -> None:
    """Short windows and long ones, readings of 25 ms and of a second, and loads that those see wrongly."""
    gpu = simulation.gpus[0]
    gpu.has_instant = instant
    rng = random.Random(f"{load} {instant}")
    for gain in (1.0, 0.57):
        gpu.counter_gain = gain
        for seconds in (0.3, 1.0, 2.0, 3.0, 10.0):
            device, idle, busy = sampled(simulation, LOADS[load], seconds, rng)
            evidence = Evidence((idle, busy), (device,), (), "worker")
            blamed = "counter_disagrees" in {note.code for note in check(evidence, (), Thresholds())}
            assert blamed is (gain < 1.0), (seconds, gain, counter_ratio(device, [busy]))


def sampled(
    simulation: Simulation, load: Load, seconds: float, rng: random.Random
) -> tuple[DeviceEvidence, Window, Window]:
    """Two seconds of idle, a window of load with half a second of idle on each side; on a virtual clock."""
    gpu, ripple = simulation.gpus[0], {"ripple_w": load.ripple_w, "ripple_s": 0.023 if load.ripple_w else 0.0}
    with virtual_sampler(simulation, gpu, None, rng) as sampler:
        begun_ns = int(simulation.machine.virtual_ns)
        idle_ns = begun_ns + 500_000_000
        now_ns = start_ns = idle_ns + 2_500_000_000 + rng.randrange(100_000_000)
        end_ns = start_ns + round(seconds * 1e9)
        while now_ns < end_ns:
            gpu.plan_power(now_ns, load.high_w, **ripple)
            if load.low_s and now_ns + load.high_s * 1e9 < end_ns:
                gpu.plan_power(now_ns + round(load.high_s * 1e9), load.low_w, **ripple)
            now_ns += round((load.high_s + load.low_s) * 1e9)
        gpu.plan_power(end_ns, 110.0)
        sampler.run_until(end_ns + 700_000_000)
    samples = sampler.readings.samples
    device = DeviceEvidence("GPU", ticks_from(samples, gpu.uuid.decode()), tuple(samples), (), None)
    return device, Window("idle", idle_ns, idle_ns + 2_000_000_000), Window("measure", start_ns, end_ns)


@pytest.mark.parametrize(
    ("terms", "remedy"), [({"aliasing": 40.0, "ripple": 9.0}, "another time"), ({"shape": 40.0}, "longer")]
)
def test_what_keeps_in_step_with_a_sensor_is_not_cured_by_measuring_longer(
    terms: dict[str, float], remedy: str
) -> None:
    window = WindowEnergy("measure", 0, 0, 10**9, 100.0, 40.0, "counter_interpolated", 9, terms)
    [reason] = check(Evidence((), (), (), "worker"), [window], Thresholds())

    assert reason.code == "window_too_short"
    assert remedy in reason.message


@pytest.mark.parametrize(("events", "codes"), [(0x0, ["clocks_changed"]), (0x20, ["clocks_changed"]), (0x4, [])])
def test_clocks_that_the_power_limit_moves_are_a_condition(events: int, codes: list[str]) -> None:
    """Under a low limit prefill runs at half the clock of decode: a sweep of limits would lose its lower half."""
    clocks = ((2.5, 1980.0, 0x0), (3.0, 990.0, events), (3.5, 1980.0, 0x0))
    readings = tuple(
        Sample(round(t * 1e9), "GPU", 390.0, None, None, mhz, clock_events=mask) for t, mhz, mask in clocks
    )
    window = Window("measure", 2_000_000_000, 4_000_000_000)
    device = DeviceEvidence("GPU", None, readings, (), None)
    found = check(Evidence((window,), (device,), (), "worker"), (), Thresholds())
    assert [note.code for note in found if note.code == "clocks_changed"] == codes
