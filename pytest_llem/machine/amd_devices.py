"""Which AMD GPUs there are, which are visible, and how HIP is told which of them a process may use.

`devices` counts and leases them beside NVIDIA's; runners ask for a worker's environment. `amdsmi` decides what exists;
a driver that does not work must be an error, never a CPU. Not verified on hardware.

HIP counts the GPUs that `ROCR_VISIBLE_DEVICES` leaves (indices or `GPU-` and 16 hexadecimal digits; empty hides all),
and `HIP_VISIBLE_DEVICES` chooses among those; `CUDA_VISIBLE_DEVICES` does where that is not set (ROCm documentation,
"GPU isolation"; clr, `rocdevice.cpp`). vLLM and Ray refuse to start where the last two differ.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pytest_llem.energy import amdsmi_devices
from pytest_llem.errors import DeviceError

HIP, CUDA, ROCR = "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
HIDING = ("", "-1", "NoDevFiles")


HIDDEN = {CUDA: "", HIP: "-1"}
"""What hides every GPU of either maker from a process: HIP takes an empty list for none."""


class Names(NamedTuple):
    """What a GPU is called by `amdsmi` and by HIP; its place among all is HIP's index of it."""

    uuid: str
    hip_uuid: str
    shared: str | None


@lru_cache(maxsize=1)
def gpus() -> tuple[Names, ...]:
    """The machine's AMD GPUs in HIP's order, none without `amdsmi` or a driver; `DeviceError` if they do not answer."""
    try:
        smi = amdsmi_devices.library()
    except amdsmi_devices.UNLOADABLE:
        return ()
    try:
        with amdsmi_devices.all_gpus() as found:
            names = tuple(Names(gpu.uuid, gpu.hip_uuid, gpu.shared) for gpu in found)
            indices = [gpu.hip_index for gpu in found]
    except smi.AmdSmiException as problem:
        if amdsmi_devices.no_driver(smi, problem):
            return ()
        raise DeviceError(f"the AMD driver does not answer: {problem}", fix=amdsmi_devices.REMEDY) from None
    if any(name.shared for name in names):
        return names  # refused once they are to be used: HIP numbers the parts
    if indices != list(range(len(names))) or len({name.uuid for name in names}) < len(names):
        raise DeviceError(
            f"amdsmi does not tell which GPU HIP calls by which number: {indices} for {len(names)} GPUs",
            fix="update ROCm and amdsmi (6.4 or later), or measure on the CPU (device.kind: cpu)",
        )
    return names


def gpu_uuids() -> tuple[str, ...]:
    """The UUIDs of the machine's AMD GPUs, in HIP's order. `DeviceError` as `gpus`."""
    return tuple(gpu.uuid for gpu in gpus())


def visible_gpus(*, nvidia: bool = False) -> tuple[str, ...]:
    """The AMD GPUs that ROCr's and HIP's variables leave, by UUID, in HIP's order of them.

    Beside `nvidia` GPUs `CUDA_VISIBLE_DEVICES` names those, and only hides all of both.
    `DeviceError` for a name that fits none, after which HIP would silently see fewer, and for a GPU that shares its
    energy counter: one that is partitioned, or a die of two.
    """
    visible = _of_rocr()
    variable = HIP if os.environ.get(HIP) else CUDA
    chosen = os.environ.get(variable)
    if chosen is not None and not (nvidia and variable == CUDA and chosen.split(",")[0].strip() not in HIDING):
        visible = _chosen(f"{variable}={chosen}", chosen, visible)
    return _whole(visible)


def named_gpus(names: Sequence[str]) -> tuple[str, ...]:
    """GPUs by HIP's number or either UUID, in HIP's order; `DeviceError` as `visible_gpus`."""
    chosen = _chosen(f"device.gpus: {', '.join(names)}", ",".join(names), gpus())
    return _whole(tuple(gpu for gpu in gpus() if gpu in chosen))


def holding(pid: int) -> tuple[str, ...]:
    """The GPUs on which the driver shows a process of the tree below `pid`."""
    with amdsmi_devices.answering() as found:
        return tuple(gpu.uuid for gpu in found if gpu.holds(pid))


def least_memory_bytes(uuids: Sequence[str]) -> int | None:
    """Memory of the smallest of these GPUs; `None` where one does not say."""
    with amdsmi_devices.answering(uuids) as found:
        sizes = [gpu.total_bytes for gpu in found]
    return min((size for size in sizes if size is not None), default=None) if None not in sizes else None


def _whole(gpus: Sequence[Names]) -> tuple[str, ...]:
    shared = next((gpu for gpu in gpus if gpu.shared), None)
    if shared is not None:
        raise DeviceError(
            f"{shared.uuid} is {shared.shared}, which share one energy counter",
            fix=f"{amdsmi_devices.MAKE_WHOLE}, or hide it with HIP_VISIBLE_DEVICES",
        )
    return tuple(gpu.uuid for gpu in gpus)


def environment_of(uuids: Sequence[str]) -> dict[str, str]:
    """The variables that show a process exactly these GPUs, by HIP's index among those that ROCr shows it."""
    order = [gpu.uuid for gpu in _of_rocr()]
    missing = [uuid for uuid in uuids if uuid not in order]
    if missing:
        raise DeviceError(
            f"HIP does not see {', '.join(missing)}, which was leased", fix=f"unset {ROCR}, or name it there as well"
        )
    indices = ",".join(str(order.index(uuid)) for uuid in uuids)
    return {HIP: indices, CUDA: indices}


def _of_rocr() -> tuple[Names, ...]:
    chosen = os.environ.get(ROCR)
    return gpus() if chosen is None else _chosen(f"{ROCR}={chosen}", chosen, gpus())


def _chosen(where: str, chosen: str, among: tuple[Names, ...]) -> tuple[Names, ...]:
    visible: list[Names] = []
    for name in (part.strip() for part in chosen.split(",")) if among else ():
        if name in HIDING:
            break
        if name.isdigit() and int(name) < len(among):
            visible.append(among[int(name)])
        elif len(matches := [gpu for gpu in among if gpu.uuid.startswith(name) or gpu.hip_uuid == name]) == 1:
            visible.append(matches[0])
        else:
            there = ", ".join(f"{index} ({gpu.uuid})" for index, gpu in enumerate(among))
            raise DeviceError(
                f"{where}: there is no AMD GPU {name!r}",
                fix=f"name some of: {there}" if there else "none works here: see `llem doctor`",
            )
    return tuple(dict.fromkeys(visible))
