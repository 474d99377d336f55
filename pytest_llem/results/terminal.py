"""Text for a terminal: aligned tables (also as Markdown), and a progress count while a command reads many files.

The verbs of `llem`, the report and the session's summary use it. Free to change: nobody may parse terminal output.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
Row = Sequence[str]
SHOW_AFTER_S = 0.5
"""Chosen: a command that ends sooner needs no count."""
INTERVAL_S = 0.1
"""Chosen: ten updates a second read as movement and cost nothing."""
CLEAR = "\r\x1b[K"
"""Carriage return and erase to the end of the line (ECMA-48, EL)."""


def table(head: Row, body: Sequence[Row], *, left: int = 1) -> list[str]:
    """Aligned lines, head first; the first `left` columns are set to the left, the others to the right."""
    rows = [head, *body]
    aligned = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        aligned.append([cell.ljust(width) if number < left else cell.rjust(width) for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]


def markdown_table(head: Row, body: Sequence[Row], *, left: int = 1) -> list[str]:
    """The same as GitHub-flavoured Markdown, with pipes escaped."""
    marks = [":---" if column < left else "---:" for column in range(len(head))]
    rows = [head, marks, *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


class ShowProgress(Protocol):
    """Passes items through one by one, and may show how many are done."""

    def __call__(self, items: Sequence[T], doing: str) -> Iterable[T]:
        """The items, unchanged; `doing` names the work on them."""
        ...


def silent(items: Sequence[T], doing: str) -> Iterable[T]:
    """The items, without any output."""
    del doing
    return items


def counted(items: Sequence[T], doing: str) -> Iterator[T]:
    """The items, with a count on stderr where that is a terminal, once they take longer than half a second."""
    stream = sys.stderr
    if not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield from items
        return
    due = time.monotonic() + SHOW_AFTER_S
    shown = False
    try:
        for number, item in enumerate(items, 1):
            now = time.monotonic()
            if now >= due:
                stream.write(f"{CLEAR}{doing} {number}/{len(items)}")
                stream.flush()
                shown, due = True, now + INTERVAL_S
            yield item
    finally:
        if shown:
            stream.write(CLEAR)
            stream.flush()
