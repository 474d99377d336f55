"""Problems of a study file, each with its position and a remedy, and suggestions for misspelt names.

`study` uses it. It must import nothing that loading needs, because xdist workers get studies with locations.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_llem.errors import JsonValue, StudyError

# Chosen: more than a terminal page of problems is read from the top after a fix anyway.
MAX_SHOWN = 20
# Chosen: five times what is shown; to place each and find the nearest name takes milliseconds.
MAX_PROBLEMS = 100


@dataclass(frozen=True, order=True)
class Location:
    """A position in a file; line and column count from 1. Sorted by file, then position."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Locate(Protocol):
    """Finds where a study writes a setting (dotted path), with that value where one is given, else the beginning."""

    def __call__(self, setting: str, value: JsonValue = None, /) -> Location:
        """The position of the value where one is given, else that of the key."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its position in the file, what is wrong, and what to write instead."""

    location: Location
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.location}: {self.text}" + (f" ({self.fix})" if self.fix else "")


class UnreadableError(Exception):
    """A document that cannot be read at all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(str(problems[0]))
        self.problems = tuple(problems)


def unreadable(location: Location, text: str, fix: str | None = None) -> UnreadableError:
    """The error for a document with one problem."""
    return UnreadableError([Problem(location, text, fix)])


def study_error(problems: Iterable[Problem], main_file: Path | str) -> StudyError:
    """One error for all problems of a study: those of `main_file` first, each list by position."""
    main = str(main_file)
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.location.file != main, p.location))
    shown = ordered[:MAX_SHOWN]
    lines = [str(problem) for problem in shown]
    if len(ordered) > MAX_SHOWN:
        lines.append(f"... and {len(ordered) - MAX_SHOWN} more problems")
    facts: list[JsonValue] = [
        {**vars(problem.location), "message": problem.text, "fix": problem.fix} for problem in shown
    ]
    return StudyError("\n".join(lines), details={"problems": facts, "count": len(ordered)})


def nearest(word: str, names: Iterable[str]) -> tuple[float, str] | None:
    """The name most like `word` with their likeness (from 0.6), or `None` when none is like it.

    Of names alike, one that goes on where `word` ends is likelier meant: `answer_column` for `answer`.
    """
    best: tuple[float, str] | None = None
    matcher = difflib.SequenceMatcher(b=word.lower().replace("-", "_"))
    for name in names:
        matcher.set_seq1(name.lower())
        if matcher.real_quick_ratio() >= 0.6 and matcher.quick_ratio() >= 0.6:
            likeness = matcher.ratio() + 0.1 * name.lower().startswith(f"{word.lower()}_")
            if likeness >= 0.6 and (best is None or likeness > best[0]):
                best = (likeness, name)
    return best


def suggest(word: str, names: Iterable[str]) -> str | None:
    """`did you mean 'X'?` for the name nearest to `word`, or `None` when none is near."""
    near = nearest(word, names)
    return f"did you mean {near[1]!r}?" if near else None


def suggest_or_list(word: str, names: Iterable[str]) -> str:
    """The nearest name, else up to twelve of the names."""
    candidates = list(names)
    more = ", ..." if len(candidates) > 12 else ""
    return suggest(word, candidates) or f"use one of: {', '.join(candidates[:12])}{more}"
