"""What a rule over combinations of settings is; the rules themselves are in `rules` and `server_rules`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_llem.study.canonical import Get


@dataclass(frozen=True)
class Refusal:
    """Why a combination cannot run, and what to change."""

    text: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """A check over `paths`; with `engine` it applies to that engine's experiments alone."""

    paths: tuple[str, ...]
    check: Callable[[Get], Refusal | None]
    engine: str | None = None
