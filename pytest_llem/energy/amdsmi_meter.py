"""AMD GPUs through `amdsmi`: their energy accumulators, read by the sampler process.

Opened by `registry` when a study names it. Not verified on hardware, which `notes` say until somebody has.
"""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

from pytest_llem.energy.gpu_meter import SampledGpuMeter
from pytest_llem.errors import MeterError
from pytest_llem.job.report import Note


class AmdSmiMeter(SampledGpuMeter):
    """All AMD GPUs of this machine. Only NVIDIA GPUs can be leased, so `auto` never chooses this meter."""

    name: ClassVar[str] = "amdsmi"
    notes: ClassVar[tuple[Note, ...]] = (
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
            # Without its shared library amdsmi prints to standard output, and then fails with one of several errors.
            with contextlib.redirect_stdout(io.StringIO()):
                import_module("amdsmi")
        except (OSError, KeyError, AttributeError) as problem:
            return MeterError(
                f"amdsmi cannot load libamd_smi.so ({problem})", fix="install ROCm's amd-smi-lib (`/opt/rocm/lib`)"
            )
        return None
