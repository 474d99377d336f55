"""Which devices a cycle may use: visible GPUs of the kind that its study asks for, or the CPU.

All that leases, plans or counts workers asks here: session, runners, a cluster's nodes, `llem_meter`. NVML decides what
NVIDIA GPUs exist, `CUDA_VISIBLE_DEVICES` what is visible, and `amd_devices` says both of AMD's; a driver that does not
work must be an error, never a CPU. What a study asks for and this machine lacks, `device_checks` says at collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from pytest_llem.engines import engine_info
from pytest_llem.engines.info import PARALLEL_SIZES, parallel_product
from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.job.config import AskedKind, DeviceKind, ExperimentConfig, GpuKind
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine import amd_devices

if TYPE_CHECKING:
    from pytest_llem.study import Experiment

HIDING = ("", "-1", "NoDevFiles")
KIND = "device.kind"
NONE_THERE = "this machine has none that works, `llem doctor` says why; leave the names out, or write device.kind: cpu"
NO_GPU_FIX = "make one visible (%s, `llem doctor` says which there are), or write device.kind: cpu"
CUDA = "CUDA_VISIBLE_DEVICES"
VARIABLE_OF: Mapping[DeviceKind, str] = {"cpu": CUDA, "cuda": CUDA, "rocm": "HIP_VISIBLE_DEVICES"}
"""Which variable leaves GPUs visible; where the CPU is used, what would have left some."""


@lru_cache(maxsize=1)
def gpu_uuids() -> tuple[str, ...]:
    """UUIDs in PCI order, none without a driver; `DeviceError` if it fails: a CPU run would be another experiment."""
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
    gpus = gpu_uuids()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not gpus:
        return gpus
    visible: list[str] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name in HIDING:
            break
        if name.isdigit() and int(name) < len(gpus):
            visible.append(gpus[int(name)])
        elif name.startswith("MIG-"):
            visible.append(name)
        elif matches := [uuid for uuid in gpus if uuid.startswith(name)]:
            visible.append(matches[0])
        else:
            raise _no_such_gpu(f"CUDA_VISIBLE_DEVICES={chosen}", name, gpus)
    if len(set(visible)) < len(visible):
        raise DeviceError(f"CUDA_VISIBLE_DEVICES={chosen} names a GPU twice", fix="name each once")
    return tuple(visible)


def _visible_amd_gpus() -> tuple[str, ...]:
    nvidia: tuple[str, ...] = ()
    with suppress(DeviceError):  # AMD's may be asked for where NVIDIA's driver does not work
        nvidia = gpu_uuids()
    return amd_devices.visible_gpus(nvidia=bool(nvidia))


GPUS_OF: Mapping[GpuKind, Callable[[], tuple[str, ...]]] = {"cuda": visible_gpus, "rocm": _visible_amd_gpus}
"""The visible GPUs of each kind; `auto` takes the first kind that has some."""


def visible_of(kind: AskedKind) -> tuple[DeviceKind, tuple[str, ...]]:
    """The kind of device that `device.kind` comes to here, and its visible GPUs; `cpu` without any.

    `DeviceError` for a kind of which there are none, and where a driver does not work, unless the CPU is asked for.
    """
    if kind == "cpu":
        return "cpu", ()
    for gpu_kind, of_kind in GPUS_OF.items():
        if kind in ("auto", gpu_kind) and (gpus := of_kind()):
            return gpu_kind, gpus
    if kind == "auto":
        return "cpu", ()
    package = "; AMD's are found through ROCm's amdsmi (pip install 'pytest-llem[amd]')" if kind == "rocm" else ""
    fix = NO_GPU_FIX % VARIABLE_OF[kind] + package
    maker = "AMD" if kind == "rocm" else "NVIDIA"
    raise DeviceError(f"device.kind {kind}: no {maker} GPU is visible", fix=fix)


def visible_if_any(kind: AskedKind) -> tuple[str, ...]:
    """The visible GPUs of a kind; none where there are none of it, which collection says.

    `DeviceError` where `auto` meets a driver that does not work.
    """
    try:
        return visible_of(kind)[1]
    except DeviceError:
        if kind == "auto":
            raise
        return ()


def metered_gpus(meter: str, asked: AskedKind) -> tuple[str, ...]:
    """What a meter that a study names reads: all visible GPUs of its maker, else all; none for the CPU."""
    if meter == "auto" or asked == "cpu":
        return ()
    if meter == "amdsmi":
        return _visible_amd_gpus() or amd_devices.gpu_uuids()
    return visible_gpus() or gpu_uuids()


def devices_needed(config: ExperimentConfig) -> int:
    """How many GPUs an experiment asks for: `device.gpus` where that is a number, else what its parallel sizes need."""
    count = config.device.gpus
    return count if isinstance(count, int) else parallel_product(config.settings.get)


@dataclass(frozen=True)
class Demand:
    """What a cycle asks for: `count` of the `candidates` (GPUs in PCI order, or `cpu`), `preferred` ones first.

    Nobody else may measure on the devices `beside` them meanwhile.
    """

    kind: DeviceKind
    candidates: tuple[str, ...]
    count: int
    preferred: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @staticmethod
    def of_cpu() -> Demand:
        """The CPU, whose cores, caches and energy counters are those of all that runs on the machine.

        So it comes with every GPU: the process that drives one would be part of what is measured.
        """
        gpus: list[str] = []
        for of_maker in (gpu_uuids, amd_devices.gpu_uuids):
            with suppress(DeviceError):  # a driver that does not answer drives nothing
                gpus += of_maker()
        return Demand("cpu", ("cpu",), 1, beside=tuple(gpus))

    def whole(self) -> Demand:
        """What has to be leased for it: all that is beside as well."""
        if not self.beside:
            return self
        return replace(self, candidates=self.candidates + self.beside, count=self.count + len(self.beside), beside=())

    @staticmethod
    def exactly(devices: DeviceSet) -> Demand:
        """All of these devices."""
        if devices.kind == "cpu":
            return Demand.of_cpu()
        return Demand(devices.kind, devices.uuids, len(devices.uuids))

    @property
    def forced(self) -> bool:
        """Whether there is nothing to choose."""
        return self.count == len(self.candidates)

    def in_order_of_preference(self) -> tuple[str, ...]:
        """The candidates, those first that would be taken first if all were free."""
        return (
            *(name for name in self.preferred if name in self.candidates),
            *(name for name in self.candidates if name not in self.preferred),
        )

    def first(self) -> DeviceSet:
        """What is taken when all candidates are free."""
        return self.of(self.in_order_of_preference()[: self.count])

    def of(self, names: Collection[str]) -> DeviceSet:
        """These candidates as a device set, in PCI order."""
        if self.kind == "cpu":
            return DeviceSet("cpu")
        return DeviceSet(self.kind, tuple(name for name in self.candidates if name in names))

    def met_by(self, devices: DeviceSet) -> bool:
        """Whether a device set that is held already is as good as any."""
        names = devices.uuids or (devices.kind,)
        return devices.kind == self.kind and len(names) == self.count and set(names) <= set(self.candidates)


def named_gpus(config: ExperimentConfig) -> tuple[str, ...]:
    """The GPUs that the study names, by UUID; `DeviceError` for one that is not there, or might be another."""
    if config.device.named and gpu_kind(config.device.kind) == "rocm":
        return amd_devices.named_gpus(tuple(map(str, config.device.named)))
    gpus = gpu_uuids() if config.device.named else ()
    named: dict[str, None] = {}
    for name in map(str, config.device.named):
        if name.isdigit() and int(name) < len(gpus):
            named[gpus[int(name)]] = None
        elif name.startswith("MIG-"):
            named[name] = None
        elif len(matches := [uuid for uuid in gpus if uuid.startswith(name)]) == 1:
            named[matches[0]] = None
        else:
            raise _no_such_gpu(f"device.gpus: {name}", name, gpus)
    return tuple(sorted(named, key=lambda uuid: gpus.index(uuid) if uuid in gpus else len(gpus)))


def gpu_kind(asked: AskedKind) -> GpuKind:
    """Whose GPUs a name is one of: AMD's where they are asked for, or this machine has no others."""
    if asked == "auto" and not gpu_uuids() and amd_devices.gpu_uuids():
        return "rocm"
    return "rocm" if asked == "rocm" else "cuda"


def _no_such_gpu(where: str, name: str, gpus: Sequence[str]) -> DeviceError:
    there = ", ".join(f"{index} ({uuid})" for index, uuid in enumerate(gpus))
    one = "one " if any(uuid.startswith(name) for uuid in gpus) else ""
    return DeviceError(f"{where}: there is no {one}GPU {name!r}", fix=f"name some of: {there}" if there else NONE_THERE)


def serves_already(config: ExperimentConfig) -> bool:
    """Whether a configuration measures a server that was there before."""
    return engine_info(config.engine).serves_over_http and config.settings.get("base_url") is not None


def _gpus_of_server(config: ExperimentConfig) -> tuple[str, ...]:
    """The GPUs, visible or not, on which the driver shows a process of the server that runs already."""
    from pytest_llem.worker.servers import running_server  # needs what only measuring needs

    tree = running_server(str(config.settings["base_url"])).tree
    if tree is None or tree.pid is None:
        return ()
    if gpu_kind(config.device.kind) == "rocm":
        return amd_devices.holding(tree.pid)
    if not gpu_uuids():
        return ()
    import pynvml

    from pytest_llem.energy.nvml_devices import holding, nvml

    try:
        with nvml():
            return tuple(gpu.uuid for gpu in holding(tree.pid))
    except pynvml.NVMLError:
        return ()


def demanded_devices(config: ExperimentConfig) -> Demand:
    """As many GPUs as a cycle needs, of those that the study names or the visible ones, or the CPU.

    For a server that runs already all that the study names, or that hold a process of it. `DeviceError` when it needs
    more than there are.
    """
    asked, running = config.device.kind, serves_already(config)
    gpus = named_gpus(config) or (_gpus_of_server(config) if running else ())
    kind: DeviceKind = gpu_kind(asked) if gpus else "cpu"
    if gpus and running:
        return Demand(kind, gpus, len(gpus))
    if not gpus:
        kind, gpus = visible_of(asked)
    if kind == "cpu" and not config.device.gpus:
        return Demand.of_cpu()
    needed = devices_needed(config)
    if needed > len(gpus):
        raise DeviceError(
            f"the experiment needs {needed} GPUs, and {len(gpus)} are visible or named",
            fix=f"lower its parallel sizes, or make more GPUs visible ({VARIABLE_OF[kind]}, device.gpus)",
            details={"needed": needed, "visible": len(gpus)},
        )
    return Demand(kind, gpus, needed)


def visible_devices(config: ExperimentConfig) -> DeviceSet:
    """The devices that one cycle gets when all visible ones are free. `DeviceError` as `demanded_devices`."""
    return demanded_devices(config).first()


def device_memory_bytes(kind: AskedKind = "auto") -> int | None:
    """Memory of the smallest visible GPU, or of this machine for the CPU; `None` where it does not say."""
    found, gpus = visible_of(kind)
    if not gpus:
        import psutil

        return int(psutil.virtual_memory().total)
    if found == "rocm":
        return amd_devices.least_memory_bytes(gpus)
    import pynvml

    from pytest_llem.energy.nvml_devices import nvml

    try:
        with nvml():
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in gpus]
            return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
    except pynvml.NVMLError:
        return None


def asked_kind(experiment: Experiment) -> AskedKind:
    """The `device.kind` of an experiment; cheaper than its whole configuration."""
    kind: AskedKind = experiment.flat_settings.get(KIND, "auto")  # type: ignore[assignment]  # checked when loaded
    return kind


def names_gpus(experiment: Experiment) -> bool:
    """Whether it says which GPUs, which need not be visible; cheaper than its configuration."""
    gpus = experiment.flat_settings.get("device.gpus")
    return bool(gpus) and not isinstance(gpus, int)


def gpus_needed(experiment: Experiment) -> int:
    """How many GPUs an experiment asks for where there are any, none on the CPU; cheaper than its configuration."""
    settings = experiment.flat_settings
    if settings.get(KIND) == "cpu":
        return 0
    count = settings.get("device.gpus")
    return count if isinstance(count, int) else parallel_product(parallel_sizes(experiment).get)


def parallel_sizes(experiment: Experiment) -> dict[str, JsonValue]:
    """The parallel sizes that an experiment sets, by name."""
    settings, engine = experiment.flat_settings, experiment.engine
    return {name: settings[path] for name in PARALLEL_SIZES if (path := f"{engine}.{name}") in settings}
