"""A cycle on simulated GPUs, as a worker would run it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from pytest_llem.energy import registry
from pytest_llem.energy.calibrate import save
from pytest_llem.energy.calibration import Calibration
from pytest_llem.job.job import DeviceSet, MeterSettings, ServerProcess
from pytest_llem.job.measurement import EnergyReport, Window
from tests.simulated_nvml.simulation import Gpu, Simulation

PERIOD_S = 0.02
IDLE_W = 110.0
BUSY_W = 500.0


def quicken(simulation: Simulation, slower: int = 1) -> None:
    """Let counters step every 20 ms, or `slower`, instead of 100 ms, so that a test needs a fifth of the time."""
    for gpu in simulation.gpus:
        gpu.period_ns = gpu.power_period_ns = slower * round(PERIOD_S * 1e9)
        gpu.jitter_ns = 100_000
        gpu.instant_ns = 5_000_000


def calibration_of(simulation: Simulation, gpu: Gpu, step_w: float = BUSY_W - IDLE_W) -> Calibration:
    """One made now that tells a simulated GPU's true properties, under a load of `step_w` above idle."""
    return Calibration(
        uuid=gpu.uuid.decode(),
        driver=simulation.machine.driver.decode(),
        period_ns=gpu.period_ns,
        jitter_ns=gpu.jitter_ns,
        call_latency_ns=gpu.latency_ns,
        poll_step_ns=500_000,
        ramp_ns=gpu.ramp_ns,
        ramp_uncertainty_ns=200_000,
        counter_type="accumulating" if gpu.duty >= 1 else "part_time",
        duty=gpu.duty,
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        rise_ns=gpu.ramp_ns,
        settle_ns=4 * gpu.ramp_ns,
        step_w=step_w,
    )


def calibrate(simulation: Simulation) -> None:
    """Keep a calibration of each simulated GPU."""
    for gpu in simulation.gpus:
        save(calibration_of(simulation, gpu))


def uuids(simulation: Simulation) -> tuple[str, ...]:
    return tuple(gpu.uuid.decode() for gpu in simulation.gpus)


class Cycle:
    """The meter around a cycle: quiet, load, quiet."""

    def __init__(
        self,
        out_dir: Path,
        devices: DeviceSet,
        settings: MeterSettings | None = None,
        server: ServerProcess | None = None,
    ) -> None:
        meter = registry.open_meter(settings or MeterSettings("nvml"), devices, out_dir, server)
        assert meter is not None
        self.meter = meter
        self.meter.start()
        self.windows: list[Window] = []

    def quiet(self, periods: float = 6) -> None:
        time.sleep(periods * PERIOD_S)

    def load(self, gpus: Sequence[Gpu], seconds: float = 0.15, *, quiet: bool = True, name: str = "measure") -> Window:
        start = max(gpu.set_power(BUSY_W) for gpu in gpus)
        time.sleep(seconds)
        end = min(gpu.set_power(IDLE_W) for gpu in gpus)
        side_s = 6 * PERIOD_S if quiet else None
        self.windows.append(Window(name, start, end, len(self.windows), side_s, side_s))
        return self.windows[-1]

    def stop(self) -> EnergyReport:
        return self.meter.stop(self.windows)


def measure(
    simulation: Simulation,
    out_dir: Path,
    settings: MeterSettings | None = None,
    server: ServerProcess | None = None,
) -> EnergyReport:
    """Quiet, one load on all GPUs, quiet."""
    cycle = Cycle(out_dir, DeviceSet("cuda", uuids(simulation)), settings, server)
    cycle.quiet()
    cycle.load(simulation.gpus)
    cycle.quiet()
    return cycle.stop()


def codes(report: EnergyReport) -> set[str]:
    return {note.code for note in report.invalid}


def remarks(report: EnergyReport) -> set[str]:
    return {note.code for note in report.notes}
