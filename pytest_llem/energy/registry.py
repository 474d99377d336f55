"""The meters by name; only the chosen one is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from pytest_llem.energy.protocol import Meter, MeterRequest
from pytest_llem.errors import MeterError

SHIPPED = {
    "nvml": "pytest_llem.energy.nvml_meter:NvmlMeter",
    "rapl": "pytest_llem.energy.rapl_meter:RaplMeter",
    "amdsmi": "pytest_llem.energy.amdsmi_meter:AmdSmiMeter",
    "zeus": "pytest_llem.energy.zeus_meter:ZeusMeter",
    "codecarbon": "pytest_llem.energy.codecarbon_meter:CodeCarbonMeter",
    "estimate": "pytest_llem.energy.cpu_estimate_meter:EstimateMeter",
}
ENTRY_POINT_GROUP = "pytest_llem.meters"

MeterFactory = Callable[[MeterRequest], Meter]


@dataclass(frozen=True)
class MeterStatus:
    """Whether a meter works on this machine; `message` and `fix` say why not and what would help."""

    name: str
    available: bool
    message: str
    fix: str | None = None


def names() -> tuple[str, ...]:
    """The shipped meters, then those that other packages register."""
    registered = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return tuple(SHIPPED) + tuple(sorted(registered - set(SHIPPED)))


def open_named(setup: MeterRequest) -> Meter | None:
    """The meter that the settings name; see `pytest_llem.energy.open_meter`."""
    name = setup.settings.name
    if name == "none":
        return None
    if name == "auto":
        name = _automatic(setup)
    factory = _factory(name)
    obstacle = _obstacle(factory)
    if obstacle is not None:
        raise obstacle
    return factory(setup)


def statuses() -> tuple[MeterStatus, ...]:
    """The status of every known meter."""
    found: list[MeterStatus] = []
    for name in names():
        obstacle = _obstacle(_factory(name))
        if obstacle is None:
            found.append(MeterStatus(name, True, "works here"))
        else:
            found.append(MeterStatus(name, False, obstacle.message, obstacle.fix))
    return tuple(found)


def _automatic(setup: MeterRequest) -> str:
    if setup.devices.kind == "cuda":
        return "nvml"
    return "rapl" if _obstacle(_factory("rapl")) is None else "estimate"


def _factory(name: str) -> MeterFactory:
    target = SHIPPED.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return cast("MeterFactory", getattr(import_module(module), attribute))
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return cast("MeterFactory", point.load())
    raise MeterError(
        f"unknown meter {name!r}",
        fix=f"use one of: auto, none, {', '.join(names())}",
        details={"meter": name},
    )


def _obstacle(factory: MeterFactory) -> MeterError | None:
    check = cast("Callable[[], MeterError | None] | None", getattr(factory, "obstacle", None))
    return check() if check is not None else None
