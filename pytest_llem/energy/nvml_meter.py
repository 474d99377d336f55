"""The meter of NVIDIA GPUs, through NVML.

`auto` opens it for CUDA devices; `llem doctor` asks it whether NVML works. What it shares with the meters of other
GPUs is in `gpu_meter`.
"""

from __future__ import annotations

from typing import ClassVar

import pynvml

from pytest_llem.energy import nvml_devices
from pytest_llem.energy.gpu_meter import SampledGpuMeter
from pytest_llem.energy.protocol import BOARD_GAIN_UNCERTAINTY_REL
from pytest_llem.errors import MeterError


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
