"""Meters, the sampler process, and integration with uncertainty.

Importing this package is cheap: only the chosen meter's module is loaded, when it is opened.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llem.energy.protocol import Meter as Meter
    from pytest_llem.energy.protocol import ServerTree
    from pytest_llem.energy.readings import Sample as Sample
    from pytest_llem.energy.readings import read_samples as read_samples
    from pytest_llem.energy.registry import MeterStatus
    from pytest_llem.job.job import DeviceSet, MeterSettings


def open_meter(
    settings: MeterSettings, devices: DeviceSet, out_dir: Path, server: ServerTree | None = None
) -> Meter | None:
    """The meter that the settings ask for, not yet started; `None` when they ask for none.

    `auto` takes `nvml` for CUDA devices, else `rapl` where its counters are readable, else `estimate`. A `server` works
    for this process: what it uses belongs to the measurement. Raises `MeterError` with the remedy for a name that is
    unknown or cannot work here.
    """
    from pytest_llem.energy.protocol import MeterRequest
    from pytest_llem.energy.registry import open_named

    return open_named(MeterRequest(settings, devices, out_dir, server))


def known_meters() -> tuple[str, ...]:
    """Names of all meters, shipped and registered, whether they work here or not (without `auto` and `none`)."""
    from pytest_llem.energy.registry import names

    return names()


def available_meters() -> tuple[MeterStatus, ...]:
    """Every known meter with whether it works on this machine and, where not, why and what would help."""
    from pytest_llem.energy.registry import statuses

    return statuses()


def __getattr__(name: str) -> object:
    if name in ("Sample", "read_samples"):
        return getattr(import_module("pytest_llem.energy.readings"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
