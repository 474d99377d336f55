"""Problems of a study file, each with its position and a remedy, and suggestions for misspelt names.

Imports nothing that loading a study needs, because a loaded study holds locations and crosses to xdist workers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import StudyError

# Chosen: more than a terminal page of problems is read from the top after a fix anyway.
MAX_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its position in the file, what is wrong, and what to write instead."""

    location: Location
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.location}: {self.text}" + (f" ({self.fix})" if self.fix else "")


def study_error(problems: Iterable[Problem], main_file: Path | str) -> StudyError:
    """One error for all problems of a study: those of `main_file` first, each list by position."""
    main = str(main_file)
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.location.file != main, p.location))
    shown = [str(problem) for problem in ordered[:MAX_SHOWN]]
    if len(ordered) > MAX_SHOWN:
        shown.append(f"... and {len(ordered) - MAX_SHOWN} more problems")
    return StudyError(
        "\n".join(shown),
        details={
            "problems": [
                {
                    "file": problem.location.file,
                    "line": problem.location.line,
                    "column": problem.location.column,
                    "message": problem.text,
                    "fix": problem.fix,
                }
                for problem in ordered[:MAX_SHOWN]
            ],
            "count": len(ordered),
        },
    )


def nearest(word: str, known: Iterable[str]) -> tuple[float, str] | None:
    """The known word most like `word` with their likeness (0.6 to 1), or `None` when none is like it."""
    plain = word.lower().replace("-", "_")
    best: tuple[float, str] | None = None
    matcher = difflib.SequenceMatcher(b=plain)
    for candidate in known:
        matcher.set_seq1(candidate.lower())
        if matcher.real_quick_ratio() >= 0.6 and matcher.quick_ratio() >= 0.6:
            likeness = matcher.ratio()
            if likeness >= 0.6 and (best is None or likeness > best[0]):
                best = (likeness, candidate)
    return best


def suggest(word: str, known: Iterable[str]) -> str | None:
    """`did you mean 'X'?` for the known word nearest to `word`, or `None` when none is near."""
    found = nearest(word, known)
    return f"did you mean {found[1]!r}?" if found else None


def suggest_or_list(word: str, known: Iterable[str], limit: int = 12) -> str:
    """The nearest known word, else the known words themselves."""
    candidates = list(known)
    found = suggest(word, candidates)
    if found:
        return found
    more = ", ..." if len(candidates) > limit else ""
    return f"use one of: {', '.join(candidates[:limit])}{more}"


@dataclass(frozen=True, order=True)
class Location:
    """A position in a file; line and column count from 1. Sorted by file, then position."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"
