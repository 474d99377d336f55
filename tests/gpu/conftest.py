"""Checks on a real NVIDIA GPU. Each needs an idle GPU, its driver, and torch with CUDA; without, it is skipped.

The most telling checks come first, each writes its figures as it ends, and one that would not end within
`LLEM_GPU_MINUTES` (12) is skipped: whatever time a GPU is lent for is well spent. `LLEM_GPU_REHEARSAL=1` runs them
against the simulated NVML instead, with the engine on the CPU, to see that they work; its figures mean nothing and are
not kept.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pynvml
import pytest

from pytest_llem.energy import doctor, nvml_devices
from pytest_llem.energy.calibrate import Load, MatmulLoad
from pytest_llem.errors import MeterError
from tests.simulated_nvml.simulation import Gpu, Simulation, build_library, preload

REHEARSAL = os.environ.get("LLEM_GPU_REHEARSAL") == "1"
RESULTS = Path(os.environ.get("LLEM_GPU_RESULTS", Path(__file__).parent / "RESULTS.md"))
MINUTES = float(os.environ.get("LLEM_GPU_MINUTES", "12"))
FILES = ("test_sensors.py", "test_device_settings.py", "test_heat.py", "test_decoding.py")
"""In the order in which they run."""

BEGUN_S = time.monotonic()
IDLE_W, BUSY_W = 110.0, 500.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the checks by what they are worth."""
    items.sort(key=lambda item: FILES.index(item.path.name) if item.path.name in FILES else len(FILES))


@pytest.fixture(autouse=True)
def _time_left(request: pytest.FixtureRequest) -> None:
    """Skip a check marked `gpu(takes_s=...)` that would not end in time."""
    marker = request.node.get_closest_marker("gpu")
    takes_s = marker.kwargs.get("takes_s", 0.0) if marker is not None else 0.0
    left_s = MINUTES * 60 - (time.monotonic() - BEGUN_S)
    if not REHEARSAL and takes_s > left_s:
        pytest.skip(f"takes about {takes_s:.0f} s, and {left_s:.0f} s of {MINUTES:g} minutes are left")


class RehearsedLoad:
    """Steady power on a simulated GPU."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def burst(self, seconds: float) -> tuple[int, int]:
        """Load the simulated GPU; its edges on CLOCK_MONOTONIC."""
        start = self._gpu.set_power(BUSY_W)
        time.sleep(seconds)
        return start, self._gpu.set_power(IDLE_W)


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Simulation | None:
    """The simulated GPU of a rehearsal, which this process and its children then see."""
    if not REHEARSAL:
        return None
    directory = tmp_path_factory.mktemp("rehearsal")
    library = build_library(directory)
    preload(library)
    simulation = Simulation(directory / "gpus", library)
    os.environ.update(simulation.environment())
    os.environ["LLEM_CALIBRATION_DIR"] = str(directory / "calibration")
    return simulation


@pytest.fixture(scope="session")
def gpu_uuid(rehearsal: Simulation | None) -> str:
    uuids = doctor.gpu_uuids()
    if not uuids:
        pytest.skip("no NVIDIA GPU that NVML can see")
    return uuids[0]


@pytest.fixture(scope="session")
def load(gpu_uuid: str, rehearsal: Simulation | None) -> Load:
    if rehearsal is not None:
        return RehearsedLoad(rehearsal.gpus[0])
    try:
        return MatmulLoad(gpu_uuid)
    except MeterError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def on_gpu(gpu_uuid: str, rehearsal: Simulation | None) -> bool:
    """Whether engines run on the GPU: in a rehearsal they run on the CPU. Skips where torch sees no CUDA device."""
    if rehearsal is None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")
    return rehearsal is None


@pytest.fixture(scope="session")
def section(gpu_uuid: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RESULTS.md with a new section for this run of pytest."""
    pynvml.nvmlInit()
    (gpu,) = nvml_devices.find([gpu_uuid], None)
    pynvml.nvmlShutdown()
    path = tmp_path_factory.getbasetemp() / "RESULTS.md" if REHEARSAL else RESULTS
    begun = path.exists()
    today = datetime.now(timezone.utc).date().isoformat()
    with path.open("a", encoding="utf-8") as stream:
        if not begun:
            stream.write("# Measured on real GPUs\n\nEach section is one run of `pytest tests/gpu`.\n")
        stream.write(f"\n## {today}: {gpu.name}, driver {gpu.driver}, Python {platform.python_version()}\n\n")
    return path


@pytest.fixture
def results(section: Path) -> Iterator[list[str]]:
    """Lines for RESULTS.md, written as the check ends, however it ends."""
    lines: list[str] = []
    yield lines
    with section.open("a", encoding="utf-8") as stream:
        stream.write("".join(f"{line}\n" for line in lines))
