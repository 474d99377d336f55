"""The engines by name: what is known of each, and how one is opened.

The pytest side and workers ask here. No engine may be imported before it is opened: most are installed elsewhere. An
engine of this package is a folder whose `__init__.py` holds `INFO`; others register a record or class as entry point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

from pytest_llem.engines.info import EngineInfo
from pytest_llem.errors import EngineError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.registered import registered

if TYPE_CHECKING:
    from pytest_llem.engines.protocol import Engine

ENTRY_POINT_GROUP = "pytest_llem.engines"


@cache
def shipped_engines() -> Mapping[str, EngineInfo]:
    """The engines of this package by name, in the order of the published schema."""
    folders = [path.parent.name for path in Path(__file__).parent.glob("*/engine.py")]
    infos: list[EngineInfo] = [import_module(f"{__name__}.{folder}").INFO for folder in folders]
    return {info.name: info for info in sorted(infos, key=lambda info: info.order)}


@cache
def engines() -> Mapping[str, EngineInfo]:
    """The engines of this package, then those of other packages, by name; `SettingsError` where one is taken."""
    shipped = shipped_engines()
    points = registered(ENTRY_POINT_GROUP, "engine", shipped)
    return {**shipped, **{name: _registered(point) for name, point in points.items()}}


def engine_names() -> tuple[str, ...]:
    """Names of all engines that a study may use here."""
    return tuple(engines())


def engine_info(name: str) -> EngineInfo:
    """What is known of an engine. Of one that is registered only elsewhere, such as in an image, it is the name."""
    return engines().get(name) or EngineInfo(name)


def starts_server(config: ExperimentConfig) -> bool:
    """Whether a cycle of this configuration needs a server that is started for it."""
    return any(config.settings.get(name) for name in engine_info(config.engine).starts_server_with)


def open_engine(name: str) -> Engine:
    """A new, unprepared engine; `EngineError` for a name that nobody registered."""
    from pytest_llem.engines.protocol import Engine

    target = engine_info(name).engine
    if not target:
        fix = f"use one of: {', '.join(engine_names())}; workers find what is installed or on PYTHONPATH"
        raise EngineError(f"unknown engine {name!r}", fix=fix, details={"engine": name})
    engine = resolve_name(target)
    if isinstance(engine, type) and not issubclass(engine, Engine):
        engine = type(engine.__name__, (engine, Engine), {})
    return cast("Engine", engine())


def _registered(point: EntryPoint) -> EngineInfo:
    """The record that an entry point names; of a class, which may import much, no more than where it lies."""
    if point.attr == "INFO":
        try:
            return replace(cast("EngineInfo", point.load()), name=point.name)
        except (ImportError, AttributeError):
            # Opening the engine says so: a package that is broken must not stop studies of other engines.
            pass
    return EngineInfo(point.name, engine=f"{point.module}:{point.attr}")
