"""The engines that a study may name, and the declarations that other packages register for their sections.

The loader asks it; an engine of another package appears here through its entry points alone.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from pytest_llem import engines
from pytest_llem.errors import SettingsError

ENGINE_SECTIONS = tuple(engines.shipped_engines())
"""The engines whose sections the schema describes."""
SETTINGS_GROUP = "pytest_llem.engine_settings"
"""Entry points of other packages: an engine's name, and the dataclass or pydantic model of its section."""


@cache
def engine_names() -> tuple[str, ...]:
    """The engines of the schema, and those that other packages register."""
    return engines.engine_names()


@cache
def settings_model(engine: str) -> type | None:
    """What another package declares its engine's section with; without it, the section may hold anything.

    Raises `SettingsError` for what cannot be imported, or is neither a pydantic model nor a dataclass.
    """
    from pytest_llem.study.declared import is_section

    for point in entry_points(group=SETTINGS_GROUP, name=engine):
        try:
            model = point.load()
        except (ImportError, AttributeError) as problem:
            raise SettingsError(
                f"the settings of engine {engine!r} cannot be imported from {point.value}: {problem}",
                fix="correct the package that registers them, or uninstall it",
            ) from problem
        if not (isinstance(model, type) and is_section(model)):
            raise SettingsError(
                f"the settings of engine {engine!r}, {point.value}, are no pydantic model",
                fix="register a subclass of pytest_llem.study.sections.section.Section",
            )
        return model
    return None
