"""FLOPs and MFU: known where the model and the board are known, null everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.engines.protocol import ModelShape
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import DeviceSet
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Compute
from pytest_llem.results.sections.compute import derive_compute, peak_flops_per_s

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

SHAPE = ModelShape("llama", 1_000_000, 2, 64, 128, 1000, 2, 1, 32)
H100: dict[str, JsonValue] = {"uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "mig": False}

PREFILL = 147_456 * 8 + 128_000 + 512 * 36
"""By hand: per token 2 x 2 layers x (12,288 of attention + 24,576 of feed-forward), 2 x 64 x 1000 for the one position
with logits, 2 x 2 layers x 2 heads x 64 for each of 1 + ... + 8 pairs."""

DECODE = 3 * (147_456 + 128_000) + 512 * (9 + 10 + 11)
REQUEST = PREFILL + DECODE


def compute(
    bench: Bench,
    gpus: list[dict[str, JsonValue]],
    dtype: str = "bfloat16",
    shape: ModelShape = SHAPE,
    cached_tokens: int | None = None,
    effective: Mapping[str, JsonValue] | None = None,
    **worker: Any,
) -> Compute:
    measurement = bench.measurement()
    measurement = replace(
        measurement,
        model=shape,
        engine=replace(measurement.engine, effective={"dtype": dtype, **(effective or {})}),
        requests=tuple(replace(request, cached_tokens=cached_tokens) for request in measurement.requests),
        environment=worker,
    )
    uuids = tuple(str(gpu["uuid"]) for gpu in gpus)
    job = replace(bench.job(CycleKey("s", "e", "0" * 16, 1)), devices=DeviceSet("cuda" if gpus else "cpu", uuids))
    return derive_compute(job, measurement, measurement.requests, 2.0, {"gpus": list(gpus)})


def test_flops_are_those_of_every_request_of_every_repeat(bench: Bench) -> None:
    found = compute(bench, [])
    assert found.flops == 6 * REQUEST
    assert found.flops_per_output_token == pytest.approx(found.flops / 24)
    assert found.achieved_flops_per_s == pytest.approx(found.flops / 2)


def test_mfu_is_the_share_of_the_sum_of_the_boards_peaks(bench: Bench) -> None:
    found = compute(bench, [H100, {**H100, "uuid": "GPU-2"}])
    assert found.peak_flops_per_s == pytest.approx(2 * 989.4e12)
    assert found.achieved_flops_per_s is not None
    assert found.mfu == pytest.approx(found.achieved_flops_per_s / (2 * 989.4e12))


@pytest.mark.parametrize(
    ("gpus", "dtype", "precision"),
    [
        ([], "bfloat16", "highest"),
        ([{**H100, "mig": True}], "bfloat16", "highest"),
        ([H100, {**H100, "uuid": "GPU-2", "name": "NVIDIA Prototype"}], "bfloat16", "highest"),
        ([H100], "int3", "highest"),
        ([H100], "float32", "high"),
    ],
    ids=["cpu", "part of a board", "one unknown board", "unlisted dtype", "TF32 units"],
)
def test_there_is_no_mfu_without_a_published_peak(
    bench: Bench, gpus: list[dict[str, JsonValue]], dtype: str, precision: str
) -> None:
    found = compute(bench, gpus, dtype, float32_matmul_precision=precision)
    assert found.flops is not None
    assert (found.peak_flops_per_s, found.mfu) == (None, None)


def test_more_than_the_peak_is_no_utilisation(bench: Bench) -> None:
    """The dtype, the board or the count of operations must then be another's."""
    found = compute(bench, [H100], shape=replace(SHAPE, vocab_size=10**15))
    assert found.achieved_flops_per_s is not None
    assert found.peak_flops_per_s is not None
    assert found.achieved_flops_per_s > found.peak_flops_per_s
    assert found.mfu is None


def test_the_more_special_board_counts() -> None:
    assert peak_flops_per_s("NVIDIA H200 NVL", "bfloat16") == pytest.approx(835.5e12)
    assert peak_flops_per_s("NVIDIA H200", "bfloat16") == pytest.approx(989.4e12)
    assert peak_flops_per_s("NVIDIA A10G", "bfloat16") is None


def test_prompt_tokens_from_a_cache_were_not_computed(bench: Bench) -> None:
    """Six of eight: the last two attend to all eight."""
    assert compute(bench, [], cached_tokens=6).flops == 6 * (147_456 * 2 + 128_000 + 512 * (7 + 8) + DECODE)
    assert compute(bench, [], cached_tokens=8).flops == 6 * (147_456 + 128_000 + 512 * 8 + DECODE)


PAIRS = 1 + 2 + 3 + 4 * 5, 3 * 4
"""Prompt and answer, where each token attends to itself and three before it."""


@pytest.mark.parametrize(
    ("config", "pairs"),
    [
        ({}, sum(PAIRS)),
        ({"use_sliding_window": False}, 36 + 30),
        ({"layer_types": ["full_attention"] * 2}, 36 + 30),
        ({"layer_types": ["sliding_attention"] * 2}, sum(PAIRS)),
        ({"layer_types": ["sliding_attention", "full_attention"]}, (sum(PAIRS) + 36 + 30) / 2),
    ],
    ids=["every layer", "switched off", "no layer", "every layer by name", "every other layer"],
)
def test_attention_counts_the_window_of_the_layers_that_have_one(
    bench: Bench, config: dict[str, JsonValue], pairs: float
) -> None:
    found = compute(bench, [], shape=replace(SHAPE, config={"sliding_window": 4, **config}))
    assert found.flops == pytest.approx(6 * (147_456 * 11 + 128_000 * 4 + 512 * pairs))


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": ["linear_attention", "full_attention"]},
        {"layer_types": ["chunked_attention", "full_attention"]},
        {"attn_layer_period": 8},
        {"index_topk": 2048},
    ],
    ids=["recurrent", "chunked", "jamba", "sparse"],
)
def test_layers_of_other_kinds_are_not_passed_off_as_attention(bench: Bench, config: dict[str, JsonValue]) -> None:
    found = compute(bench, [H100], shape=replace(SHAPE, config=config))
    assert (found.flops, found.mfu) == (None, None)


def test_beams_are_decoded_side_by_side(bench: Bench) -> None:
    assert compute(bench, [], effective={"num_beams": 4}).flops == 6 * (PREFILL + 4 * DECODE)


A100: dict[str, JsonValue] = {"uuid": "GPU-1", "name": "NVIDIA A100-SXM4-80GB", "mig": False}
INTO_16: dict[str, JsonValue] = {"weights": {"type": "float", "num_bits": 8}, "input_activations": None}
INTO_8: dict[str, JsonValue] = {**INTO_16, "input_activations": {"type": "float", "num_bits": 8}}
INT8: dict[str, JsonValue] = {**INTO_16, "input_activations": {"type": "int", "num_bits": 8}}


def by_groups(*groups: JsonValue) -> dict[str, JsonValue]:
    named: dict[str, JsonValue] = {f"group_{index}": group for index, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named}


@pytest.mark.parametrize(
    ("board", "effective", "config", "tflops", "dtype"),
    [
        (H100, {"dtype": "float8_e4m3fn"}, {}, None, None),
        (H100, {"dtype": "bfloat16", "quantized": True, "quantization": "fp8"}, {}, 1978.9, "float8"),
        (A100, {"dtype": "bfloat16", "quantized": True, "quantization": "fp8"}, {}, 312, "bfloat16"),
        (H100, {"dtype": "bfloat16", "quantized": True, "quantization": "awq_marlin"}, {}, 989.4, "bfloat16"),
        (H100, {"dtype": "float16", "quantized": True, "quantization": "QuantAlgo.W8A16"}, {}, 989.4, "float16"),
        (H100, {"quantized": True, "quantization": "compressed-tensors"}, by_groups(INTO_16), 989.4, "bfloat16"),
        (H100, {"quantized": True, "quantization": "compressed-tensors"}, by_groups(INTO_8), 1978.9, "float8"),
        (H100, {"quantized": True, "quantization": "compressed-tensors"}, by_groups(INT8), None, None),
        (H100, {"quantized": True, "quantization": "compressed-tensors"}, by_groups(INTO_8, INTO_16), None, None),
        (
            H100,
            {"dtype": "float8_e4m3fn", "quantized": True},
            {"quant_method": "fp8", "activation_scheme": "dynamic"},
            1978.9,
            "float8",
        ),
        (
            H100,
            {"dtype": "uint8", "quantized": True},
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
            989.4,
            "bfloat16",
        ),
        (H100, {"quantized": True}, {"quant_method": "bitsandbytes", "load_in_8bit": True}, None, None),
        (H100, {"dtype": "bfloat16", "quantized": True, "quantization": "mxfp4"}, {}, None, None),
        (H100, {"dtype": None}, {"quant_method": "awq"}, None, None),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_what_products_are_computed_in(
    bench: Bench,
    board: dict[str, JsonValue],
    effective: dict[str, JsonValue],
    config: dict[str, JsonValue],
    tflops: float | None,
    dtype: str | None,
) -> None:
    """Weights in 8-bit floats doubled the peak, and weights and activations in them did not."""
    shape = replace(SHAPE, config={"dtype": "bfloat16", "quantization_config": config or None})
    found = compute(bench, [board], shape=shape, effective=effective)
    assert found.peak_flops_per_s == (None if tflops is None else pytest.approx(tflops * 1e12))
    assert found.peak_dtype == dtype
