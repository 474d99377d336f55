"""How far a command has come, for who waits at a terminal; nothing is written anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Protocol, TypeVar

T = TypeVar("T")
PATIENCE_S = 0.5
INTERVAL_S = 0.1
CLEAR = "\r\x1b[K"


class Watch(Protocol):
    """Hands items on, one by one, and may show which of how many is in hand."""

    def __call__(self, items: Sequence[T], doing: str) -> Iterable[T]:
        """The items, unchanged; `doing` says what happens to them."""
        ...


def silent(items: Sequence[T], doing: str) -> Iterable[T]:
    """The items, and not a word."""
    del doing
    return items


def counted(items: Sequence[T], doing: str) -> Iterator[T]:
    """The items, with a count on stderr while it is a terminal and they take longer than half a second."""
    stream = sys.stderr
    if not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield from items
        return
    yield from _shown(items, doing, stream)


def _shown(items: Sequence[T], doing: str, stream: IO[str]) -> Iterator[T]:
    due = time.monotonic() + PATIENCE_S
    shown = False
    try:
        for place, item in enumerate(items):
            now = time.monotonic()
            if now >= due:
                stream.write(f"{CLEAR}{doing} {place + 1}/{len(items)}")
                stream.flush()
                shown, due = True, now + INTERVAL_S
            yield item
    finally:
        if shown:
            stream.write(CLEAR)
            stream.flush()
