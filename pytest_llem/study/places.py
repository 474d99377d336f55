"""Where something was written: a place in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Location:
    """A place in a file; line and column count from 1. Sorted by file, then position."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Relocator:
    """Finds where a setting was written by reading the study again, for a process that did not load it."""

    path: Path

    def __call__(self, setting: str) -> Location:
        """The place of a setting (dotted path), or the study's beginning; also when the file has gone or is broken."""
        from pytest_llem.study.document import UnreadableError, environment
        from pytest_llem.study.sources import read_sources

        try:
            return read_sources(self.path, environment()).locate_setting(setting)
        except UnreadableError:
            return Location(str(self.path))
