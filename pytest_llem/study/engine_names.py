"""Which engines a study may name."""

from __future__ import annotations

from functools import cache

from pytest_llem.study.fields import ENGINE_SECTIONS


@cache
def engine_names() -> tuple[str, ...]:
    """The engines of the schema, and those that other packages register."""
    from pytest_llem.engines import known_engines

    return ENGINE_SECTIONS + tuple(name for name in known_engines() if name not in ENGINE_SECTIONS)
