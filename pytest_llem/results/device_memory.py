"""Memory of whole devices, from the readings that the sampler took during a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_llem.energy.protocol import Window
from pytest_llem.energy.samples import read_samples


def device_peaks(samples: Path, windows: Sequence[Window]) -> dict[str, int]:
    """The highest memory in use (bytes, by NVML, all processes) per device over the windows.

    NVML is asked every half second and whenever the energy counter is first read, so that an allocation that comes
    and goes in between is not seen; torch and vLLM keep what they once took. Devices without a reading are absent.
    """
    peaks: dict[str, int] = {}
    for sample in read_samples(samples):
        used = sample.memory_bytes
        if used is not None and any(window.start_ns <= sample.t_ns <= window.end_ns for window in windows):
            peaks[sample.device] = max(peaks.get(sample.device, 0), used)
    return peaks
