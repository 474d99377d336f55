"""What a rule is: a check of settings that cannot run together.

`rules` and `question_rules` declare rules, `points` asks them. A rule must name every setting that it reads, because a
sweep evaluates it once per combination of those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_llem.study.canonical import Get


@dataclass(frozen=True)
class Rule:
    """A check that reads `paths` and says why they cannot run together; with `engine` it is for that engine alone."""

    paths: tuple[str, ...]
    check: Callable[[Get], str | None]
    engine: str | None = None


def refused(text: str, fix: str) -> str:
    """What a check says: what is wrong, and in parentheses what to change."""
    return f"{text} ({fix})"
