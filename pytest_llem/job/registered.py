"""What other packages add under entry points: found by name, imported when used, with one error for what is broken.

Engines, meters, metrics, data sets and exports are found here. Shipped names keep their meaning: no package takes one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from pytest_llem.errors import LlemError, SettingsError


def registered(group: str, kind: str, shipped: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points of a group by name, none imported. `SettingsError` for a name that is there already."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        holder = package(found[point.name]) if point.name in found else "pytest-llem itself"
        if point.name in found or point.name in shipped:
            raise SettingsError(
                f"{package(point)} registers the {kind} {point.name!r}, which {holder} has already",
                fix=f"give it another name in {group} of its pyproject.toml, or uninstall the package",
                details={kind: point.name},
            )
        found[point.name] = point
    return found


def load(point: EntryPoint, kind: str) -> object:
    """What an entry point names, imported. Raises `SettingsError` where that is not possible."""
    with blamed(point, kind):
        return point.load()


@contextmanager
def blamed(point: EntryPoint, kind: str) -> Iterator[None]:
    """Whatever a package's code raises, as one error that names the package; this project's own errors stay."""
    try:
        yield
    except LlemError:
        raise
    except Exception as problem:
        raise unusable(point, kind, f"{type(problem).__name__}: {problem}") from problem


def unusable(point: EntryPoint, kind: str, why: str) -> SettingsError:
    """The error of what a package registers and cannot be used."""
    return SettingsError(
        f"the {kind} {point.name!r} of {package(point)} cannot be used: {why}",
        fix=f"correct {point.value}, or uninstall the package",
        details={kind: point.name},
    )


def package(point: EntryPoint) -> str:
    """The package that registers an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else f"the package of {point.module}"
