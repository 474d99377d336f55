"""FLOPs and MFU: known where the model and the board are known, null everywhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.engines.flops import total_flops
from pytest_llem.engines.protocol import ModelShape
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import DeviceSet
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Compute
from pytest_llem.results.sections.performance import derive_compute, peak_flops_per_s

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

SHAPE = ModelShape("llama", 1_000_000, 2, 64, 128, 1000, 2, 1, 32)
H100: dict[str, JsonValue] = {"uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "mig": False}


def compute(bench: Bench, gpus: list[dict[str, JsonValue]], dtype: str = "bfloat16", **worker: Any) -> Compute:
    measurement = bench.measurement()
    measurement = replace(
        measurement,
        model=SHAPE,
        engine=replace(measurement.engine, effective={"dtype": dtype}),
        environment=worker,
    )
    uuids = tuple(str(gpu["uuid"]) for gpu in gpus)
    job = replace(bench.job(CycleKey("s", "e", "0" * 16, 1)), devices=DeviceSet("cuda" if gpus else "cpu", uuids))
    return derive_compute(job, measurement, measurement.requests, 2.0, {"gpus": list(gpus)})


def test_flops_are_those_of_every_request_of_every_repeat(bench: Bench) -> None:
    found = compute(bench, [])
    assert found.flops == total_flops(SHAPE, [(8, 4)] * 6)
    assert found.flops is not None
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


def test_the_more_special_board_counts() -> None:
    assert peak_flops_per_s("NVIDIA H200 NVL", "bfloat16") == pytest.approx(835.5e12)
    assert peak_flops_per_s("NVIDIA H200", "bfloat16") == pytest.approx(989.4e12)
    assert peak_flops_per_s("NVIDIA A10G", "bfloat16") is None
