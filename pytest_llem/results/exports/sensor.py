"""The interface by which a result's energy was read, whatever meter asked it.

The exports `boamps` and `mlperf` call `sensor_of`, which must name none where an estimate stands in for a sensor.
"""

from __future__ import annotations

from pytest_llem.results.schema import Result

READERS = ("zeus", "codecarbon")
"""Meters that read the interface of the device's maker."""
OF_DEVICES = {"cuda": "nvml", "rocm": "amdsmi"}


def sensor_of(result: Result) -> str | None:
    """`nvml`, `amdsmi`, `rapl` or another meter's name; `None` for an estimate, and where it is not known."""
    energy = result.energy
    if not energy.measured or energy.meter == "none":
        return None
    return OF_DEVICES.get(result.runner.device_kind) if energy.meter in READERS else energy.meter
