"""AMD GPUs by UUID, with what HIP calls them and their memory, through `amdsmi`. Not verified on hardware.

Used by the sampler process, `llem doctor`, the checks of `machine` and its facts about this machine. It must stay cheap
to import (no dataclasses), because the sampler process does. Formats are those of the AMD SMI documentation, `amdsmi.h`
of ROCm 7.0.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from importlib import import_module
from typing import Any, Literal, NamedTuple

from pytest_llem.energy.processes import ancestors

UNLOADABLE = (ImportError, OSError, KeyError, AttributeError)
"""What importing `amdsmi` raises without the package or without ROCm's library, by version."""

NO_DRIVER = ("AMDSMI_STATUS_DRIVER_NOT_LOADED", "AMDSMI_STATUS_NO_DRV")
"""What the library answers on a machine without AMD GPUs, or without their driver."""

REMEDY = "run `amd-smi list`; it should show the GPUs without an error. To measure the CPU: device.kind: cpu"
MAKE_WHOLE = "`sudo amd-smi set --gpu all --compute-partition SPX` where it is partitioned"

NVIDIA_PREFIXES = ("GPU-", "MIG-")
"""What NVIDIA's UUIDs begin with; those of `amdsmi` begin with hexadecimal digits."""

TWO_DIES = ("MI250",)
"""GPUs that are two to HIP, of which one tells the energy of both, and the other none (Linux, `aldebaran_ppt.c`;
ROCm/rocm_smi_lib#160)."""

MODULES = ("MI300A",)
"""GPUs whose socket has a CPU too, and whose accumulator counts that as well."""

WHOLE = ("SPX", "N/A", "")
"""Compute partition modes in which a GPU is one device."""


class AmdGpu(NamedTuple):
    """An AMD GPU. HIP and ROCr call it by `hip_index` or `hip_uuid`; `partition` is its mode, where it has modes."""

    smi: Any
    handle: object
    uuid: str
    hip_index: int | None
    hip_uuid: str
    partition: str | None

    def ask(self, name: str, *more: object) -> Any:
        """What a function of the library says of it; `None` where it does not."""
        return ask(self.smi, name, self.handle, *more)

    @property
    def name(self) -> str:
        """What it is sold as."""
        return _text(self.ask("amdsmi_get_gpu_asic_info"), "market_name") or "AMD GPU"

    @property
    def driver(self) -> str:
        """The version of its driver."""
        return _text(self.ask("amdsmi_get_gpu_driver_info"), "driver_version") or "unknown"

    @property
    def used_bytes(self) -> int | None:
        """Device memory in use, the driver's own included."""
        used = self.ask("amdsmi_get_gpu_memory_usage", self.smi.AmdSmiMemoryType.VRAM)
        return used if isinstance(used, int) else None

    @property
    def total_bytes(self) -> int | None:
        """Its device memory."""
        total = self.ask("amdsmi_get_gpu_memory_total", self.smi.AmdSmiMemoryType.VRAM)
        return total if isinstance(total, int) else None

    @property
    def power_w(self) -> float | None:
        """Its power now."""
        info = self.ask("amdsmi_get_power_info")
        if not isinstance(info, Mapping):
            return None
        # Each generation of boards fills one of the two; the other is "N/A" or 0.
        values = [info.get(name) for name in ("current_socket_power", "average_socket_power")]
        return next((float(value) for value in values if isinstance(value, (int, float)) and value > 0), None)

    @property
    def temperature_c(self) -> float | None:
        """The temperature of its hottest spot."""
        kinds, metrics = self.smi.AmdSmiTemperatureType, self.smi.AmdSmiTemperatureMetric
        return _number(self.ask("amdsmi_get_temp_metric", kinds.HOTSPOT, metrics.CURRENT))

    def clock_mhz(self, kind: Literal["GFX", "MEM"], field: Literal["clk", "max_clk"] = "clk") -> float | None:
        """A clock as it is, or the highest it can have."""
        info = self.ask("amdsmi_get_clock_info", getattr(self.smi.AmdSmiClkType, kind))
        return _number(info.get(field)) if isinstance(info, Mapping) else None

    @property
    def power_cap_w(self) -> float | None:
        """The power cap that is set."""
        info = self.ask("amdsmi_get_power_cap_info")
        cap_uw = info.get("power_cap") if isinstance(info, Mapping) else None
        return cap_uw / 1e6 if isinstance(cap_uw, int) and cap_uw > 0 else None

    @property
    def processes(self) -> dict[int, int | None] | None:
        """Device memory of each process that holds some, by id; `None` where the driver does not list them."""
        listed = self.ask("amdsmi_get_gpu_process_list")
        return {int(one["pid"]): _memory(one) for one in listed} if isinstance(listed, list) else None

    def holds(self, pid: int) -> bool:
        """Whether the driver shows a process of the tree below `pid` on it."""
        return any(pid in ancestors(one) for one in self.processes or ())

    @property
    def shared(self) -> str | None:
        """Why its energy counter is that of other devices of HIP's as well; `None` where it is its own."""
        if self.partition is not None and self.partition not in WHOLE:
            return f"partitioned ({self.partition})"
        return "one of two dies" if any(name in self.name for name in TWO_DIES) else None


def is_amd(uuid: str) -> bool:
    """Whether a device's UUID is that of an AMD GPU."""
    return uuid != "cpu" and not uuid.startswith(NVIDIA_PREFIXES)


def no_driver(smi: Any, problem: Exception) -> bool:
    """Whether an error of the library says that there is nothing to ask, rather than that it failed."""
    return getattr(problem, "err_code", None) in [getattr(smi.amdsmi_wrapper, name, None) for name in NO_DRIVER]


def library() -> Any:
    """The package `amdsmi`. Raises one of `UNLOADABLE`."""
    # Without its shared library amdsmi prints to standard output, and then fails with one of several errors.
    with redirect_stdout(io.StringIO()):
        return import_module("amdsmi")


@contextmanager
def all_gpus() -> Iterator[list[AmdGpu]]:
    """Every AMD GPU in HIP's order, for the length of the block; `AmdSmiException` where the driver does not answer."""
    smi = library()
    smi.amdsmi_init()
    try:
        yield found(smi)
    finally:
        with suppress(smi.AmdSmiException):
            smi.amdsmi_shut_down()


@contextmanager
def answering(uuids: Sequence[str] | None = None) -> Iterator[list[AmdGpu]]:
    """Those of the GPUs that answer, for the length of the block; none without `amdsmi`, or where its driver fails."""
    gpus: list[AmdGpu] = []
    with ExitStack() as stack:
        with suppress(*UNLOADABLE):
            smi = library()
            with suppress(smi.AmdSmiException):
                gpus = stack.enter_context(all_gpus())
        yield [gpu for gpu in gpus if uuids is None or gpu.uuid in uuids]


def found(smi: Any) -> list[AmdGpu]:
    """Every GPU of an initialised library in HIP's order, which is not the library's own."""
    gpus = [_gpu(smi, handle) for handle in smi.amdsmi_get_processor_handles()]
    return sorted(gpus, key=lambda gpu: (gpu.hip_index is None, gpu.hip_index))


def ask(smi: Any, name: str, *arguments: object) -> Any:
    """A function's answer; `None` where this library, driver or device does not have it."""
    try:
        return getattr(smi, name)(*arguments)
    except (smi.AmdSmiException, AttributeError):
        return None


def _gpu(smi: Any, handle: object) -> AmdGpu:
    names = ask(smi, "amdsmi_get_gpu_enumeration_info", handle)
    index = names.get("hip_id") if isinstance(names, Mapping) else None
    partition = ask(smi, "amdsmi_get_gpu_compute_partition", handle)
    return AmdGpu(
        smi,
        handle,
        str(smi.amdsmi_get_gpu_device_uuid(handle)),
        index if isinstance(index, int) else None,
        _text(names, "hip_uuid") or "",
        str(partition) if partition is not None else None,
    )


def _memory(process: Mapping[str, Any]) -> int | None:
    usage = process.get("memory_usage")
    held = usage.get("vram_mem") if isinstance(usage, Mapping) else None
    return held if isinstance(held, int) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _text(answer: object, field: str) -> str | None:
    value = answer.get(field) if isinstance(answer, Mapping) else None
    return str(value) if value not in (None, "", "N/A") else None
