"""Which devices a cycle may use: the visible GPUs, or the CPU.

All that leases, plans or counts workers asks here: session, runners, a cluster's nodes, `llem_meter`. NVML decides what
exists, `CUDA_VISIBLE_DEVICES` what is visible; a driver that does not work must be an error, never a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pytest_llem.engines import engine_info
from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.job.config import DeviceKind, ExperimentConfig
from pytest_llem.job.job import DeviceSet

if TYPE_CHECKING:
    from pytest_llem.study import Experiment, Study

HIDING = ("", "-1", "NoDevFiles")
PARALLEL_SIZES = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "tp_size", "pp_size", "dp_size",
)  # fmt: skip
"""Settings of an engine whose product is how many accelerators it takes."""


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


@dataclass(frozen=True)
class Demand:
    """What a cycle asks for: `count` of the `candidates` (GPUs in PCI order, or `cpu`), `preferred` ones first."""

    kind: DeviceKind
    candidates: tuple[str, ...]
    count: int
    preferred: tuple[str, ...] = ()

    @staticmethod
    def exactly(devices: DeviceSet) -> Demand:
        """All of these devices."""
        names = devices.uuids or (devices.kind,)
        return Demand(devices.kind, names, len(names))

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
    gpus = gpu_uuids() if config.device.gpus else ()
    named: dict[str, None] = {}
    for name in map(str, config.device.gpus):
        if name.isdigit() and int(name) < len(gpus):
            named[gpus[int(name)]] = None
        elif name.startswith("MIG-"):
            named[name] = None
        elif len(matches := [uuid for uuid in gpus if uuid.startswith(name)]) == 1:
            named[matches[0]] = None
        else:
            raise _no_such_gpu(f"device.gpus: {name}", name, gpus)
    return tuple(sorted(named, key=lambda uuid: gpus.index(uuid) if uuid in gpus else len(gpus)))


def _no_such_gpu(where: str, name: str, gpus: Sequence[str]) -> DeviceError:
    there = ", ".join(f"{index} ({uuid})" for index, uuid in enumerate(gpus)) or "none"
    one = "one " if any(uuid.startswith(name) for uuid in gpus) else ""
    return DeviceError(f"{where}: there is no {one}GPU {name!r}", fix=f"name some of: {there}")


def serves_already(config: ExperimentConfig) -> bool:
    """Whether a configuration measures a server that was there before."""
    return engine_info(config.engine).serves_over_http and config.settings.get("base_url") is not None


def _gpus_of_server(config: ExperimentConfig) -> tuple[str, ...]:
    """The GPUs, visible or not, on which the driver shows a process of the server that runs already."""
    from pytest_llem.worker.servers import running_server  # needs what only measuring needs

    tree = running_server(str(config.settings["base_url"])).tree
    if tree is None or tree.pid is None or not gpu_uuids():
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
    running = serves_already(config)
    gpus = named_gpus(config) or (_gpus_of_server(config) if running else ())
    if gpus and running:
        return Demand("cuda", gpus, len(gpus))
    gpus = gpus or visible_gpus()
    if not gpus:
        return Demand("cpu", ("cpu",), 1)
    needed = devices_needed(config)
    if needed > len(gpus):
        raise DeviceError(
            f"the experiment needs {needed} GPUs, and {len(gpus)} are visible or named",
            fix="lower its parallel sizes, or make more GPUs visible (CUDA_VISIBLE_DEVICES, device.gpus)",
            details={"needed": needed, "visible": len(gpus)},
        )
    return Demand("cuda", gpus, needed)


def visible_devices(config: ExperimentConfig) -> DeviceSet:
    """The devices that one cycle gets when all visible ones are free. `DeviceError` as `demanded_devices`."""
    return demanded_devices(config).first()


def device_memory_bytes() -> int | None:
    """Memory of the smallest visible GPU, or of this machine where there is none; `None` where it does not say."""
    gpus = visible_gpus()
    if not gpus:
        import psutil

        return int(psutil.virtual_memory().total)
    import pynvml

    from pytest_llem.energy.nvml_devices import nvml

    try:
        with nvml():
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in gpus]
            return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
    except pynvml.NVMLError:
        return None


def experiments_beyond(study: Study, elsewhere: Collection[str] = ()) -> dict[str, str]:
    """Experiments (by id) whose parallel sizes need more GPUs than are visible, with the reason to skip them.

    Not for engines `elsewhere`, nor without any GPU, as some engines run their parallel parts on the CPU. Raises
    `DeviceError`, at the place of the setting, unless the study skips what cannot run.
    """
    there = len(visible_gpus())
    if not there:
        return {}
    wanted: dict[str, tuple[int, str]] = {}
    for experiment in study.experiments:
        if experiment.engine in elsewhere:
            continue
        sizes = _parallel_sizes(experiment)
        needed = parallel_product(sizes.get)
        if needed > there:
            wanted[experiment.id] = needed, f"{experiment.engine}.{next(iter(sizes))}"
    if wanted and not study.skips_invalid:
        first, (needed, path) = next(iter(wanted.items()))
        more = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
        raise DeviceError(
            f"{study.locate(path)}: {first}{more}: {path} needs {needed} GPUs, {there} are visible",
            fix="lower it, make more GPUs visible (CUDA_VISIBLE_DEVICES), or set on_invalid: skip",
            details={"needed": max(needed for needed, _ in wanted.values()), "visible": there},
        )
    return {id: f"{path} needs {needed} GPUs, {there} are visible" for id, (needed, path) in wanted.items()}


def gpus_needed(experiment: Experiment) -> int:
    """How many GPUs an experiment asks for where there are any; cheaper than its whole configuration."""
    return parallel_product(_parallel_sizes(experiment).get)


def _parallel_sizes(experiment: Experiment) -> dict[str, JsonValue]:
    settings, engine = experiment.flat_settings, experiment.engine
    return {name: settings[path] for name in PARALLEL_SIZES if (path := f"{engine}.{name}") in settings}
