"""Which devices a cycle may use: the visible GPUs, or the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.job import DeviceSet, ExperimentConfig

HIDING = ("", "-1", "NoDevFiles")
PARALLEL_SIZES = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "tp_size", "pp_size", "dp_size",
)  # fmt: skip
"""Settings of an engine whose product is how many accelerators it takes."""


@lru_cache(maxsize=1)
def gpu_uuids() -> tuple[str, ...]:
    """UUIDs of this machine's NVIDIA GPUs in PCI order; empty where no driver is loaded.

    Raises `DeviceError` where there is a driver that does not work: a run on the CPU instead would be another
    experiment.
    """
    import pynvml

    from pytest_llem.energy.nvml_devices import remedy

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as problem:
        raise DeviceError(f"the NVIDIA driver does not answer: {problem}", fix=remedy(problem)) from None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    except pynvml.NVMLError as problem:
        raise DeviceError(f"a GPU does not answer: {problem}", fix=remedy(problem)) from None
    finally:
        pynvml.nvmlShutdown()


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves, by UUID; a MIG device keeps its own name.

    Indices count in PCI order. `-1`, `NoDevFiles` or nothing hide all GPUs, as in CUDA; where a name fits no GPU, CUDA
    would silently see fewer of them: that is a `DeviceError` here.
    """
    found = gpu_uuids()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not found:
        return found
    visible: list[str] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name in HIDING:
            break
        if name.isdigit() and int(name) < len(found):
            visible.append(found[int(name)])
        elif name.startswith("MIG-"):
            visible.append(name)
        elif matches := [uuid for uuid in found if uuid.startswith(name)]:
            visible.append(matches[0])
        else:
            raise DeviceError(
                f"CUDA_VISIBLE_DEVICES={chosen}: there is no GPU {name!r}",
                fix=f"name some of: {', '.join(f'{index} ({uuid})' for index, uuid in enumerate(found))}",
            )
    return tuple(visible)


def devices_needed(config: ExperimentConfig) -> int:
    """How many accelerators an experiment asks for: the product of its parallel sizes."""
    return parallel_product(config.settings.get)


def parallel_product(setting: Callable[[str], JsonValue]) -> int:
    """The product of the parallel sizes that `setting` gives by name."""
    needed = 1
    for name in PARALLEL_SIZES:
        size = setting(name)
        if isinstance(size, int) and not isinstance(size, bool):
            needed *= size
    return needed


def visible_devices(config: ExperimentConfig, is_free: Callable[[str], bool] | None = None) -> DeviceSet:
    """The devices of one cycle: as many GPUs as it needs, those that `is_free` says are not leased first.

    `DeviceError` when the experiment needs more GPUs than are visible.
    """
    gpus = visible_gpus()
    if not gpus:
        return DeviceSet("cpu")
    needed = devices_needed(config)
    if needed > len(gpus):
        raise DeviceError(
            f"the experiment needs {needed} GPUs, and {len(gpus)} are visible",
            fix="lower its parallel sizes, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
            details={"needed": needed, "visible": len(gpus)},
        )
    free = [gpu for gpu in gpus if is_free is None or is_free(gpu)]
    chosen = [*free, *(gpu for gpu in gpus if gpu not in free)][:needed]
    return DeviceSet("cuda", tuple(gpu for gpu in gpus if gpu in chosen))


def device_memory_bytes() -> int | None:
    """Memory of the smallest visible GPU, or of this machine where there is none; `None` where it does not say."""
    gpus = visible_gpus()
    if not gpus:
        import psutil

        return int(psutil.virtual_memory().total)
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in gpus]
        return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
    except pynvml.NVMLError:
        return None
