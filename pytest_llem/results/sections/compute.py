"""The section `compute`: the model's arithmetic, and the share of the boards' peak that it is.

`derive` calls it. A board missing from `PEAK_TFLOPS` is added with its data sheet's dense numbers, a way of quantising
with what its products are computed in; whatever is not listed must leave `mfu` null.
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

WEIGHTS_ALONE = (
    "aqlm", "auto-round", "awq", "awq_marlin", "eetq", "gguf", "gptq", "gptq_bitblas", "gptq_marlin", "higgs", "hqq",
    "marlin", "vptq", "w4a16", "w4a16_awq", "w4a16_gptq", "w8a16", "w8a16_gptq",
)  # fmt: skip
"""Ways of quantising, by their names in checkpoints and engines, whose products are computed in the
model's own dtype (the engines' documentation of quantisation)."""

WEIGHTS_AND_ACTIVATIONS_FP8 = ("fbgemm_fp8", "fp8", "fp8_block_scales", "ptpc_fp8", "w8a8_fp8")
"""Ways that quantise activations to 8-bit floats as well, and multiply those where the board can; else they keep the
weights alone in 8 bits (vLLM's documentation, FP8 W8A8)."""

FLOATS = ("float64", "float32", "bfloat16", "float16")


def derive_compute(
    job: Job,
    measurement: Measurement,
    requests: Sequence[RequestRecord],
    duration_s: float,
    environment: Mapping[str, JsonValue],
) -> Compute:
    """FLOPs of the successful requests, and MFU where the devices' peak is published; `None` for what is unknown.

    Prompt tokens that came out of a cache were not computed. Of beam search, every beam's decoding counts. No board
    exceeds its peak: then the peak, or the count, is that of something else.
    """
    shape = measurement.model
    beams = measurement.engine.effective.get("num_beams")
    work = [(request.input_tokens, request.output_tokens, request.cached_tokens or 0) for request in requests]
    flops = total_flops(shape, work, beams if isinstance(beams, int) else 1) if shape is not None and work else None
    output_tokens = sum(request.output_tokens for request in requests)
    achieved = flops / duration_s if flops is not None and duration_s else None
    peak, dtype = _peak(job, measurement, environment)
    share = achieved / peak if achieved is not None and peak else None
    return Compute(
        parameters=shape.parameters if shape else None,
        flops=flops,
        flops_per_output_token=flops / output_tokens if flops is not None and output_tokens else None,
        achieved_flops_per_s=achieved,
        peak_flops_per_s=peak,
        peak_dtype=dtype,
        mfu=share if share is not None and share <= 1 else None,
    )


def peak_flops_per_s(name: str, dtype: str) -> float | None:
    """A board's published dense peak for a dtype, in FLOP/s; `None` for boards and dtypes that are not listed."""
    for part, peaks in PEAK_TFLOPS.items():
        if all(word in name.replace("-", " ").split() for word in part.split()):
            peak = peaks.get("float8" if dtype.startswith(("float8", "fp8")) else dtype)
            return None if peak is None else peak * 1e12
    return None


def product_dtypes(measurement: Measurement) -> tuple[str, ...]:
    """What the model's matrices are multiplied in: the first of these that a board can; none where it is not known.

    The dtype of the weights says nothing of it: those in 8 bits are mostly multiplied by activations in 16.
    """
    effective, shape = measurement.engine.effective, measurement.model
    config = shape.config if shape is not None else {}
    stated = effective.get("quantization_config") or config.get("quantization_config")
    how = stated if isinstance(stated, Mapping) else {}
    method = str(effective.get("quantization") or how.get("quant_method") or "").lower().rpartition(".")[2]
    candidates = (effective.get("dtype"), config.get("dtype"), config.get("torch_dtype"))
    names = [str(dtype).removeprefix("torch.") for dtype in candidates]
    own = next(((name,) for name in names if name in FLOATS), ())
    if effective.get("dtype") is None:
        return ()  # as of a server, which does not tell
    if not method and not effective.get("quantized"):
        return own if names[0] in FLOATS else ()
    if method in WEIGHTS_ALONE or how.get("dequantize") is True:
        return own
    if method == "modelopt":
        method = str(how.get("quant_algo")).lower()
    if method in WEIGHTS_AND_ACTIVATIONS_FP8:
        return own if how.get("activation_scheme", "dynamic") is None else ("float8", *own)
    if method == "bitsandbytes":
        # Eight bits multiply integers, but for outliers.
        computed = how.get("bnb_4bit_compute_dtype") if how.get("load_in_4bit") else None
        return (str(computed).removeprefix("torch."),) if computed else ()
    return _compressed(how, own) if method == "compressed-tensors" else ()


def _compressed(how: Mapping[str, JsonValue], own: tuple[str, ...]) -> tuple[str, ...]:
    """Of compressed-tensors, where all groups say the same."""
    groups = how.get("config_groups")
    found: set[tuple[str, ...]] = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        activations = group.get("input_activations") if isinstance(group, Mapping) else "unknown"
        if activations is None:
            found.add(own)
        elif isinstance(activations, Mapping) and (activations.get("type"), activations.get("num_bits")) == (
            "float",
            8,
        ):
            found.add(("float8", *own))
        else:
            found.add(())
    return found.pop() if len(found) == 1 else ()


def _peak(
    job: Job, measurement: Measurement, environment: Mapping[str, JsonValue]
) -> tuple[float, str] | tuple[None, None]:
    """The sum of the leased devices' peaks, and for which dtype; neither when one is unknown, on the CPU, for float32
    on TF32 units, and for a part of a GPU (MIG)."""
    gpus = environment.get("gpus")
    if not job.devices.on_gpu or not isinstance(gpus, (list, tuple)):
        return None, None
    names = {gpu.get("uuid"): str(gpu.get("name")) for gpu in gpus if isinstance(gpu, Mapping) and not gpu.get("mig")}
    precision = measurement.environment.get("float32_matmul_precision", FULL_FLOAT32)
    for dtype in product_dtypes(measurement):
        peaks = [peak_flops_per_s(names.get(uuid, ""), dtype) for uuid in job.devices.uuids]
        published = [peak for peak in peaks if peak is not None]
        if published and len(published) == len(peaks) and (dtype != "float32" or precision == FULL_FLOAT32):
            return sum(published), dtype
    return None, None
