"""Looks up where a setting was written, for an xdist worker that received the study without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_llem.study.problems import Location


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
