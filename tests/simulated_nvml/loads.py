"""Loads of a simulated GPU that follow its settings: their power goes as V squared times f, their speed with f.

Any process whose environment names the simulated GPUs may run one; a setting made meanwhile takes effect at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import pynvml

from tests.simulated_nvml.simulation import PATH_VARIABLE, Gpu, Machine


class Operation(ctypes.Structure):
    """Where a load runs: mirror of `Point` in simulated_nvml.c. `speed` is 1 at the highest clocks."""

    clock_mhz: int
    memory_mhz: int
    power_w: float
    speed: float
    reasons: int

    _fields_ = (
        ("clock_mhz", ctypes.c_uint32),
        ("memory_mhz", ctypes.c_uint32),
        ("power_w", ctypes.c_double),
        ("speed", ctypes.c_double),
        ("reasons", ctypes.c_uint64),
    )


def attached() -> list[Gpu]:
    """The simulated GPUs that this process's environment names."""
    with Path(os.environ[PATH_VARIABLE]).open("r+b") as stream:
        machine = Machine.from_buffer(mmap.mmap(stream.fileno(), 0))
    return [machine.gpu[index] for index in range(machine.gpus)]


def operation(gpu: Gpu, load: float = 1.0) -> Operation:
    """Where a load of this activity (from 0 to 1) would run under the present settings."""
    return _call("simulated_point", gpu, load)


def run_load(gpu: Gpu, load: float = 1.0) -> Operation:
    """Let the load be so much from now on, 0 for idle; where it runs now."""
    return _call("simulated_load", gpu, load)


def work(gpu: Gpu, amount_s: float, load: float = 1.0) -> None:
    """Do what takes so many seconds at the highest clocks, at the speed that the settings allow, and be idle again."""
    done_s, before = 0.0, time.monotonic()
    run_load(gpu, load)
    try:
        while done_s < amount_s:
            speed = operation(gpu, load).speed
            time.sleep(min(0.01, (amount_s - done_s) / speed))
            now = time.monotonic()
            done_s, before = done_s + (now - before) * speed, now
    finally:
        run_load(gpu, 0.0)


def _call(name: str, gpu: Gpu, load: float) -> Operation:
    found = Operation()
    # Of several that one process has loaded, the one whose clock `pynvml` has.
    library = pynvml.nvmlLib or ctypes.CDLL("libnvidia-ml.so.1")
    getattr(library, name)(ctypes.byref(gpu), ctypes.c_double(load), ctypes.byref(found))
    return found
