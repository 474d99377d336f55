"""Measures the energy of code that runs in the test's own process, for the fixture `llem_meter`.

The attributes of `CodeMeter` are public.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from pytest_llem.energy.registry import open_meter
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import EnergyReport, Window
from pytest_llem.job.report import Note
from pytest_llem.machine.devices import visible_gpus
from pytest_llem.session.options import run_options


class CodeMeter:
    """The energy of a `with` block, readable after it. `None` where nothing was measured.

    `energy_j` in joules with its k=2 `uncertainty_j`; `duration_s` in seconds; `meter` names the source, and `measured`
    is false when a model of the hardware stood in for a sensor. GPU work is asynchronous: synchronise in the block.
    """

    def __init__(self) -> None:
        self.energy_j: float | None = None
        self.uncertainty_j: float | None = None
        self.duration_s: float | None = None
        self.meter: str | None = None
        self.measured: bool = False
        self.notes: tuple[Note, ...] = ()

    def take(self, window: Window, report: EnergyReport | None) -> None:
        """Fill in the measurement of the block."""
        self.duration_s = window.duration_s
        if report is not None:
            self.energy_j = report.windows[0].energy_j
            self.uncertainty_j = report.windows[0].uncertainty_j
            self.meter, self.measured = report.meter, report.measured
            self.notes = report.notes + report.invalid


def code_meter_of(config: pytest.Config) -> Callable[[], AbstractContextManager[CodeMeter]]:
    """`measure_code` with the meter of this run."""
    return partial(measure_code, run_options(config).meter)


@contextmanager
def measure_code(meter_name: str) -> Iterator[CodeMeter]:
    """Measure a `with` block with the named meter; all visible GPUs, or this process's tree on the CPU."""
    gpus = visible_gpus()
    devices = DeviceSet("cuda", gpus) if gpus else DeviceSet("cpu")
    settings = MeterSettings(meter_name, explicit=meter_name != "auto")
    result = CodeMeter()
    with tempfile.TemporaryDirectory(prefix="llem-meter-") as directory:
        meter = open_meter(settings, devices, Path(directory))
        if meter is not None:
            meter.start()
        start_ns = meter.mark() if meter is not None else time.monotonic_ns()
        end_ns: int | None = None
        try:
            yield result
            end_ns = meter.mark() if meter is not None else time.monotonic_ns()
        finally:
            window = Window("measure", start_ns, end_ns or time.monotonic_ns())
            report = meter.stop([window]) if meter is not None else None
            if end_ns is not None:
                result.take(window, report)
