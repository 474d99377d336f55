"""Zeus as a meter, to cross-check: its devices' energy counters, read once at each edge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from math import sqrt
from typing import Any, ClassVar

from pytest_llem.energy.protocol import DeviceEnergy, EnergyReport, MeteredDevice, Note, Window, WindowEnergy
from pytest_llem.energy.samples import Sample, SampleWriter
from pytest_llem.energy.setup import MeterSetup
from pytest_llem.errors import MeterError

STEP_S = 0.1
"""Period of the counter behind Zeus's readings on H100; the counter may be that old at each edge."""
GAIN_UNCERTAINTY_REL = 0.05


class ZeusMeter:
    """NVIDIA and AMD GPUs through `zeus.device`, as `ZeusMonitor` reads them: counter differences, in this process."""

    name: ClassVar[str] = "zeus"

    def __init__(self, setup: MeterSetup) -> None:
        self._setup = setup
        self._gpus: Any = None
        self._marks: dict[int, list[float]] = {}
        self._writer: SampleWriter | None = None

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why Zeus cannot be used, or `None`."""
        try:
            version("zeus")
        except PackageNotFoundError:
            return MeterError("the meter `zeus` needs the package zeus", fix="pip install 'pytest-llem[zeus]'")
        return None

    def start(self) -> None:
        """Open Zeus's devices; `MeterError` when it finds none with an energy counter."""
        device: Any = import_module("zeus.device")
        common: Any = import_module("zeus.device.gpu.common")
        try:
            self._gpus = device.get_gpus()
        except common.ZeusBaseGPUError as problem:
            raise MeterError(f"zeus: {problem}", fix="run `llem doctor`, or use another meter") from None
        if len(self._gpus) == 0:
            raise MeterError("zeus finds no GPU", fix="use --llem-meter=auto")
        missing = [i for i in range(len(self._gpus)) if not self._gpus.supports_get_total_energy_consumption(i)]
        if missing:
            raise MeterError(f"zeus: GPU {missing[0]} has no energy counter", fix="use --llem-meter=nvml")
        self._writer = SampleWriter(self._setup.samples_path)
        self.mark()

    def mark(self) -> int:
        """Read every GPU's counter at an edge."""
        begin = time.monotonic_ns()
        values = [float(self._gpus.get_total_energy_consumption(i)) for i in range(len(self._gpus))]
        t_ns = (begin + time.monotonic_ns()) // 2
        self._marks[t_ns] = values
        if self._writer is not None:
            for index, value in enumerate(values):
                self._writer.sample(Sample(t_ns, _id(index), counter_mj=value))
        return t_ns

    def power_w(self) -> float | None:
        """Zeus is asked for energy only."""
        return None

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Account the windows whose edges were marked."""
        if self._writer is not None:
            self._writer.close()
        count = len(self._gpus) if self._gpus is not None else 0
        notes = [
            Note("cross_check", f"as Zeus {version('zeus')} measures: one counter read at each edge, up to a step old"),
            Note("in_process", "the sensor is read inside the measured process"),
        ]
        if self._setup.devices.kind == "cpu":
            notes.append(Note("meter_not_on_device", "the engine ran on the CPU; these joules are those of idle GPUs"))
        return EnergyReport(
            meter=self.name,
            measured=True,
            scope="gpu_board",
            placement=self._setup.settings.placement,
            devices=tuple(MeteredDevice(_id(i), str(self._gpus.get_name(i)), "gpu") for i in range(count)),
            windows=tuple(self._account(window) for window in windows),
            gain_uncertainty_rel=GAIN_UNCERTAINTY_REL,
            source=f"zeus {version('zeus')}",
            notes=tuple(notes),
        )

    def _account(self, window: Window) -> WindowEnergy:
        first, last = self._marks.get(window.start_ns), self._marks.get(window.end_ns)
        if first is None or last is None:
            return WindowEnergy(window.name, window.index, window.start_ns, window.end_ns, None, None, None)
        parts = [(b - a) / 1e3 for a, b in zip(first, last, strict=True)]
        bounds = [sqrt(2) * part / window.duration_s * STEP_S for part in parts]
        bound = sqrt(sum(one**2 for one in bounds))
        return WindowEnergy(
            window.name,
            window.index,
            window.start_ns,
            window.end_ns,
            sum(parts),
            bound,
            "counter_difference",
            samples=2,
            terms={"counter_step": bound},
            devices=tuple(DeviceEnergy(_id(i), e, b) for i, (e, b) in enumerate(zip(parts, bounds, strict=True))),
        )


def _id(index: int) -> str:
    return f"zeus-gpu-{index}"
