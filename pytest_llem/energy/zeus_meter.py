"""Zeus as a meter, to cross-check GPUs and to read systems on a chip: energy counters, read once at each edge.

`registry` opens it where a study, the command line, the environment, an ini or the user's file names `zeus`. It must
measure as Zeus does and not be improved here, because its purpose is to reproduce what others report.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from math import sqrt
from typing import Any, ClassVar

import pynvml

from pytest_llem.energy import amdsmi_devices
from pytest_llem.energy.attribution import leased_gpus, server_elsewhere
from pytest_llem.energy.protocol import (
    BOARD_GAIN_UNCERTAINTY_REL,
    EnergyEstimate,
    Meter,
    MeterRequest,
    missing_package,
    window_energy,
)
from pytest_llem.energy.readings import Sample, SampleWriter
from pytest_llem.errors import MeterError
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Scope, Window, WindowEnergy
from pytest_llem.job.report import Note

STEP_S = 0.1
"""Update period of the counter on A100 and H100 (arXiv 2312.02741): a reading may be that old at each edge."""

CHIP = "zeus-chip"
PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj", "cpu_energy_mj", "gpu_energy_mj")
"""Fields of Zeus's measurement of a chip without a total: those of Apple silicon, then those of Jetson."""


@dataclass(frozen=True)
class Counters:
    """The counters that Zeus can read; `read` returns millijoules since an arbitrary start, one value per device."""

    devices: tuple[MeteredDevice, ...]
    read: Callable[[], list[float]]
    scope: Scope


class ZeusMeter(Meter):
    """GPUs, else a system on a chip, through `zeus.device` as `ZeusMonitor` reads them: counter differences."""

    name: ClassVar[str] = "zeus"

    def __init__(self, request: MeterRequest) -> None:
        super().__init__(request)
        self._marks: dict[int, list[float]] = {}

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why Zeus cannot be used, or `None`."""
        return missing_package("zeus")

    def start(self) -> None:
        """Open the GPUs that Zeus finds, else the chip that it supports; with neither, the `MeterError` about GPUs."""
        try:
            amd = self._request.devices.uuids if self._request.devices.kind == "rocm" else ()
            self._counters = _gpus({*amd, *(gpu.uuid for gpu in leased_gpus(self._request))})
        except MeterError:
            chip = _chip()
            if chip is None:
                raise
            self._counters = chip
        self._writer = SampleWriter(self._request.samples_path)
        self.mark()

    def mark(self) -> int:
        """Read every GPU's counter at an edge."""
        begin = time.monotonic_ns()
        values = self._counters.read()
        t_ns = (begin + time.monotonic_ns()) // 2
        self._marks[t_ns] = values
        for device, value in zip(self._counters.devices, values, strict=True):
            self._writer.sample(Sample(t_ns, device.id, counter_mj=value))
        return t_ns

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Account the windows whose edges were marked."""
        self._writer.close()
        notes = [
            Note("cross_check", f"as Zeus {version('zeus')} measures: one counter read at each edge, up to a step old"),
            Note("in_process", "the sensor is read inside the measured process"),
        ]
        if self._counters.scope == "module":
            notes.append(Note("not_verified", "Zeus's reading of whole chips was never tried with this meter"))
        return EnergyReport(
            meter=self.name,
            measured=True,
            scope=self._counters.scope,
            placement=self._request.settings.placement,
            devices=self._counters.devices,
            windows=tuple(self._account(window) for window in windows),
            gain_uncertainty_rel=BOARD_GAIN_UNCERTAINTY_REL,
            source=f"zeus {version('zeus')}",
            notes=tuple(notes),
            invalid=server_elsewhere(self._request) if self._counters.scope == "gpu_board" else (),
        )

    def _account(self, window: Window) -> WindowEnergy:
        first, last = self._marks.get(window.start_ns), self._marks.get(window.end_ns)
        if first is None or last is None:
            return WindowEnergy(window.name, window.index, window.start_ns, window.end_ns, None, None, None)
        parts: dict[str, EnergyEstimate | None] = {}
        for device, before, after in zip(self._counters.devices, first, last, strict=True):
            energy_j = (after - before) / 1e3
            bound_j = sqrt(2) * energy_j / window.duration_s * STEP_S
            parts[device.id] = EnergyEstimate(energy_j, bound_j, "counter_difference", 2, {"counter_step": bound_j})
        return window_energy(window, parts, [device.id for device in self._counters.devices if not device.leased])


def _gpus(leased: Collection[str]) -> Counters:
    device: Any = import_module("zeus.device")
    problems: Any = import_module("zeus.device.exception")
    try:
        gpus = device.get_gpus()
    except problems.ZeusBaseGPUError as problem:
        raise MeterError(f"zeus: {problem}", fix="run `llem doctor`, or use another meter") from None
    if len(gpus) == 0:
        raise MeterError("zeus finds no GPU", fix="use --llem-meter=auto")
    missing = [i for i in range(len(gpus)) if not gpus.supports_get_total_energy_consumption(i)]
    if missing:
        raise MeterError(f"zeus: GPU {missing[0]} has no energy counter", fix="use --llem-meter=nvml")
    return Counters(
        tuple(
            MeteredDevice(f"zeus-gpu-{i}", str(gpus.get_name(i)), "gpu", _uuid(gpus.gpus[i]) in leased)
            for i in range(len(gpus))
        ),
        lambda: [float(gpus.get_total_energy_consumption(i)) for i in range(len(gpus))],
        "gpu_board",
    )


def _uuid(gpu: Any) -> str | None:
    """The UUID of one of Zeus's NVIDIA or AMD GPUs; `None` for another maker's, which cannot be leased."""
    with suppress(pynvml.NVMLError, AttributeError, TypeError, ctypes.ArgumentError):
        return str(pynvml.nvmlDeviceGetUUID(gpu.handle))
    with suppress(*amdsmi_devices.UNLOADABLE):
        smi = amdsmi_devices.library()
        with suppress(smi.AmdSmiException):
            return str(smi.amdsmi_get_gpu_device_uuid(gpu.handle))
    return None


def _chip() -> Counters | None:
    device: Any = import_module("zeus.device")
    problems: Any = import_module("zeus.device.exception")
    try:
        chip = device.get_soc()
    except problems.ZeusBaseSoCError:
        return None
    return Counters(
        (MeteredDevice(CHIP, type(chip).__name__, "gpu"),),
        lambda: [chip_energy_mj(chip.get_total_energy_consumption())],
        "module",
    )


def chip_energy_mj(reading: object) -> float:
    """A chip's total energy in millijoules from an `AppleSiliconMeasurement` or `JetsonMeasurement`."""
    total = getattr(reading, "total_energy_mj", None)
    if total is not None:
        return float(total)
    parts = [value for name in PARTS if (value := getattr(reading, name, None)) is not None]
    if not parts:
        raise MeterError(f"zeus: this chip tells no energy: {reading}", fix="use --llem-meter=estimate")
    return float(sum(parts))
