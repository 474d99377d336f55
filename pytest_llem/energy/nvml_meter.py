"""GPU energy through the sampler process: what NVIDIA's and AMD's meters share, and NVIDIA's.

Opened by `registry`. The measured process must not call NVML while it is measured: the sampler process reads the
sensors, and a mark only reads the clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pynvml

from pytest_llem.energy import calibration, nvml_devices, rapl_source
from pytest_llem.energy import rapl_meter as rapl
from pytest_llem.energy.accounting import Accounts, GpuFacts
from pytest_llem.energy.idle_power import recent_conditions
from pytest_llem.energy.protocol import BOARD_GAIN_UNCERTAINTY_REL, Conditions, Meter, MeterRequest
from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.errors import MeterError
from pytest_llem.job.measurement import EnergyReport, Window
from pytest_llem.job.report import Note


class SampledGpuMeter(Meter):
    """GPUs by their energy counter, read by the sampler process; CPU packages and DRAM beside them where readable."""

    gain_uncertainty_rel: ClassVar[float | None] = None
    """Relative gain error of the board's sensor, reported beside the energy and never part of its uncertainty."""

    can_calibrate: ClassVar[bool] = False
    """Whether `llem doctor --calibrate` works for these GPUs."""

    notes: ClassVar[tuple[Note, ...]] = ()
    """Notes that every report of this meter carries."""

    def __init__(self, request: MeterRequest) -> None:
        super().__init__(request)
        readable = rapl_source.domains()
        self._cpu = rapl.RaplEdges(readable if rapl.obstacle(readable) is None else ())
        self._sampler: SamplerProcess | None = None
        self._containers: set[str] = set()

    @property
    def sampler_pid(self) -> int | None:
        """The sampler's process id while it runs."""
        return self._sampler.pid if self._sampler is not None else None

    def start(self) -> None:
        """Start the sampler process; raises `MeterError` when a device cannot be opened."""
        named, leased, server = self._request.settings.uuids, self._request.devices, self._request.server
        self._sampler = SamplerProcess(
            self._request.samples_path,
            named or (leased.uuids if leased.kind == "cuda" else ()),
            self._cpu.domains,
            calibration.default_directory(),
            server.pid if server is not None else None,
            library=self.name,
        )
        self._cpu.mark()

    def include_container(self, identity: str) -> None:
        """Count what the container with this id runs on the GPUs as measured."""
        self._containers.add(identity)

    def mark(self) -> int:
        """The time of an edge; CPU counters are read where there are any."""
        return self._cpu.mark() if self._cpu.domains else time.monotonic_ns()

    def power_w(self) -> float | None:
        """The latest power in watts, summed over the GPUs."""
        return self._sampler.power_w() if self._sampler is not None else None

    def conditions(self) -> Conditions | None:
        """Power, temperature and clock over the last readings; `None` where one of them is not known."""
        if self._sampler is None:
            return None
        gpus = _opened(self._sampler)
        return recent_conditions(
            read_samples(self._request.samples_path),
            [gpu.uuid for gpu in gpus],
            " ".join(sorted({gpu.driver for gpu in gpus})),
            time.monotonic_ns(),
        )

    def calibrations(self) -> tuple[calibration.Calibration, ...]:
        """The stored calibrations of the metered GPUs under their driver."""
        gpus = _opened(self._sampler) if self._sampler is not None else []
        stored = [calibration.load(gpu.uuid, gpu.driver) for gpu in gpus]
        return tuple(known for known in stored if known is not None)

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Wait for the counter's first step after the last window, end sampling, and account every window."""
        if self._sampler is None:
            raise MeterError("the meter was stopped before it was started")
        sampler, self._sampler = self._sampler, None
        sampler.wait_until_known(max((window.end_ns for window in windows), default=0))
        self._cpu.mark()
        cpu_s = sampler.cpu_time_s()
        problem = sampler.stop()
        samples = self._request.samples_path
        host = rapl.cpu_energy(windows, self._cpu.series(samples)) if self._cpu.domains else None
        return Accounts(
            self._request, _opened(sampler), windows, self._containers, can_calibrate=self.can_calibrate
        ).report(
            self.name,
            self.gain_uncertainty_rel,
            host=host,
            sampler_problem=problem,
            sampler_cpu_s=cpu_s,
            notes=self.notes,
        )


class NvmlMeter(SampledGpuMeter):
    """NVIDIA GPUs through NVML."""

    name: ClassVar[str] = "nvml"
    reads_machine: ClassVar[bool] = True
    steps_visibly: ClassVar[bool] = True
    gain_uncertainty_rel: ClassVar[float | None] = BOARD_GAIN_UNCERTAINTY_REL
    can_calibrate: ClassVar[bool] = True

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why NVML cannot be used on this machine, or `None`."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as problem:
            return MeterError(f"NVML: {problem}", fix=nvml_devices.remedy(problem), details={"code": problem.value})
        try:
            if int(pynvml.nvmlDeviceGetCount()) == 0:
                return MeterError("NVML: the driver sees no GPU", fix="check `lspci | grep -i nvidia` and `dmesg`")
        finally:
            pynvml.nvmlShutdown()
        return None


def _opened(sampler: SamplerProcess) -> list[GpuFacts]:
    gpus = sampler.facts.get("gpus")
    return [GpuFacts.from_json(gpu) for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
