"""The simulated NVML behaves as the real one where settings are made; other tests take their evidence from it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from tests.simulated_nvml.loads import operation, run_load
from tests.simulated_nvml.simulation import NOBODY, PRIVILEGED, ROOT_VARIABLE, Gpu, Simulation

Set = Callable[[object], object]
SETS: dict[str, Set] = {
    "limit": lambda handle: pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000),
    "clock": lambda handle: pynvml.nvmlDeviceSetGpuLockedClocks(handle, 1410, 1410),
    "memory": lambda handle: pynvml.nvmlDeviceSetMemoryLockedClocks(handle, 1593, 1593),
    "profile": lambda handle: pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(handle, profiles(1, 6)),
}
OUTSIDE: list[Set] = [
    lambda handle: pynvml.nvmlDeviceSetPowerManagementLimit(handle, 199_999),
    lambda handle: pynvml.nvmlDeviceSetPowerManagementLimit(handle, 700_001),
    lambda handle: pynvml.nvmlDeviceSetGpuLockedClocks(handle, 1410, 1995),
    lambda handle: pynvml.nvmlDeviceSetGpuLockedClocks(handle, 1425, 1410),
    lambda handle: pynvml.nvmlDeviceSetMemoryLockedClocks(handle, 100, 1593),
    lambda handle: pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(handle, profiles(2)),
]


def profiles(*numbers: int) -> object:
    asked = pynvml.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t()
    for number in numbers:
        asked.requestedProfilesMask.mask[number // 32] |= 1 << number % 32
    return ctypes.byref(asked)  # pynvml passes on what it is given


@pytest.fixture
def gpu(simulation: Simulation) -> Iterator[Gpu]:
    simulation.gpus[0].offer_profiles(1, 6)
    pynvml.nvmlInit()
    yield simulation.gpus[0]
    pynvml.nvmlShutdown()


@pytest.fixture
def handle(gpu: Gpu) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(0)


@pytest.mark.parametrize("name", SETS)
def test_whoever_may_not_set_changes_nothing(gpu: Gpu, handle: object, name: str) -> None:
    """A simulation that let anybody set would hide a missing check of permission."""
    before = gpu.settings
    gpu.permission = NOBODY
    with pytest.raises(pynvml.NVMLError_NoPermission):
        SETS[name](handle)
    gpu.permission, gpu.mig = 0, 1
    with pytest.raises(pynvml.NVMLError_NotSupported):
        SETS[name](handle)
    assert gpu.settings == before
    gpu.mig = 0
    SETS[name](handle)
    assert gpu.settings != before


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_value_outside_the_constraints_is_an_invalid_argument(gpu: Gpu, handle: object, outside: Set) -> None:
    before = gpu.settings
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        outside(handle)
    assert gpu.settings == before


def test_the_constraints_are_those_of_an_h100(gpu: Gpu, handle: object) -> None:
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [200_000, 700_000]
    assert pynvml.nvmlDeviceGetSupportedMemoryClocks(handle) == [2619, 1593]
    clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, 1593)
    assert (clocks[0], clocks[1], clocks[-1]) == (1980, 1965, 210)
    assert pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 2619


def test_a_setting_stays_when_its_process_dies_and_takes_privilege(gpu: Gpu, handle: object, tmp_path: Path) -> None:
    """Settings belong to the board: a proof of putting back would prove nothing on ones that die with their setter."""
    gpu.permission = PRIVILEGED
    uuid = gpu.uuid.decode()
    command = ["nvidia-smi", "-i", uuid, "-lgc", "1410", "-pl", "450"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (4, "Insufficient Permissions\n")
    subprocess.run(command, env={**os.environ, ROOT_VARIABLE: "1"}, check=True, capture_output=True)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 450_000
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 700_000
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1410
    assert (gpu.limit_sets, gpu.clock_sets, gpu.refusals) == (1, 1, 1)
    assert sys.executable in Path(os.environ["PATH"].split(os.pathsep)[0], "nvidia-smi").read_text()


def test_profiles_are_requested_and_cleared(gpu: Gpu, handle: object) -> None:
    def current() -> tuple[int, int]:
        found = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
        pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(handle, ctypes.byref(found))
        return found.requestedProfilesMask.mask[0], found.enforcedProfilesMask.mask[0]

    pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(handle, profiles(1))
    gpu.unheld_profiles[0] = 1 << 6
    pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(handle, profiles(6))
    assert current() == (1 << 1 | 1 << 6, 1 << 1)
    pynvml.nvmlDeviceWorkloadPowerProfileClearRequestedProfiles(handle, profiles(1, 6))
    assert current() == (0, 0)


def test_a_load_follows_the_settings(gpu: Gpu, handle: object) -> None:
    """Power falls faster than speed until the voltage is at its least, and slower below: there is an optimum."""
    free = run_load(gpu)
    assert (free.clock_mhz, free.speed, free.reasons) == (1980, 1.0, 0)
    assert free.power_w == pytest.approx(690)

    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    capped = operation(gpu)
    assert 390 < capped.power_w <= 400
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == capped.clock_mhz < 1980
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonSwPowerCap
    field = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_PERF_POLICY_POWER])[0]
    assert field.value.ullVal > 0

    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 700_000)
    joules = {}
    for clock in range(510, 1980, 150):
        pynvml.nvmlDeviceSetGpuLockedClocks(handle, clock, clock)
        joules[clock] = operation(gpu).power_w / operation(gpu).speed
    assert min(joules, key=lambda clock: joules[clock]) == 1110

    gpu.slowed_to_mhz = 900
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 900
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonSwThermalSlowdown
    run_load(gpu, 0.0)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonGpuIdle


def test_a_set_may_be_acknowledged_and_not_hold(gpu: Gpu, handle: object) -> None:
    gpu.limit_ignored = 1
    SETS["limit"](handle)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000
    gpu.limit_ignored, gpu.limit_unheld = 0, 1
    SETS["limit"](handle)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000
    assert run_load(gpu).power_w == pytest.approx(690)
    gpu.outer_limit_mw = 300_000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == 400_000
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 300_000
