"""AMD GPUs through `amdsmi`: their energy accumulators, read by the sampler process. Not verified on hardware."""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

from pytest_llem.energy.nvml_meter import NvmlMeter
from pytest_llem.errors import MeterError
from pytest_llem.job.report import Note


class AmdSmiMeter(NvmlMeter):
    """All AMD GPUs of this machine. Leases and devices are NVIDIA's or the CPU: a study has to name this meter."""

    name: ClassVar[str] = "amdsmi"
    library: ClassVar[str] = "amdsmi"
    gain_uncertainty_rel: ClassVar[float | None] = None
    calibrates: ClassVar[bool] = False
    remarks: ClassVar[tuple[Note, ...]] = (
        Note("not_verified", "the meter amdsmi was never compared with hardware: cross-check it with `zeus`"),
    )

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why `amdsmi` cannot be used on this machine, or `None`."""
        try:
            version("amdsmi")
        except PackageNotFoundError:
            return MeterError("the meter `amdsmi` needs the package amdsmi", fix="pip install 'pytest-llem[amd]'")
        try:
            # Without its library it says so on standard output, and fails with whatever comes of that.
            with contextlib.redirect_stdout(io.StringIO()):
                import_module("amdsmi")
        except (OSError, KeyError, AttributeError) as problem:
            return MeterError(
                f"amdsmi cannot load libamd_smi.so ({problem})", fix="install ROCm's amd-smi-lib (`/opt/rocm/lib`)"
            )
        return None
