"""CodeCarbon as a meter, to cross-check: one of its tasks from each window edge to the next.

`registry` opens it wherever `codecarbon` is named. It must measure as CodeCarbon does, which states no uncertainty.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from math import inf
from typing import Any, ClassVar

from pytest_llem.energy.attribution import leased_gpus, server_elsewhere
from pytest_llem.energy.protocol import EnergyEstimate, Meter, MeterRequest, missing_package, window_energy
from pytest_llem.energy.readings import Sample, SampleWriter
from pytest_llem.errors import MeterError
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Window, WindowEnergy
from pytest_llem.job.report import Note

JOULES_PER_KWH = 3.6e6
"""By definition."""
COUNTRY = "FRA"
"""CodeCarbon requires a country for its emissions, which are not used here; energy does not depend on it."""


class CodeCarbonMeter(Meter):
    """GPU energy for an engine on GPUs, CPU and memory energy for one on the CPU, by an offline tracker's tasks.

    CodeCarbon runs one task at a time, so every stretch between two edges is a task, and a window is a sum of them.
    """

    name: ClassVar[str] = "codecarbon"

    def __init__(self, request: MeterRequest) -> None:
        super().__init__(request)
        self._on_gpu = request.devices.kind == "cuda"
        self._edges: list[int] = []
        self._stretches: list[float] = []
        self.plausible_w = self.plausible_w * max(1, len(request.devices.uuids))

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why CodeCarbon cannot be used, or `None`."""
        return missing_package("codecarbon")

    def start(self) -> None:
        """Create the tracker, which probes the machine for some seconds, and begin the first stretch."""
        if self._request.devices.kind == "rocm":
            raise MeterError(
                "codecarbon cannot be told which AMD GPUs are leased", fix="use --llem-meter=amdsmi, or zeus"
            )
        codecarbon: Any = import_module("codecarbon")
        self._tracker: Any = codecarbon.OfflineEmissionsTracker(
            country_iso_code=COUNTRY,
            save_to_file=False,
            log_level="error",
            allow_multiple_runs=True,
            gpu_ids=[gpu.position for gpu in leased_gpus(self._request)] or None,
        )
        self._writer = SampleWriter(self._request.samples_path)
        self._begin()

    def mark(self) -> int:
        """End a stretch and begin the next; the edge lies between the two."""
        self._end()
        self._begin()
        return self._edges[-1]

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Account the windows whose edges were marked."""
        self._end()
        self._tracker.stop()
        self._writer.close()
        release = version("codecarbon")
        what = "GPU counter reads" if self._on_gpu else "CPU and memory, from a model where it cannot read RAPL"
        return EnergyReport(
            meter=self.name,
            measured=self._on_gpu,
            scope="gpu_board" if self._on_gpu else "cpu_package+dram",
            placement=self._request.settings.placement,
            devices=(MeteredDevice("codecarbon", None, "gpu" if self._on_gpu else "cpu"),),
            windows=tuple(self._account(window) for window in windows),
            source=f"codecarbon {release}",
            notes=(
                Note("cross_check", f"as CodeCarbon {release} measures: {what}; it states no uncertainty"),
                Note("in_process", "sensors are read inside the measured process, by threads of CodeCarbon's own"),
            ),
            invalid=server_elsewhere(self._request),
        )

    def _begin(self) -> None:
        self._tracker.start_task(f"stretch-{len(self._stretches)}")
        self._edges.append(time.monotonic_ns())

    def _end(self) -> None:
        data = self._tracker.stop_task(f"stretch-{len(self._stretches)}")
        # Its memory is a constant, which hides that nothing was read.
        kwh = data.gpu_energy if self._on_gpu else data.cpu_energy + data.ram_energy * (data.cpu_energy > 0)
        self._stretches.append(float(kwh) * JOULES_PER_KWH)
        total_mj = sum(self._stretches) * 1e3
        self._writer.sample(Sample(time.monotonic_ns(), "codecarbon", counter_mj=total_mj))

    def _account(self, window: Window) -> WindowEnergy:
        if window.start_ns not in self._edges or window.end_ns not in self._edges:
            return window_energy(window, {"codecarbon": None})
        inside = slice(self._edges.index(window.start_ns), self._edges.index(window.end_ns))
        energy_j = sum(self._stretches[inside])
        return window_energy(window, {"codecarbon": EnergyEstimate(energy_j, inf, "codecarbon_task", 2)})
