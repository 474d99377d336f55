"""NVIDIA GPUs through NVML: energy counter and power, read by the sampler process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import pynvml

from pytest_llem.energy import calibration, nvml_devices, powercap
from pytest_llem.energy import rapl_meter as rapl
from pytest_llem.energy.accounting import GAIN_UNCERTAINTY_REL, Accounts, GpuFacts
from pytest_llem.energy.idle_reuse import Conditions, recent_conditions
from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.errors import MeterError
from pytest_llem.job.measurement import EnergyReport, Window
from pytest_llem.job.report import Note


class NvmlMeter:
    """GPU boards by their energy counter; CPU packages and DRAM beside them where RAPL is readable.

    The measured process never calls NVML while it is measured: a mark is a look at the clock.
    """

    name: ClassVar[str] = "nvml"
    library: ClassVar[str] = "nvml"
    gain_uncertainty_rel: ClassVar[float | None] = GAIN_UNCERTAINTY_REL
    calibrates: ClassVar[bool] = True
    remarks: ClassVar[tuple[Note, ...]] = ()

    def __init__(self, setup: MeterRequest) -> None:
        self._setup = setup
        readable = powercap.domains()
        self._edges = rapl.RaplEdges(readable if rapl.obstacle(readable) is None else ())
        self._sampler: SamplerProcess | None = None
        self._facts: Mapping[str, object] = {}
        self._containers: set[str] = set()

    @property
    def sampler_pid(self) -> int | None:
        """The sampler's process id while it runs."""
        return self._sampler.pid if self._sampler is not None else None

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

    def start(self) -> None:
        """Start the sampler process; raises `MeterError` when a device cannot be opened."""
        named, leased, server = self._setup.settings.uuids, self._setup.devices, self._setup.server
        uuids = named or (leased.uuids if leased.kind == "cuda" else ())
        self._sampler = SamplerProcess(
            self._setup.samples_path,
            uuids,
            self._edges.domains,
            calibration.default_directory(),
            server.pid if server is not None else None,
            library=self.library,
        )
        self._edges.mark()

    def owns_container(self, identity: str) -> None:
        """What runs in this container on the GPUs is measured, not foreign."""
        self._containers.add(identity)

    def mark(self) -> int:
        """The time of an edge; host counters are read where there are any."""
        return self._edges.mark() if self._edges.domains else time.monotonic_ns()

    def power_w(self) -> float | None:
        """The latest power summed over the GPUs."""
        return self._sampler.power_w() if self._sampler is not None else None

    def conditions(self) -> Conditions | None:
        """Power, temperature and clock of the GPUs over the last readings; `None` where one of them is not known."""
        if self._sampler is None:
            return None
        gpus = self._opened()
        return recent_conditions(
            read_samples(self._setup.samples_path),
            [gpu.uuid for gpu in gpus],
            " ".join(sorted({gpu.driver for gpu in gpus})),
            time.monotonic_ns(),
        )

    def calibrations(self) -> tuple[calibration.Calibration, ...]:
        """What is known of the metered GPUs' counters under their driver."""
        gpus = self._opened() if self._sampler is not None else []
        found = [calibration.load(gpu.uuid, gpu.driver) for gpu in gpus]
        return tuple(known for known in found if known is not None)

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Wait for the counter's step behind the last window, end sampling, and account every window."""
        if self._sampler is None:
            raise MeterError("the meter was stopped before it was started")
        last_ns = max((window.end_ns for window in windows), default=0)
        self._sampler.wait_until_known(last_ns)
        self._edges.mark()
        cpu_s = self._sampler.cpu_time_s()
        problem = self._sampler.stop()
        gpus = self._opened()
        self._sampler = None
        accounts = Accounts(self._setup, gpus, windows, self._containers, calibrates=self.calibrates)
        host = rapl.host_energy(windows, self._edges.series(self._setup.samples_path)) if self._edges.domains else None
        report = accounts.report(host=host, sampler_problem=problem, sampler_cpu_s=cpu_s)
        return replace(
            report,
            meter=self.name,
            gain_uncertainty_rel=self.gain_uncertainty_rel,
            notes=(*report.notes, *self.remarks),
        )

    def _opened(self) -> list[GpuFacts]:
        assert self._sampler is not None
        return [GpuFacts.from_json(fact) for fact in _listed(self._sampler.facts.get("gpus"))]


def _listed(value: object) -> list[Mapping[str, object]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
