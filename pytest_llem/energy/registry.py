"""The energy meters by name, shipped or registered by other packages.

The worker, the container runner and `llem_meter` open meters here; `llem doctor`, options and studies list them. Names
stand in studies and must stay; a new meter is an entry in `SHIPPED` or an entry point (`pytest_llem.meters`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

from pytest_llem.errors import MeterError
from pytest_llem.job.config import AskedKind, GpuKind
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.registered import registered

if TYPE_CHECKING:
    from pytest_llem.energy.protocol import Meter, ServerTree

SHIPPED = {
    "nvml": "pytest_llem.energy.gpu_meter:NvmlMeter",
    "rapl": "pytest_llem.energy.rapl_meter:RaplMeter",
    "amdsmi": "pytest_llem.energy.gpu_meter:AmdSmiMeter",
    "zeus": "pytest_llem.energy.zeus_meter:ZeusMeter",
    "codecarbon": "pytest_llem.energy.codecarbon_meter:CodeCarbonMeter",
    "estimate": "pytest_llem.energy.cpu_estimate_meter:EstimateMeter",
}
OF_GPUS: Mapping[str, tuple[GpuKind, str]] = {"nvml": ("cuda", "NVIDIA"), "amdsmi": ("rocm", "AMD")}
"""Meters that read nothing but GPUs: of which kind, and whose."""
ENTRY_POINT_GROUP = "pytest_llem.meters"


def known_meters() -> tuple[str, ...]:
    """Names of all meters, shipped then registered, whether they work here or not (without `auto` and `none`).

    Raises `SettingsError` for a package's meter whose name is taken.
    """
    return (*SHIPPED, *_registered())


def open_meter(
    settings: MeterSettings, devices: DeviceSet, out_dir: Path, server: ServerTree | None = None
) -> Meter | None:
    """The meter that the settings name, not yet started; `None` for `none`.

    `auto` takes `nvml` for CUDA devices, `amdsmi` for ROCm devices, else `rapl` where its counters are readable, else
    `estimate`. The processes of `server` count as measured. Raises `MeterError` with the remedy for a name that is
    unknown or cannot work here.
    """
    if settings.name == "none":
        return None
    meter = meter_class(settings.name, devices)
    from pytest_llem.energy.protocol import MeterRequest

    with _named(settings.name):
        obstacle = meter.obstacle()
        opened = meter(MeterRequest(settings, devices, out_dir, server)) if obstacle is None else None
    if obstacle is not None:
        raise obstacle
    return opened


def meter_class(name: str, devices: DeviceSet) -> type[Meter]:
    """The meter of that name, `auto` included. Raises `MeterError` for an unknown name."""
    if name != "auto":
        return _load(name)
    if devices.on_gpu:
        return _load("nvml" if devices.kind == "cuda" else "amdsmi")
    rapl = _load("rapl")
    return rapl if rapl.obstacle() is None else _load("estimate")


def require_meter_of(kind: AskedKind, name: str) -> None:
    """Raise `MeterError` for a meter of GPUs where other devices are asked for: nothing computes on what it counts."""
    read, maker = OF_GPUS.get(name, (kind, ""))
    if kind not in ("auto", read):
        raise MeterError(
            f"device.kind {kind} cannot be combined with the meter {name}, which reads {maker} GPUs",
            fix="leave the meter to be chosen (auto), or name " + ("rapl or estimate" if kind == "cpu" else "theirs"),
            details={"meter": name},
        )


def obstacles() -> dict[str, MeterError | None]:
    """Why each known meter cannot be used on this machine; `None` for those that can."""
    return {name: _obstacle(name) for name in known_meters()}


def _obstacle(name: str) -> MeterError | None:
    try:
        with _named(name):
            return _load(name).obstacle()
    except MeterError as problem:
        return problem


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever a package's meter raises, as one error that names it."""
    try:
        yield
    except MeterError:
        raise
    except Exception as problem:
        raise MeterError(
            f"the meter {name!r} cannot be used: {type(problem).__name__}: {problem}",
            fix="mend or remove the package that registers it, or name another with --llem-meter",
            details={"meter": name},
        ) from problem


def _registered() -> dict[str, EntryPoint]:
    return registered(ENTRY_POINT_GROUP, "meter", ("auto", "none", *SHIPPED))


def _load(name: str) -> type[Meter]:
    target = SHIPPED.get(name)
    if target is not None:
        return cast("type[Meter]", resolve_name(target))
    point = _registered().get(name)
    if point is not None:
        from pytest_llem.energy.protocol import Meter

        with _named(name):
            meter: type = point.load()
            # A class that does not derive from `Meter` gets its default answers.
            return meter if issubclass(meter, Meter) else type(meter.__name__, (meter, Meter), {})
    raise MeterError(
        f"unknown meter {name!r}",
        fix=f"use one of: auto, none, {', '.join(known_meters())}; workers find what is installed or on PYTHONPATH",
        details={"meter": name},
    )
