"""Fixtures: the compiled library, and simulated GPUs that the real `pynvml` sees in this process and its children."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from pytest_llem.machine.devices import gpu_uuids
from tests.simulated_nvml.simulation import Simulation, build_library

MakeSimulation = Callable[[int], Simulation]


@pytest.fixture(scope="session")
def simulated_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("the simulated NVML needs a C compiler (`cc`)")
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def make_simulation(
    simulated_nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeSimulation]:
    """Makes a machine with so many simulated GPUs; NVML is the simulated one until the test ends."""

    def make(gpus: int) -> Simulation:
        simulation = Simulation(tmp_path / "simulated-gpus", simulated_nvml_library, gpus)
        for name, value in simulation.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LLEM_CALIBRATION_DIR", str(tmp_path / "calibration"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return simulation

    # pynvml asks the loader once per process: hand it the library, so that a real one loaded earlier does not win.
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(simulated_nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    # The driver is asked for its GPUs once per process, too.
    gpu_uuids.cache_clear()
    yield make
    gpu_uuids.cache_clear()


@pytest.fixture
def simulation(make_simulation: MakeSimulation) -> Simulation:
    """A machine with one simulated GPU like an H100."""
    return make_simulation(1)
