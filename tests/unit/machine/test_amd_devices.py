"""Which AMD GPUs a cycle gets, and how HIP is told: through the real `amdsmi` on a simulated library of four."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_llem.energy import doctor
from pytest_llem.energy.amdsmi_devices import all_gpus
from pytest_llem.engines.hub_models import require_build_for
from pytest_llem.errors import DeviceError, EngineError, ResidualMemoryError
from pytest_llem.job.config import DeviceSettings, ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine import amd_devices, devices
from pytest_llem.machine.cooldown import read
from pytest_llem.machine.device_checks import Place, experiments_beyond
from pytest_llem.machine.environment import gather
from pytest_llem.machine.occupancy import occupancy, released, require_free
from pytest_llem.study import load_study
from tests.simulated_nvml.amd import (
    DRIVER_BYTES,
    POWER_W,
    STEP_W,
    TOTAL_BYTES,
    Amd,
    amd_library,
    four_amd,
    hip_uuid,
    uuid,
)
from tests.unit.machine.test_devices import config

__all__ = ["amd_library", "four_amd"]

pytestmark = pytest.mark.skipif(find_spec("amdsmi") is None, reason="amdsmi is not installed")

SPREAD = "transformers: {device_map: auto}\n"
ALL = tuple(uuid(i) for i in range(4))


@pytest.mark.usefixtures("four_amd")
def test_gpus_stand_in_hips_order_and_not_in_amdsmis() -> None:
    """The two differ on real machines: by amdsmi's order a process would be shown another GPU than was leased."""
    assert amd_devices.visible_gpus() == ALL
    assert amd_devices.environment_of((uuid(1), uuid(3))) == {
        "HIP_VISIBLE_DEVICES": "1,3",
        "CUDA_VISIBLE_DEVICES": "1,3",
    }


@pytest.mark.usefixtures("four_amd")
@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ({"HIP_VISIBLE_DEVICES": "3,1"}, (3, 1)),
        ({"HIP_VISIBLE_DEVICES": hip_uuid(2)}, (2,)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "1"}, (2,)),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"ROCR_VISIBLE_DEVICES": ""}, ()),
        ({"ROCR_VISIBLE_DEVICES": f"3,{hip_uuid(1)}"}, (3, 1)),
        ({"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "1"}, (1,)),
    ],
    ids=str,
)
def test_visible_is_what_rocr_and_then_hip_leave(
    variables: dict[str, str], left: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HIP counts what ROCr leaves it, takes an empty list for none, and reads CUDA's variable where it has no own."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert amd_devices.visible_gpus() == tuple(uuid(index) for index in left)


@pytest.mark.usefixtures("four_amd")
def test_a_worker_is_told_by_number_among_what_rocr_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCR_VISIBLE_DEVICES is inherited: HIP's index of a GPU is then its place in that list."""
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", f"3,{hip_uuid(1)}")

    assert amd_devices.environment_of((uuid(1),))["HIP_VISIBLE_DEVICES"] == "1"
    with pytest.raises(DeviceError, match="HIP does not see"):
        amd_devices.environment_of((uuid(0),))


@pytest.mark.usefixtures("four_amd")
def test_beside_nvidia_gpus_cudas_variable_names_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0a1b2c3d,GPU-0a1b2c3e")
    assert amd_devices.visible_gpus(nvidia=True) == ALL

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert amd_devices.visible_gpus(nvidia=True) == ()


@pytest.mark.usefixtures("four_amd")
@pytest.mark.parametrize("name", ["4", "GPU-00000000ffffffff", "all"])
def test_a_name_that_fits_no_gpu_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", f"0,{name}")

    with pytest.raises(DeviceError, match=f"HIP_VISIBLE_DEVICES=0,{name}: there is no AMD GPU '{name}'"):
        amd_devices.visible_gpus()


@pytest.mark.usefixtures("four_amd")
def test_a_partitioned_gpu_is_refused_where_it_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts share one energy counter, which would count each other's joules."""
    monkeypatch.setenv("LLEM_AMD_PARTITION", "CPX")
    with pytest.raises(DeviceError, match=r"partitioned \(CPX\)") as refused:
        amd_devices.visible_gpus()
    assert "--compute-partition SPX" in str(refused.value.fix)

    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    assert amd_devices.visible_gpus() == ()

    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    monkeypatch.setenv("LLEM_AMD_PARTITION", "SPX")
    amd_devices.gpus.cache_clear()
    assert amd_devices.visible_gpus() == ALL


@pytest.mark.usefixtures("four_amd")
def test_a_die_of_two_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter of one counts both dies, and that of the other stands still."""
    monkeypatch.setenv("LLEM_AMD_NAME", "AMD Instinct MI250X")
    with pytest.raises(DeviceError, match="is one of two dies, which share one energy counter"):
        amd_devices.visible_gpus()


@pytest.mark.usefixtures("four_amd")
def test_without_hips_numbers_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_AMD_HIP", "none")

    with pytest.raises(DeviceError, match="which GPU HIP calls by which number"):
        amd_devices.visible_gpus()


@pytest.mark.usefixtures("four_amd")
def test_a_driver_that_is_not_there_is_no_gpu_and_one_that_fails_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that fails would otherwise make a run on a GPU one on the CPU."""
    monkeypatch.setenv("LLEM_AMD_STATUS", "34")
    assert amd_devices.gpu_uuids() == ()

    monkeypatch.setenv("LLEM_AMD_STATUS", "12")
    amd_devices.gpus.cache_clear()
    with pytest.raises(DeviceError, match="the AMD driver does not answer"):
        amd_devices.gpu_uuids()


def test_memory_and_processes_are_each_gpus_own(four_amd: Amd) -> None:
    four_amd.occupy(2, 5 << 30)

    with all_gpus() as gpus:
        assert [gpu.processes for gpu in gpus] == [{}, {}, {os.getpid(): 5 << 30}, {}]
        assert (gpus[2].used_bytes or 0) - (gpus[0].used_bytes or 0) == 5 << 30
        assert (gpus[0].name, gpus[0].driver, gpus[0].power_cap_w) == ("AMD Instinct MI300X", "6.14.14", 750)


def test_memory_in_use_is_refused_by_name_and_what_the_driver_holds_is_not(four_amd: Amd) -> None:
    """An idle MI300X shows 283 MiB in use: counted as another's, no cycle would ever start."""
    limit = 100_000_000
    assert [gpu.used_bytes for gpu in require_free(ALL, limit, {})] == [DRIVER_BYTES] * 4

    four_amd.occupy(1, 1 << 30)
    with pytest.raises(ResidualMemoryError) as refused:
        require_free((uuid(0), uuid(1)), limit, {})

    assert str(refused.value).count("in use before the cycle") == 1
    assert f"{uuid(1)}: 1,370 MB in use before the cycle (process {os.getpid()}" in str(refused.value)


def test_what_a_cycle_leaves_on_a_gpu_is_said(four_amd: Amd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llem.machine.occupancy.RELEASE_WAIT_S", 0.2)
    before = occupancy(ALL[:2])
    four_amd.occupy(1, 1 << 30)

    problem = released(before, "cycle 1")

    assert problem is not None
    assert uuid(1) in problem.message
    assert uuid(0) not in problem.message
    four_amd.free()
    assert released(before, "cycle 1") is None


@pytest.mark.usefixtures("four_amd")
def test_facts_of_this_machine_have_its_amd_gpus_by_what_a_baseline_compares() -> None:
    gpus = [gpu for gpu in cast("list[dict[str, object]]", gather()["gpus"]) if gpu.get("uuid") in ALL]

    assert [gpu["uuid"] for gpu in gpus] == list(ALL)
    assert {(gpu["name"], gpu["driver"], gpu["power_limit_w"]) for gpu in gpus} == {
        ("AMD Instinct MI300X", "6.14.14", 750.0)
    }


@pytest.mark.usefixtures("four_amd")
def test_power_and_temperature_for_the_cooldown_are_those_of_the_gpus_asked_for() -> None:
    assert {name: reading.power_w for name, reading in read((uuid(0), uuid(3))).items()} == {
        uuid(0): POWER_W,
        uuid(3): POWER_W + 3 * STEP_W,
    }


def test_llem_doctor_lists_them_and_what_stands_against_each(four_amd: Amd, monkeypatch: pytest.MonkeyPatch) -> None:
    four_amd.occupy(2, 0, os.getppid())
    found = [finding for finding in doctor.describe() if finding.subject in ALL]
    assert [(finding.level, finding.subject) for finding in found] == [
        ("ok", uuid(0)),
        ("ok", uuid(1)),
        ("ok", uuid(2)),
        ("warn", uuid(2)),
        ("ok", uuid(3)),
    ]
    assert [each.level for each in doctor.describe() if each.subject == "nvml"] == ["absent"]
    assert found[0].message == (
        "AMD Instinct MI300X, driver 6.14.14, power cap 750 W, HIP's number 0; not verified on hardware"
    )

    monkeypatch.setenv("LLEM_AMD_PARTITION", "CPX")
    assert (
        "partitioned (CPX)"
        in next(each for each in doctor.describe() if (each.level, each.subject) == ("warn", uuid(0))).message
    )
    monkeypatch.setenv("LLEM_AMD_STATUS", "12")
    assert [each.level for each in doctor.describe() if each.message.startswith("amdsmi: ")] == ["problem"]


def asking(**device: object) -> ExperimentConfig:
    return replace(config(), device=DeviceSettings(**device))  # type: ignore[arg-type]


@pytest.mark.usefixtures("four_amd")
def test_auto_takes_them_where_there_are_no_nvidia_gpus_and_a_cpu_cycle_keeps_them_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert devices.visible_devices(asking(gpus=2)) == DeviceSet("rocm", ALL[:2])
    assert devices.visible_devices(asking(gpus=(hip_uuid(3), 1))) == DeviceSet("rocm", (uuid(1),))
    assert devices.Demand.of_cpu().beside == ALL
    assert devices.device_memory_bytes("rocm") == TOTAL_BYTES

    monkeypatch.setattr(devices, "gpu_uuids", lambda: ("GPU-1", "GPU-2"))
    assert devices.visible_of("auto") == ("cuda", ("GPU-1", "GPU-2"))
    assert devices.visible_of("rocm") == ("rocm", ALL)
    assert devices.Demand.of_cpu().beside == ("GPU-1", "GPU-2", *ALL)
    assert devices.metered_gpus("amdsmi", "auto") == ALL
    assert devices.metered_gpus("nvml", "auto") == ("GPU-1", "GPU-2")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.visible_of("auto") == ("cpu", ())


@pytest.mark.usefixtures("four_amd")
def test_a_name_that_fits_none_of_them_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"device\.gpus: 4: there is no AMD GPU '4'"):
        devices.visible_devices(asking(kind="rocm", gpus=(4,)))


@pytest.mark.usefixtures("four_amd")
@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("device: {kind: rocm}", Place("auto"), "2:16: .*AMD GPUs cannot be given to containers"),
        ("device: {kind: rocm}", Place("nvml", here=("transformers",)), "2:16: .*nvml, which reads NVIDIA GPUs"),
        ("device: {kind: rocm}", Place("auto", here=("transformers",)), "2:16: .*torch was built for cuda"),
        (f"{SPREAD}device: {{gpus: 5}}", Place("auto", here=("transformers",)), "needs 5 GPUs, 4 are visible"),
    ],
)
def test_what_cannot_be_measured_on_them_is_said_at_collection(
    text: str, place: Place, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = "cuda" if "built for" in message else "rocm"
    monkeypatch.setattr("pytest_llem.machine.device_checks.torch_build", lambda: build)
    (tmp_path / "s.yaml").write_text(f"model: builtin:tiny-llama\n{text}\n")

    with pytest.raises(DeviceError, match=message):
        experiments_beyond(load_study(tmp_path / "s.yaml", env={}), place)


def test_a_torch_for_another_makers_gpus_is_refused_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both builds call their GPUs `cuda`: the wrong one would compute on an NVIDIA GPU, which is not leased."""
    torch = SimpleNamespace(version=SimpleNamespace(hip=None), __version__="2.9.0")
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(EngineError, match="GPUs of the kind rocm were leased, and torch is built for cuda"):
        require_build_for(DeviceSet("rocm", (uuid(0),)))
    require_build_for(DeviceSet("cuda", ("GPU-1",)))

    torch.version.hip = "6.4"
    require_build_for(DeviceSet("rocm", (uuid(0),)))
    with pytest.raises(EngineError, match="GPUs of the kind cuda were leased"):
        require_build_for(DeviceSet("cuda", ("GPU-1",)))
