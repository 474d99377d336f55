"""The sections `latency` and `compute`: distributions of request times, and the model's arithmetic.

`derive` calls it, `summary` takes its percentiles. Latencies must stay those of `vllm bench serve`: ttft is the first
token's time after the request's start, tpot the time after it divided by the tokens after it, itl every gap between two
tokens, e2el the whole request. A board missing from `PEAK_TFLOPS` is added with its data sheet's dense numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from pytest_llem.engines.flops import total_flops
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import Measurement, RequestRecord
from pytest_llem.results.schema import Compute, Distribution, Latency

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


def percentile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile (0 to 1) of ascending values, by linear interpolation between order statistics."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution(values: Sequence[float]) -> Distribution | None:
    """Mean, p50, p90 and p99; `None` for no values."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.50, 0.90, 0.99))
    return Distribution(mean=sum(ordered) / len(ordered), p50=p50, p90=p90, p99=p99)


def latency(requests: Sequence[RequestRecord]) -> Latency:
    """Latencies in seconds over successful requests.

    A single request without the time of its first token makes ttft and tpot `None`, one without the times of all tokens
    makes itl `None`: a distribution over the others would be biased. An answer ends with its last token.
    """
    answered = [request for request in requests if request.output_tokens]
    timed = [(request, first) for request in answered if (first := _first_token_ns(request)) is not None]
    complete = len(timed) == len(answered)
    all_timed = all(request.token_times_ns is not None for request in requests)
    ttft = [(first - request.start_ns) / 1e9 for request, first in timed]
    tpot = [(_last_token_ns(r) - first) / (r.output_tokens - 1) / 1e9 for r, first in timed if r.output_tokens > 1]
    itl = [(later - earlier) / 1e9 for r in answered for earlier, later in pairwise(r.token_times_ns or ())]
    return Latency(
        ttft_s=distribution(ttft) if complete else None,
        tpot_s=distribution(tpot) if complete else None,
        itl_s=distribution(itl) if all_timed else None,
        e2el_s=distribution([(request.end_ns - request.start_ns) / 1e9 for request in requests]),
    )


def _first_token_ns(request: RequestRecord) -> int | None:
    return request.token_times_ns[0] if request.token_times_ns else request.first_token_ns


def _last_token_ns(request: RequestRecord) -> int:
    return request.token_times_ns[-1] if request.token_times_ns else request.end_ns


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
