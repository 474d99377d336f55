"""NVIDIA GPUs by UUID, with their identity and memory. NVML must be initialised.

Used by the sampler process, `gpu_meter`, calibration, `llem doctor`, the checks of `machine`, and `containers.images`.
It must stay cheap to import (no dataclasses), because the sampler process does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import byref
from typing import NamedTuple

import pynvml

from pytest_llem.energy.processes import ancestors
from pytest_llem.energy.readings import GpuFacts

MODULE_NAMES = ("GH200", "GB200", "GB300")
"""Modules of CPU and GPU, whose sensor may cover both (NVML documentation, `NVML_POWER_SCOPE_MODULE`)."""


CLOCK_EVENTS = {
    pynvml.nvmlClocksEventReasonGpuIdle: "gpu_idle",
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "applications_clocks_setting",
    pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal_slowdown",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal_slowdown",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display_clock_setting",
}
"""What holds a GPU's clocks down, by bit, under the names of NVML's constants."""

POWER_PROFILES = {
    value: name.removeprefix("NVML_POWER_PROFILE_").lower()
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_POWER_PROFILE_") and "OPERATION" not in name and name != "NVML_POWER_PROFILE_MAX"
}
"""Workload power profiles by their number, under the names of NVML's constants; none with an old nvidia-ml-py."""


class Gpu(NamedTuple):
    """A GPU that can be metered. With `mig`, a MIG instance was requested and its parent GPU is metered instead."""

    handle: object
    position: int
    uuid: str
    name: str
    driver: str
    mig: bool

    def facts(self, *, leased: bool = True) -> GpuFacts:
        """What the meter needs to know of it, with its memory in use now."""
        module = any(name in self.name for name in MODULE_NAMES)
        try:
            used = int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)
        except pynvml.NVMLError:
            used = None
        try:
            limit_w = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self.handle)[1] / 1e3
        except pynvml.NVMLError:
            limit_w = None
        return GpuFacts(self.uuid, self.name, self.driver, self.mig, module, used, limit_w, leased)


@contextmanager
def nvml() -> Iterator[None]:
    """NVML, initialised for the length of the block. Raises `NVMLError` where it does not answer."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def find(uuids: Sequence[str], visible: str | None) -> list[Gpu]:
    """The GPUs with these UUIDs in this order; with none, those that `CUDA_VISIBLE_DEVICES` leaves visible.

    Raises `NVMLError`: `NVML_ERROR_NOT_FOUND` for a UUID that this machine does not have.
    """
    driver = str(pynvml.nvmlSystemGetDriverVersion())
    handles = [by_uuid(uuid) for uuid in uuids] if uuids else _visible(visible)
    if not handles:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    gpus: dict[str, Gpu] = {}
    for handle in handles:
        parent, mig = _parent(handle)
        uuid = str(pynvml.nvmlDeviceGetUUID(parent))
        index = int(pynvml.nvmlDeviceGetIndex(parent))
        gpus[uuid] = Gpu(parent, index, uuid, str(pynvml.nvmlDeviceGetName(parent)), driver, mig)
    return list(gpus.values())


def all_gpus() -> list[Gpu]:
    """Every GPU that answers, whatever is visible to CUDA."""
    gpus: list[Gpu] = []
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        with suppress(pynvml.NVMLError):
            gpus += find([str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))], None)
    return gpus


def active_profiles(handle: object) -> list[str]:
    """The workload power profiles in force. Raises `NVMLError` where board, driver or nvidia-ml-py have none."""
    if not POWER_PROFILES:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    found = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(handle, byref(found))
    mask = found.enforcedProfilesMask.mask
    return [POWER_PROFILES.get(bit, str(bit)) for bit in range(32 * len(mask)) if mask[bit // 32] >> bit % 32 & 1]


def compute_pids(handle: object) -> list[int] | None:
    """Ids of the processes that compute on a GPU; `None` where the driver does not list them."""
    try:
        return [int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except pynvml.NVMLError as problem:
        if problem.value in (
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_NO_PERMISSION,
        ):
            return None
        raise


def holding(pid: int) -> list[Gpu]:
    """The GPUs on which the driver shows a process of the tree below `pid`."""
    return [gpu for gpu in all_gpus() if any(pid in ancestors(one) for one in compute_pids(gpu.handle) or ())]


def by_uuid(uuid: str) -> object:
    """The handle of a GPU or MIG instance; torch omits the prefix that NVML requires."""
    name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    handle: object = pynvml.nvmlDeviceGetHandleByUUID(name)
    return handle


def remedy(problem: pynvml.NVMLError) -> str:
    """The remedy for an NVML error."""
    remedies = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver (libnvidia-ml.so.1 is part of it); in Docker, "
        "run with --gpus all and the NVIDIA container toolkit; without a GPU, use --llem-meter=auto",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the driver (`sudo modprobe nvidia`) and look at `dmesg`",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ after an update: reboot",
        pynvml.NVML_ERROR_NO_PERMISSION: "this user may not open /dev/nvidia*: check the files' permissions",
        pynvml.NVML_ERROR_NOT_FOUND: "check the UUIDs with `nvidia-smi -L`, and CUDA_VISIBLE_DEVICES",
        pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU has fallen off the bus: look at `dmesg` for Xid errors and reboot",
    }
    return remedies.get(problem.value, "run `nvidia-smi`; it should show the GPU without an error")


def _visible(visible: str | None) -> list[object]:
    """Handles that `CUDA_VISIBLE_DEVICES` names; like CUDA, it stops at the first entry that names no device.

    Numbers count in PCI order, which is CUDA's order with `CUDA_DEVICE_ORDER=PCI_BUS_ID` and on machines whose GPUs
    are all alike.
    """
    count = int(pynvml.nvmlDeviceGetCount())
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    handles: list[object] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit() and int(entry) < count:
            handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(entry)))
        elif entry.startswith(("GPU-", "MIG-")):
            handles.append(by_uuid(entry))
        else:
            break
    return handles


def _parent(handle: object) -> tuple[object, bool]:
    try:
        if pynvml.nvmlDeviceIsMigDeviceHandle(handle):
            return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle), True
    except pynvml.NVMLError:
        return handle, False
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:
        return handle, False
    return handle, bool(current)
