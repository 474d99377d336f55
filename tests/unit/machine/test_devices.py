"""Which devices a cycle gets: visible GPUs, and never the CPU because a GPU is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from pytest_llem.errors import DeviceError
from pytest_llem.job.config import (
    AskedKind,
    Decoding,
    DeviceSettings,
    ExperimentConfig,
    MeasurementSettings,
    WorkloadSettings,
)
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine import devices
from pytest_llem.machine.leases import take_lease
from tests.simulated_nvml.plugin import MakeSimulation, make_simulation, simulated_nvml_library

__all__ = ["make_simulation", "simulated_nvml_library"]


def config(**settings: int) -> ExperimentConfig:
    return ExperimentConfig(
        model="m",
        engine="vllm",
        dtype=None,
        weights="real",
        workload=WorkloadSettings("synthetic", 1, 8, 4, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings=settings,
    )


@pytest.fixture(autouse=True)
def ask_anew() -> Iterator[None]:
    devices.gpu_uuids.cache_clear()
    yield
    devices.gpu_uuids.cache_clear()


@pytest.fixture
def four(make_simulation: MakeSimulation) -> tuple[str, ...]:
    make_simulation(4)
    return devices.gpu_uuids()


def test_without_a_driver_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert devices.visible_devices(config()) == DeviceSet("cpu")


def test_a_driver_that_does_not_work_is_an_error_and_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    with pytest.raises(DeviceError, match="driver does not answer") as caught:
        devices.visible_devices(config())
    assert caught.value.fix == "driver and library differ after an update: reboot"


def test_experiments_get_as_many_gpus_as_their_parallel_sizes_ask_for(four: tuple[str, ...]) -> None:
    assert devices.visible_devices(config()) == DeviceSet("cuda", four[:1])
    assert devices.visible_devices(config(tensor_parallel_size=2)) == DeviceSet("cuda", four[:2])
    with pytest.raises(DeviceError, match="needs 8 GPUs, and 4 are visible"):
        devices.visible_devices(config(tensor_parallel_size=4, pipeline_parallel_size=2))


def test_devices_that_were_had_before_are_preferred_and_shown_in_pci_order(four: tuple[str, ...]) -> None:
    demand = replace(devices.demanded_devices(config(tensor_parallel_size=2)), preferred=(four[3],))
    assert demand.in_order_of_preference() == (four[3], *four[:3])
    assert demand.first() == DeviceSet("cuda", (four[0], four[3]))
    assert demand.met_by(DeviceSet("cuda", four[1:3]))
    assert not demand.met_by(DeviceSet("cuda", four[:1]))
    assert not demand.met_by(DeviceSet("cuda", (four[0], "GPU-of-another-machine")))


@pytest.mark.parametrize(
    ("chosen", "indices"), [("1,3", (1, 3)), ("", ()), ("-1", ()), ("NoDevFiles", ()), ("2,-1,0", (2,))]
)
def test_cuda_visible_devices_is_respected(
    four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, chosen: str, indices: tuple[int, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert devices.visible_gpus() == tuple(four[index] for index in indices)


def test_gpus_can_be_named_by_the_beginning_of_their_uuid(
    four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", four[3])
    assert devices.visible_gpus() == (four[3],)


@pytest.mark.parametrize("chosen", ["7", "0,7", "GPU-nonsense", "cuda:0"])
def test_a_name_that_fits_no_gpu_is_an_error_that_lists_them(
    four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    with pytest.raises(DeviceError, match="there is no GPU") as caught:
        devices.visible_gpus()
    assert four[0] in str(caught.value.fix)


@pytest.mark.parametrize("chosen", ["0,0", "2,1,GPU-00000000-0000-0000-0000-000000000002"])
def test_a_gpu_that_is_named_twice_is_an_error(
    four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    """It would count as two, and an experiment on two wait a day for the one that it holds itself."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    with pytest.raises(DeviceError, match=f"{chosen} names a GPU twice"):
        devices.visible_gpus()


def test_a_part_of_a_gpu_keeps_its_name(four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    assert devices.visible_devices(config()) == DeviceSet("cuda", ("MIG-1234",))


@pytest.mark.parametrize(
    ("named", "indices"), [((2,), (2,)), ((3, 0), (0, 3)), (("GPU-00000000-0000-0000-0000-000000000001",), (1,))]
)
def test_a_study_names_the_gpus_to_lease(
    four: tuple[str, ...], named: tuple[int | str, ...], indices: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    demand = devices.demanded_devices(replace(config(), device=DeviceSettings(gpus=named)))

    assert demand.candidates == tuple(four[index] for index in indices)
    assert demand.count == 1


def test_a_named_gpu_that_is_not_there_is_an_error(four: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError, match=r"device\.gpus: 4: there is no GPU '4'") as caught:
        devices.demanded_devices(replace(config(), device=DeviceSettings(gpus=(4,))))

    assert f"3 ({four[3]})" in (caught.value.fix or "")


def test_a_beginning_that_several_gpus_share_names_none(four: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError, match=r"device\.gpus: GPU-: there is no one GPU"):
        devices.demanded_devices(replace(config(), device=DeviceSettings(gpus=("GPU-",))))


def on(kind: AskedKind, gpus: int | None = None) -> ExperimentConfig:
    return replace(config(), device=DeviceSettings(kind=kind, gpus=gpus or ()))


def test_a_machine_with_gpus_can_measure_its_cpu_and_nobody_measures_on_a_gpu_meanwhile(
    four: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that drives a GPU runs on the CPU whose energy is counted."""
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path))
    demand = devices.demanded_devices(on("cpu"))

    assert demand.first() == DeviceSet("cpu")
    with take_lease(demand, timeout_s=0) as lease:
        assert lease.devices == DeviceSet("cpu")
        assert set(lease.names) == {"cpu", *four}
        with pytest.raises(DeviceError, match="in use by"), take_lease(DeviceSet("cuda", four[2:3]), timeout_s=0):
            pass
    with take_lease(DeviceSet("cuda", four[2:3]), timeout_s=0), pytest.raises(DeviceError, match="cpu and 4 GPUs"):
        take_lease(demand, timeout_s=0)


def test_a_driver_that_does_not_work_is_nothing_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    assert devices.visible_devices(on("cpu")) == DeviceSet("cpu")


def test_gpus_that_are_asked_for_are_never_replaced_by_the_cpu(
    four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.visible_devices(on("cuda")) == DeviceSet("cuda", four[:1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match=r"device\.kind cuda: no NVIDIA GPU is visible"):
        devices.visible_devices(on("cuda"))


def test_a_number_of_gpus_is_taken_of_the_visible_ones(four: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0")
    demand = devices.demanded_devices(on("auto", gpus=2))
    assert (demand.count, set(demand.candidates)) == (2, {four[0], four[1], four[3]})
    with pytest.raises(DeviceError, match="needs 4 GPUs, and 3 are visible"):
        devices.demanded_devices(on("auto", gpus=4))
