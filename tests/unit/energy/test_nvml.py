"""The NVML meter on simulated GPUs, through the real pynvml and a real sampler process.

In real time, so that a busy machine widens bounds and delays readings: energies are held against twice the stated bound
here, and what that bound is worth against many windows on a virtual clock (`test_coverage.py`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pynvml
import pytest

from pytest_llem.energy import calibration, checked, rapl_source, registry
from pytest_llem.energy.calibrate import save
from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.registry import meter_class
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings, ServerProcess
from pytest_llem.job.measurement import EnergyReport, Window
from pytest_llem.job.wire import decode, encode
from tests.simulated_nvml.plugin import MakeSimulation
from tests.simulated_nvml.simulation import Simulation
from tests.simulated_nvml.virtual import virtual_sampler
from tests.unit.energy.cycle import PERIOD_S, Cycle, calibrate, codes, measure, quicken, remarks, uuids


@pytest.fixture
def machine(simulation: Simulation) -> Simulation:
    quicken(simulation)
    calibrate(simulation)
    return simulation


def test_quiet_sides_give_the_true_energy_within_the_stated_bound(machine: Simulation, tmp_path: Path) -> None:
    report = measure(machine, tmp_path)

    window = report.windows[0]
    truth_j = machine.gpus[0].energy_between_j(window.start_ns, window.end_ns)
    assert window.estimator == "counter_outer_edge"
    assert window.energy_j == pytest.approx(truth_j, abs=2 * (window.uncertainty_j or 0.0))
    assert not report.invalid
    assert report.facts["temperature_c"] == {machine.gpus[0].uuid.decode(): 40.0}
    assert report.measured
    assert report.scope == "gpu_board"
    assert report.gain_uncertainty_rel is not None


def accounted_again(machine: Simulation, directory: Path, report: EnergyReport, window: Window) -> EnergyReport:
    devices = DeviceSet("cuda", uuids(machine))
    meter = meter_class("nvml", devices)(MeterRequest(MeterSettings("nvml"), devices, directory))
    return checked.account_again(meter, report, [window])


def test_a_part_of_a_window_is_accounted_from_stored_readings_by_the_calibration_of_then(
    machine: Simulation, tmp_path: Path
) -> None:
    """A benchmark inside a command that was measured got the energy of the command, or that of another calibration."""
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    whole = cycle.load(machine.gpus, 0.4, quiet=False)
    cycle.quiet()
    report = decode(EnergyReport, json.loads(json.dumps(encode(cycle.stop()))), "report")
    uuid, driver = uuids(machine)[0], machine.machine.driver.decode()
    calibration.path_of(uuid, driver).unlink()
    part = Window("measure", whole.start_ns + 100_000_000, whole.end_ns - 100_000_000)

    again = accounted_again(machine, tmp_path, report, part)

    truth_j = machine.gpus[0].energy_between_j(part.start_ns, part.end_ns)
    assert again.windows[0].energy_j == pytest.approx(truth_j, abs=2 * (again.windows[0].uncertainty_j or 0.0))
    assert (again.windows[0].energy_j or 0.0) < 0.7 * (report.windows[0].energy_j or 0.0)
    assert again.facts["calibrations"] == report.facts["calibrations"]
    assert not again.invalid


def test_a_report_says_which_calibration_its_bounds_rest_on(machine: Simulation, tmp_path: Path) -> None:
    uuid, driver = uuids(machine)[0], machine.machine.driver.decode()
    stored = calibration.load(uuid, driver)
    assert stored is not None
    save(stored._replace(made_at="2020-01-01T00:00:00+00:00", conditions={"sm_clock_mhz": 1980}))

    report = measure(machine, tmp_path)

    used = calibration.load(uuid, driver)
    assert used is not None
    assert report.facts["calibrations"] == [
        {
            "device": uuid,
            "id": f"{uuid}@2020-01-01T00:00:00+00:00",
            "hash": used.hash,
            "made_at": "2020-01-01T00:00:00+00:00",
            "valid_until": "2020-12-31T00:00:00+00:00",
            "expired": True,
            "conditions": {"sm_clock_mhz": 1980},
        }
    ]
    assert used.hash != stored.hash
    assert "calibration_expired" in remarks(report)


def test_a_calibration_in_the_place_of_another_gpus_is_noted_and_not_used(machine: Simulation, tmp_path: Path) -> None:
    uuid, driver = uuids(machine)[0], machine.machine.driver.decode()
    stored = calibration.load(uuid, driver)
    assert stored is not None
    written = save(stored._replace(uuid="GPU-another"))
    written.rename(calibration.path_of(uuid, driver))

    report = measure(machine, tmp_path)

    assert {"calibration_foreign", "uncalibrated"} <= remarks(report)
    assert report.facts["calibrations"] == []


def test_busy_sides_are_interpolated_and_the_bound_grows_with_the_power_step(
    machine: Simulation, tmp_path: Path
) -> None:
    """By the median of five: where a step of the counter falls on an edge, or is seen late, is chance."""
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    for index in range(5):
        cycle.quiet()
        stepped = cycle.load(machine.gpus, 0.32, quiet=False)
        # Five periods from the load's edges, so that no interval near its own holds a step.
        cycle.windows.append(Window("prefill", stepped.start_ns + 100_000_000, stepped.end_ns - 100_000_000, index))
    cycle.quiet()

    accounted = cycle.stop().windows

    for found in accounted:
        truth_j = machine.gpus[0].energy_between_j(found.start_ns, found.end_ns)
        assert found.estimator in ("counter_interpolated", "counter_difference")
        assert found.energy_j == pytest.approx(truth_j, abs=2 * (found.uncertainty_j or 0.0))
    outer, inner = (
        [found.terms["shape"] for found in accounted if found.name == name] for name in ("measure", "prefill")
    )
    assert (len(outer), len(inner)) == (5, 5)
    assert median(inner) < median(outer)


def test_sides_that_are_claimed_quiet_but_are_busy_are_not_believed(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    machine.gpus[0].set_power(400.0, ripple_w=150.0, ripple_s=0.05)
    cycle.quiet()
    start = cycle.meter.mark()
    time.sleep(0.1)
    cycle.windows.append(Window("measure", start, cycle.meter.mark(), 0, 0.12, 0.12))
    cycle.quiet()

    report = cycle.stop()

    assert report.windows[0].estimator != "counter_outer_edge"


def test_several_gpus_are_summed_and_told_apart(make_simulation: MakeSimulation, tmp_path: Path) -> None:
    simulation = make_simulation(2)
    quicken(simulation)
    calibrate(simulation)

    report = measure(simulation, tmp_path)

    window = report.windows[0]
    assert [device.id for device in window.devices] == list(uuids(simulation))
    assert window.energy_j == pytest.approx(sum(device.energy_j or 0 for device in window.devices))
    for gpu, device in zip(simulation.gpus, window.devices, strict=True):
        truth_j = gpu.energy_between_j(window.start_ns, window.end_ns)
        assert device.energy_j == pytest.approx(truth_j, abs=2 * (device.uncertainty_j or 0.0))


def test_only_leased_gpus_are_metered(make_simulation: MakeSimulation, tmp_path: Path) -> None:
    simulation = make_simulation(3)
    quicken(simulation)
    leased = uuids(simulation)[1]

    cycle = Cycle(tmp_path, DeviceSet("cuda", (leased.removeprefix("GPU-"),)))

    assert [device.id for device in cycle.stop().devices] == [leased]


def test_a_meter_named_for_a_cpu_cycle_reads_the_visible_gpus_and_counts_none(
    make_simulation: MakeSimulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = make_simulation(3)
    quicken(simulation)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"2,{uuids(simulation)[0]},7,1")

    cycle = Cycle(tmp_path, DeviceSet("cpu"), MeterSettings("nvml", explicit=True))
    cycle.quiet()
    cycle.load(simulation.gpus)
    cycle.quiet()
    report = cycle.stop()

    assert [device.id for device in report.devices] == [uuids(simulation)[2], uuids(simulation)[0]]
    assert not any(device.leased for device in report.devices)
    assert report.windows[0].energy_j is None
    assert all(device.energy_j for device in report.windows[0].devices)
    assert "meter_not_on_device" in codes(report)


def test_auto_takes_nvml_for_cuda_devices(machine: Simulation, tmp_path: Path) -> None:
    meter = registry.open_meter(MeterSettings("auto"), DeviceSet("cuda", uuids(machine)), tmp_path)

    assert meter is not None
    assert meter.name == "nvml"


def test_without_calibration_the_bound_is_wide_and_the_report_says_so(simulation: Simulation, tmp_path: Path) -> None:
    quicken(simulation)

    report = measure(simulation, tmp_path)

    window = report.windows[0]
    assert "uncalibrated" in remarks(report)
    assert window.energy_j is not None
    assert window.uncertainty_j is not None
    assert window.uncertainty_j > 0.05 * window.energy_j
    assert "counter_type" in window.terms


def test_a_part_time_counter_gets_a_bound_that_covers_it(machine: Simulation, tmp_path: Path) -> None:
    machine.gpus[0].duty = 0.25
    calibrate(machine)

    report = measure(machine, tmp_path)

    window = report.windows[0]
    truth_j = machine.gpus[0].energy_between_j(window.start_ns, window.end_ns)
    assert window.energy_j == pytest.approx(truth_j, abs=2 * (window.uncertainty_j or 0.0))
    assert window.terms["counter_type"] > 1.0


def test_a_gpu_without_a_counter_is_integrated_from_power(machine: Simulation, tmp_path: Path) -> None:
    machine.gpus[0].has_counter = 0

    report = measure(machine, tmp_path)

    window = report.windows[0]
    truth_j = machine.gpus[0].energy_between_j(window.start_ns, window.end_ns)
    assert window.estimator == "power_integral"
    assert window.energy_j == pytest.approx(truth_j, abs=2 * (window.uncertainty_j or 0.0))


def test_a_window_without_readings_around_it_has_no_energy(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.windows.append(Window("measure", 1_000, 2_000))

    report = cycle.stop()

    assert report.windows[0].energy_j is None
    assert report.windows[0].uncertainty_j is None
    assert "sensor_gap" in codes(report)


def test_a_gpu_that_falls_off_the_bus_is_a_gap_and_not_the_end(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    start = machine.gpus[0].set_power(400.0)
    cycle.quiet(3)
    machine.gpus[0].error = 15
    cycle.quiet(4)
    cycle.windows.append(Window("measure", start, cycle.meter.mark()))
    machine.gpus[0].error = 0

    report = cycle.stop()

    assert "sensor_gap" in codes(report)
    assert any("lost" in note.message for note in report.invalid)
    assert max(sample.t_ns for sample in read_samples(tmp_path / "samples.jsonl")) > cycle.windows[0].end_ns


def test_a_counter_that_stands_still_is_a_gap(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    machine.gpus[0].frozen_at_ns = time.monotonic_ns()
    start = cycle.meter.mark()
    cycle.quiet(10)
    cycle.windows.append(Window("measure", start, cycle.meter.mark()))
    machine.gpus[0].frozen_at_ns = 0

    report = cycle.stop()

    assert "sensor_gap" in codes(report)


def test_a_counter_reset_is_never_accounted_across(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    start = cycle.meter.mark()
    cycle.quiet(3)
    machine.gpus[0].counter_offset_mj -= 4_900_000
    cycle.quiet(3)
    cycle.windows.append(Window("measure", start, cycle.meter.mark()))
    cycle.quiet()

    report = cycle.stop()

    assert report.windows[0].energy_j is None
    assert "counter_reset" in codes(report)


def test_a_counter_of_32_bits_is_followed_over_its_wrap(machine: Simulation, tmp_path: Path) -> None:
    gpu = machine.gpus[0]
    gpu.wraps = 1
    gpu.set_power(1.0)  # the load alone reaches the wrap, however long the meter takes to start
    drawn_mj = round(gpu.energy_j(time.monotonic_ns()) * 1e3)
    gpu.counter_offset_mj = 2**32 - drawn_mj - 60_000

    report = measure(machine, tmp_path)

    window = report.windows[0]
    values = [s.counter_mj for s in read_samples(tmp_path / "samples.jsonl") if s.counter_mj is not None]
    assert min(values) < max(values) - 2**31, "the test did not reach the wrap"
    truth_j = gpu.energy_between_j(window.start_ns, window.end_ns)
    assert window.energy_j == pytest.approx(truth_j, abs=2 * (window.uncertainty_j or 0.0))
    assert "counter_reset" not in codes(report)


def test_a_foreign_process_invalidates_and_the_own_children_do_not(machine: Simulation, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        machine.gpus[0].set_pids(os.getpid(), child.pid)
        own = measure(machine, tmp_path)
        machine.gpus[0].set_pids(os.getpid(), 1)
        other = measure(machine, tmp_path)
    finally:
        child.communicate()

    assert "foreign_process" not in codes(own)
    assert "foreign_process" in codes(other)


def test_a_started_server_is_no_foreign_process_and_its_memory_no_residue(machine: Simulation, tmp_path: Path) -> None:
    """It is no child of the process that measures, and was loaded before the meter was started.

    Another window of the same readings was invalid for its memory, so that no benchmark of a server could be imported.
    """
    launcher = subprocess.Popen(
        ["setsid", "--fork", "sh", "-c", "echo $$; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    machine.gpus[0].set_pids(os.getpid(), pid)
    machine.gpus[0].memory_used = 6 * 2**30
    try:
        own = measure(machine, tmp_path, server=ServerProcess(pid, "command", "server.log", 0, 1.0))
        window = own.windows[0]
        again = accounted_again(machine, tmp_path, own, Window("measure", window.start_ns, window.end_ns))
        other = measure(machine, tmp_path)
    finally:
        launcher.communicate()

    assert not {"foreign_process", "residual_memory"} & codes(own)
    assert not again.invalid
    assert {"foreign_process", "residual_memory"} <= codes(other)


def test_process_ids_of_another_namespace_prove_nothing(machine: Simulation, tmp_path: Path) -> None:
    """In a container NVML reports the host's ids, of which one may happen to exist inside."""
    machine.gpus[0].set_pids(1, 2**22 + 7)

    report = measure(machine, tmp_path)

    assert "foreign_process" not in codes(report)
    assert "processes_unknown" in remarks(report)


def test_memory_in_use_before_the_engine_loads_invalidates(machine: Simulation, tmp_path: Path) -> None:
    machine.gpus[0].memory_used = 6 * 2**30

    assert "residual_memory" in codes(measure(machine, tmp_path))


def test_a_threshold_can_be_set(machine: Simulation, tmp_path: Path) -> None:
    machine.gpus[0].memory_used = 6 * 2**30
    settings = MeterSettings("nvml", thresholds={"residual_memory_bytes": 8 * 2.0**30})

    assert "residual_memory" not in codes(measure(machine, tmp_path, settings))


def test_thermal_throttling_is_told_from_the_cumulative_counter(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    start = machine.gpus[0].set_power(400.0)
    machine.gpus[0].throttle_thermal_ns += 30_000_000
    machine.gpus[0].throttle_power_ns += 90_000_000
    cycle.quiet(5)
    cycle.windows.append(Window("measure", start, cycle.meter.mark()))
    cycle.quiet()

    report = cycle.stop()

    assert "throttled_thermal" in codes(report)
    assert "throttled_power" not in codes(report)
    assert "power_capped" in remarks(report)


def test_a_window_too_short_for_a_number_worth_having_is_invalid(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    cycle.load(machine.gpus, PERIOD_S / 4, quiet=False)
    cycle.quiet()

    assert "window_too_short" in codes(cycle.stop())


def test_a_mig_instance_is_metered_as_its_whole_gpu_and_flagged(machine: Simulation, tmp_path: Path) -> None:
    machine.gpus[0].mig = 1

    report = Cycle(tmp_path, DeviceSet("cuda", (machine.gpus[0].mig_uuid.decode(),))).stop()

    assert [device.id for device in report.devices] == list(uuids(machine))
    assert "mig_whole_gpu" in remarks(report)


def test_a_module_is_named_as_such(machine: Simulation, tmp_path: Path) -> None:
    machine.gpus[0].name = b"NVIDIA GH200 480GB"

    assert measure(machine, tmp_path).scope == "module"


def test_an_unknown_gpu_is_an_error_with_a_remedy(machine: Simulation, tmp_path: Path) -> None:
    with pytest.raises(MeterError) as caught:
        Cycle(tmp_path, DeviceSet("cuda", ("GPU-nowhere",)))

    assert caught.value.fix is not None
    assert "nvidia-smi -L" in caught.value.fix


def test_a_driver_that_is_not_loaded_is_an_error_with_a_remedy(machine: Simulation, tmp_path: Path) -> None:
    machine.machine.init_error = 9

    with pytest.raises(MeterError, match="Driver Not Loaded") as caught:
        registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda"), tmp_path)

    assert caught.value.fix is not None
    assert "modprobe" in caught.value.fix


def test_idle_power_is_reported_with_its_bound_and_conditions(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    start = cycle.meter.mark()
    cycle.quiet(10)
    cycle.windows.append(Window("idle", start, cycle.meter.mark()))
    cycle.quiet(2)

    idle = cycle.stop().facts["idle"]

    assert isinstance(idle, dict)
    assert idle["power_w"] == pytest.approx(110.0, abs=2 * idle["uncertainty_w"])
    assert idle["settled"]


def test_host_energy_is_kept_beside_the_gpus_and_never_added(
    machine: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.energy.powercap_tree import PowercapTree

    tree = PowercapTree.shown(tmp_path / "powercap", monkeypatch)
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    start = cycle.meter.mark()
    tree.set_uj(7_000_000, 2_000_000)
    cycle.quiet(3)
    cycle.windows.append(Window("measure", start, cycle.meter.mark()))
    cycle.quiet(2)

    report = cycle.stop()

    assert report.host is not None
    assert report.host.package_j == pytest.approx(7.0)
    assert report.host.dram_j == pytest.approx(2.0)
    # Its readings are accounted by its own counters, wherever they are read again.
    monkeypatch.setenv(rapl_source.ROOT_VARIABLE, str(tmp_path / "another"))
    again = accounted_again(machine, tmp_path, report, cycle.windows[0])
    assert again.host is not None
    assert 0 <= (again.host.package_j or 0.0) <= 7.0
    window = report.windows[0]
    truth_j = machine.gpus[0].energy_between_j(window.start_ns, window.end_ns)
    assert window.energy_j == pytest.approx(truth_j, abs=2 * (window.uncertainty_j or 0.0))


def test_a_sampler_that_dies_is_reported_and_not_waited_for(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    cycle.quiet()
    os.kill(cycle.meter.sampler_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    start = cycle.meter.mark()
    cycle.quiet(3)
    cycle.windows.append(Window("measure", start, cycle.meter.mark()))

    report = cycle.stop()

    assert report.windows[0].energy_j is None
    assert "sensor_gap" in codes(report)


def test_the_sampler_ends_when_its_parent_is_killed(machine: Simulation, tmp_path: Path) -> None:
    """Also when a child of the parent, forked without exec, still holds the sampler's pipe open."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from pytest_llem.energy import registry; from pytest_llem.job.job import DeviceSet, MeterSettings\n"
        f"meter = registry.open_meter(MeterSettings('nvml'), DeviceSet('cuda'), Path({str(tmp_path)!r}))\n"
        "meter.start()\n"
        "child = os.fork()\n"
        "if child: print(meter._sampler.pid, child, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    sampler, child = map(int, parent.stdout.readline().split())
    try:
        assert Path(f"/proc/{sampler}").exists()
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 50
        while Path(f"/proc/{sampler}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{sampler}").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_the_counter_is_read_gently(simulation: Simulation) -> None:
    gpu = simulation.gpus[0]
    calibrate(simulation)
    known = calibration.load(gpu.uuid.decode(), simulation.machine.driver.decode())
    with virtual_sampler(simulation, gpu, known, random.Random(3)) as sampler:
        begin_ns = simulation.machine.virtual_ns
        sampler.run_until(begin_ns + 20 * gpu.period_ns)
        before = gpu.counter_reads
        sampler.run_until(begin_ns + 120 * gpu.period_ns)

    # A loop without sleep makes more than 1,000 at each step, even polling every 2 ms makes 50.
    assert (gpu.counter_reads - before) / 100 < 12


def test_a_reading_that_fails_beside_the_counter_costs_no_step(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power profiles are new: a driver that knows their structure in another version would end every measurement."""

    def other_version(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlDeviceWorkloadPowerProfileGetCurrentProfiles", other_version)
    gpu = simulation.gpus[0]
    with virtual_sampler(simulation, gpu, None, random.Random(3)) as sampler:
        sampler.run_until(int(simulation.machine.virtual_ns) + 100 * gpu.period_ns)
    assert sum(sample.bracket_ns is not None for sample in sampler.readings.samples) > 95
    assert not [event for event in sampler.readings.events if event["event"] == "error"]


def test_the_measured_process_never_calls_nvml_while_it_is_measured(machine: Simulation, tmp_path: Path) -> None:
    cycle = Cycle(tmp_path, DeviceSet("cuda", uuids(machine)))
    os.kill(cycle.meter.sampler_pid, signal.SIGSTOP)  # type: ignore[attr-defined]
    before = machine.gpus[0].counter_reads
    for _ in range(100):
        cycle.meter.mark()
    after = machine.gpus[0].counter_reads
    os.kill(cycle.meter.sampler_pid, signal.SIGCONT)  # type: ignore[attr-defined]
    cycle.stop()

    assert after == before
