"""Measures the energy of code that runs in the test's own process, for the fixture `llem_meter`.

`fixtures` calls it. The attributes of `CodeMeter` are public: some may be added, none renamed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pytest_llem.energy import checked
from pytest_llem.energy.registry import open_meter, require_meter_of
from pytest_llem.job.config import AskedKind
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window
from pytest_llem.job.report import Note
from pytest_llem.machine.devices import visible_of
from pytest_llem.session.options import run_options


@dataclass
class CodeMeter:
    """The energy of a `with` block, readable after it. `None` where nothing was measured.

    `energy_j` in joules with its k=2 `uncertainty_j`; `duration_s` in seconds; `meter` names the source, and `measured`
    is false when a model of the hardware stood in for a sensor. `invalid` says why the number may not be used, `notes`
    what else there is to know. GPU work is asynchronous: synchronise in the block.
    """

    energy_j: float | None = None
    uncertainty_j: float | None = None
    duration_s: float | None = None
    meter: str | None = None
    measured: bool = False
    notes: tuple[Note, ...] = ()
    invalid: tuple[Note, ...] = ()


OF_A_CYCLE = ("residual_memory", "meter_not_on_device")
"""Reasons against a cycle alone: a test may hold a model before the block, and need not use every GPU that it sees."""


def code_meter_of(config: pytest.Config) -> Callable[[], AbstractContextManager[CodeMeter]]:
    """`measure_code` with the meter and the kind of device of this run."""
    options = run_options(config)
    return partial(measure_code, options.meter, options.overrides.device)


@contextmanager
def measure_code(meter_name: str, device: AskedKind = "auto") -> Iterator[CodeMeter]:
    """Measure a `with` block with the named meter; all visible GPUs, or this process's tree on the CPU."""
    devices = DeviceSet(*visible_of(device))
    require_meter_of(device, meter_name)
    settings = MeterSettings(meter_name, explicit=meter_name != "auto")
    result = CodeMeter()
    with tempfile.TemporaryDirectory(prefix="llem-meter-") as directory:
        meter = open_meter(settings, devices, Path(directory))
        if meter is not None:
            meter.start()
        start_ns = checked.edge(meter) if meter is not None else time.monotonic_ns()
        end_ns: int | None = None
        try:
            yield result
            end_ns = checked.edge(meter) if meter is not None else time.monotonic_ns()
        finally:
            window = Window("measure", start_ns, end_ns or time.monotonic_ns())
            report = checked.account(meter, [window]) if meter is not None else None
            if end_ns is not None:
                result.duration_s = window.duration_s
            if end_ns is not None and report is not None:
                energy = report.windows[0]
                result.energy_j, result.uncertainty_j = energy.energy_j, energy.uncertainty_j
                result.meter, result.measured = report.meter, report.measured
                result.invalid = tuple(note for note in report.invalid if note.code not in OF_A_CYCLE)
                result.notes = report.notes + result.invalid
