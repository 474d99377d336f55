"""Whole sweeps of a GPU's setting on the virtual clock: set through NVML, loaded, sampled, accounted, verified, judged.

Everything but time and the die is real: `pynvml` sets, the sampler's source reads, the estimator accounts, and the
section `device` says whether the setting held. A sweep of a dozen settings takes a second or two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pynvml

from pytest_llem.energy.estimators import from_counter
from pytest_llem.energy.protocol import window_energy
from pytest_llem.energy.series import ticks_from
from pytest_llem.job.config import DeviceSettings
from pytest_llem.job.gpu_setting import GpuSetting, SettingName
from pytest_llem.job.job import DeviceSet, Job
from pytest_llem.job.measurement import EnergyReport, Measurement, MeteredDevice, Window
from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.derive import derive_result
from pytest_llem.results.device_optimum import Optimum, optima
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.device import derive_device
from pytest_llem.study.model import SweptAxis
from tests.simulated_nvml.loads import operation, run_load
from tests.simulated_nvml.simulation import Gpu, Simulation
from tests.simulated_nvml.virtual import virtual_sampler
from tests.unit.energy.cycle import calibration_of
from tests.unit.results.conftest import REPORT, Bench

SECOND = 1_000_000_000
QUIET_S = 1.0
STEP_W = 600.0  # between idle and the load


@dataclass(frozen=True)
class Sweep:
    """One setting over values, with as many cycles of so much work, and by how much cycles scatter (1 sigma)."""

    name: SettingName
    values: tuple[int, ...]
    cycles: int = 3
    work_s: float = 4.0
    scatter_rel: float = 0.005

    def run(self, simulation: Simulation, path: Path, rng: random.Random) -> Results:
        """The results of all cycles, in the order of the values; the GPU stands as before afterwards."""
        gpu = simulation.gpus[0]
        found = [
            self._cycle(simulation, gpu, value, cycle, path, rng)
            for value in self.values
            for cycle in range(1, self.cycles + 1)
        ]
        return Results(tuple(found))

    def optimum(self, results: Results) -> Optimum:
        """What is said of them."""
        labels = tuple(map(str, self.values))
        axis = SweptAxis(f"device.{self.name}", self.name, labels, self.values)
        (found,) = optima(
            results, StudyAxes((axis,), {label: (value,) for label, value in zip(labels, self.values, strict=True)})
        )
        return found

    def true_costs(self, gpu: Gpu) -> dict[int, float]:
        """The true energy per work at each value, in joules per second of work at the highest clock."""
        pynvml.nvmlInit()
        costs = {}
        for value in self.values:
            self._set(gpu, value)
            at = operation(gpu)
            costs[value] = at.power_w / at.speed
        self._put_back(gpu)
        pynvml.nvmlShutdown()
        return costs

    def _cycle(
        self, simulation: Simulation, gpu: Gpu, value: int, cycle: int, path: Path, rng: random.Random
    ) -> Result:
        uuid = gpu.uuid.decode()
        job = replace(Bench().job(CycleKey("study", str(value), "0123456789abcdef", cycle)), cycle=cycle)
        config = replace(job.config, device=DeviceSettings(**{self.name: value}))  # type: ignore[arg-type]
        with virtual_sampler(simulation, gpu, calibration_of(simulation, gpu, STEP_W), rng) as sampler:
            previous, applied = self._set(gpu, value)
            made = GpuSetting(uuid, self.name, value, applied=applied, previous=previous)
            job = replace(job, config=config, devices=DeviceSet("cuda", (uuid,)), gpu_settings=(made,))
            start_ns = int(simulation.machine.virtual_ns) + SECOND + rng.randrange(gpu.period_ns)
            sampler.run_until(start_ns)
            at = run_load(gpu, 1 + self.scatter_rel * rng.gauss(0, 1))
            seconds = self.work_s / at.speed * (1 + self.scatter_rel * rng.gauss(0, 1))
            end_ns = int(simulation.machine.virtual_ns) + round(seconds * SECOND)
            sampler.run_until(end_ns)
            run_load(gpu, 0.0)
            sampler.run_until(end_ns + SECOND + SECOND // 2)
            self._put_back(gpu)
        window = Window("measure", start_ns, end_ns, 0, QUIET_S, QUIET_S)
        samples = path / "samples.jsonl"
        lines = [*sampler.readings.events, *({**sample._asdict()} for sample in sampler.readings.samples)]
        samples.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        ticks = ticks_from(sampler.readings.samples, uuid)
        energy = window_energy(window, {uuid: from_counter(ticks, window, calibration_of(simulation, gpu, STEP_W))})
        report = EnergyReport("nvml", True, "gpu_board", "worker", (MeteredDevice(uuid, "H100", "gpu"),), (energy,))
        return _result(job, window, report, samples)

    def _set(self, gpu: Gpu, value: int) -> tuple[float | None, float | None]:
        """Make the setting as the driver does; what it read before and after."""
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid.decode())
        if self.name == "power_limit_w":
            before = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, value * 1000)
            return before, pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3
        pynvml.nvmlDeviceSetGpuLockedClocks(handle, value, value)
        return None, None

    def _put_back(self, gpu: Gpu) -> None:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid.decode())
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, gpu.default_limit_mw)
        pynvml.nvmlDeviceResetGpuLockedClocks(handle)


def draw_board(gpu: Gpu, rng: random.Random) -> None:
    """Let the GPU be another board: how much leaks, where voltage begins to rise, and what waits for memory."""
    gpu.leakage_w = rng.uniform(70, 150)
    gpu.switching_w = 620 - 70 - gpu.leakage_w
    gpu.knee_mhz = rng.randrange(810, 1411, 15)
    gpu.low_v = rng.uniform(0.65, 0.78)
    gpu.compute_share = rng.uniform(0.5, 1.0)


def steps_apart(values: Sequence[int], one: int, other: int) -> int:
    """How many steps of a grid lie between two of its values."""
    return abs(values.index(one) - values.index(other))


def _result(job: Job, window: Window, energy: EnergyReport, samples: Path) -> Result:
    """The cycle as one of a bench whose repeats are the window's two halves."""
    template: Measurement = Bench().measurement()
    half_ns = (window.start_ns + window.end_ns) // 2
    first, second = template.repeats
    repeats = (
        replace(first, start_ns=window.start_ns, end_ns=half_ns),
        replace(second, start_ns=half_ns, end_ns=window.end_ns),
    )
    requests = tuple(
        replace(request, start_ns=window.start_ns, end_ns=window.end_ns, token_times_ns=None)
        for request in template.requests
    )
    measurement = replace(template, windows=(window,), repeats=repeats, requests=requests, energy=energy)
    device = derive_device(job, measurement, samples)
    return derive_result(job, measurement, REPORT, study="study", environment={}, device=device)
