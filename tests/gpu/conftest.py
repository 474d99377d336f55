"""Checks on a real NVIDIA GPU. Each needs an idle GPU, its driver, and torch with CUDA; without, it is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llem.energy import doctor
from pytest_llem.energy.torch_load import MatmulLoad
from pytest_llem.errors import MeterError

RESULTS = Path(os.environ.get("LLEM_GPU_RESULTS", Path(__file__).parent / "RESULTS.md"))


@pytest.fixture(scope="session")
def gpu_uuid() -> str:
    uuids = doctor.gpu_uuids()
    if not uuids:
        pytest.skip("no NVIDIA GPU that NVML can see")
    return uuids[0]


@pytest.fixture(scope="session")
def load(gpu_uuid: str) -> MatmulLoad:
    try:
        return MatmulLoad(gpu_uuid)
    except MeterError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def results(gpu_uuid: str) -> Iterator[list[str]]:
    """Lines for RESULTS.md: written anew by each session that measured something."""
    lines: list[str] = []
    yield lines
    if lines:
        RESULTS.write_text("# Measured on a real GPU\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
