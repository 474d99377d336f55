"""The `compute` section: the model's arithmetic, and the share of the devices' peak that it used.

`derive` calls it. A board that is missing from `PEAK_TFLOPS` is added with its data sheet's dense numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llem.engines.flops import total_flops
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import Measurement, RequestRecord
from pytest_llem.results.schema import Compute

PEAK_TFLOPS: Mapping[str, Mapping[str, float]] = {
    "B200": {"float16": 2250, "bfloat16": 2250, "float8": 4500, "float32": 75},
    "GH200": {"float16": 989.4, "bfloat16": 989.4, "float8": 1978.9, "float32": 66.9},
    "H200 NVL": {"float16": 835.5, "bfloat16": 835.5, "float8": 1670.5, "float32": 60},
    "H200": {"float16": 989.4, "bfloat16": 989.4, "float8": 1978.9, "float32": 66.9},
    "H100 PCIe": {"float16": 756, "bfloat16": 756, "float8": 1513, "float32": 51},
    "H100 NVL": {"float16": 835, "bfloat16": 835, "float8": 1671, "float32": 60},
    "H100": {"float16": 989.4, "bfloat16": 989.4, "float8": 1978.9, "float32": 66.9},
    "A100": {"float16": 312, "bfloat16": 312, "float32": 19.5},
    "A40": {"float16": 149.7, "bfloat16": 149.7, "float32": 37.4},
    "A30": {"float16": 165, "bfloat16": 165, "float32": 10.3},
    "A10": {"float16": 125, "bfloat16": 125, "float32": 31.2},
    "L40S": {"float16": 362, "bfloat16": 362, "float8": 733, "float32": 91.6},
    "L4": {"float16": 121, "bfloat16": 121, "float8": 242, "float32": 30.3},
    "T4": {"float16": 65, "float32": 8.1},
}
"""Dense peaks in TFLOP/s by part of the NVML name, tensor cores for 16 and 8 bit, without sparsity: the boards'
NVIDIA data sheets; float32 is that of the CUDA cores, without TF32. The first match counts, so that longer names
come first."""

FULL_FLOAT32 = "highest"
"""torch's `float32_matmul_precision` without TF32 (torch.set_float32_matmul_precision)."""


def derive_compute(
    job: Job,
    measurement: Measurement,
    requests: Sequence[RequestRecord],
    duration_s: float,
    environment: Mapping[str, JsonValue],
) -> Compute:
    """FLOPs of the successful requests, and MFU where the devices' peak is published; `None` for what is unknown."""
    shape = measurement.model
    work = [(request.input_tokens, request.output_tokens) for request in requests]
    flops = total_flops(shape, work) if shape is not None and work else None
    output_tokens = sum(request.output_tokens for request in requests)
    achieved = flops / duration_s if flops is not None and duration_s else None
    peak = _peak(job, measurement, environment)
    return Compute(
        parameters=shape.parameters if shape else None,
        flops=flops,
        flops_per_output_token=flops / output_tokens if flops is not None and output_tokens else None,
        achieved_flops_per_s=achieved,
        peak_flops_per_s=peak,
        mfu=achieved / peak if achieved is not None and peak else None,
    )


def peak_flops_per_s(name: str, dtype: str) -> float | None:
    """A board's published dense peak for a dtype, in FLOP/s; `None` for boards and dtypes that are not listed."""
    for part, peaks in PEAK_TFLOPS.items():
        if all(word in name.replace("-", " ").split() for word in part.split()):
            peak = peaks.get("float8" if dtype.startswith(("float8", "fp8")) else dtype)
            return None if peak is None else peak * 1e12
    return None


def _peak(job: Job, measurement: Measurement, environment: Mapping[str, JsonValue]) -> float | None:
    """The sum of the leased devices' peaks; `None` when one is unknown, on the CPU, and for float32 on TF32 units,
    and for a part of a GPU (MIG)."""
    dtype = measurement.engine.effective.get("dtype")
    gpus = environment.get("gpus")
    if job.devices.kind != "cuda" or not isinstance(dtype, str) or not isinstance(gpus, (list, tuple)):
        return None
    precision = measurement.environment.get("float32_matmul_precision", FULL_FLOAT32)
    if dtype.removeprefix("torch.") == "float32" and precision != FULL_FLOAT32:
        return None
    names = {gpu.get("uuid"): str(gpu.get("name")) for gpu in gpus if isinstance(gpu, Mapping) and not gpu.get("mig")}
    peaks = [peak_flops_per_s(names.get(uuid, ""), dtype.removeprefix("torch.")) for uuid in job.devices.uuids]
    published = [peak for peak in peaks if peak is not None]
    return sum(published) if published and len(published) == len(peaks) else None
