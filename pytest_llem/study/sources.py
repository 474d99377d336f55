"""Reads the files of a study, the file itself and the chain of its bases, and merges their data.

The loader reads through `Sources`, which knows the file and position of every key; `experiments` locates settings.
Files of LLenergyMeasure are translated while they are read (`translation`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.study.document import Document, KeyPath, UnreadableError, deep_merge, kind, read_document
from pytest_llem.study.fields import innermost
from pytest_llem.study.problems import MAX_PROBLEMS, Location, Problem
from pytest_llem.study.translation import replaced, translate

# Chosen: far beyond any chain of shared settings that a reader could follow.
MAX_BASES = 32


@dataclass
class Sources:
    """The merged data of a study, and the documents it came from, the study's own first."""

    data: dict[str, JsonValue]
    documents: list[Document]
    problems: list[Problem] = field(default_factory=list)
    is_older: bool = False
    without_effect: list[str] = field(default_factory=list)

    def locate(self, path: KeyPath, *, key: bool = False) -> Location:
        """Where the value (or key) at `path` of the merged data was written."""
        for document in self.documents:
            if document.holds(path):
                return document.locate(path, key=key)
        return self.documents[0].locate(path, key=key)

    def locate_setting(self, path: str) -> Location:
        """Where the setting with a dotted path was written: shared, swept or in an experiment; else the beginning."""
        nested: KeyPath = tuple(path.split("."))
        candidates: list[KeyPath] = [nested, (path,), ("sweep", path)]
        experiments = self.data.get("experiments")
        count = len(experiments) if isinstance(experiments, list) else 0
        candidates += [("experiments", index, *rest) for index in range(count) for rest in (nested, (path,))]
        for key_path in candidates:
            if any(document.holds(key_path) for document in self.documents):
                return self.locate(key_path, key=True)
        return self.documents[0].locate(())

    def report(self, path: KeyPath, text: str, fix: str | None = None, at_key: bool = False) -> None:
        """Note a problem with what stands at `path`. Raises `UnreadableError` when there are `MAX_PROBLEMS`."""
        self.problems.append(Problem(self.locate(path, key=at_key), text, fix))
        if len(self.problems) >= MAX_PROBLEMS:
            raise UnreadableError(self.problems)


def read_sources(path: Path, env: Mapping[str, str]) -> Sources:
    """Read a study and its bases. Raises `UnreadableError` when the study itself cannot be read."""
    sources = Sources({}, [])
    sources.data, _ = _read(path, env, sources, ())
    return sources


def locate_setting(path: Path, setting: str) -> Location:
    """Where a setting (dotted path) of a study was written, or the study's beginning if it or the file is not there."""
    try:
        return read_sources(path, os.environ).locate_setting(setting)
    except UnreadableError:
        return Location(str(path))


def _read(
    path: Path, env: Mapping[str, str], sources: Sources, chain: tuple[Path, ...]
) -> tuple[dict[str, JsonValue], Mapping[str, list[str]]]:
    document = read_document(path, env)
    documents, problems = sources.documents, sources.problems
    documents.append(document)
    translation = translate(document)
    problems.extend(translation.problems)
    sources.without_effect.extend(translation.without_effect)
    sources.is_older |= translation.is_older
    data = dict(document.data)
    bases = data.pop("base", None)
    entries = [(("base",), bases)] if not isinstance(bases, list) else [(("base", i), b) for i, b in enumerate(bases)]
    merged: dict[str, JsonValue] = {}
    chain = (*chain, _resolved(path))
    for key_path, base in entries:
        if base is None and bases is None:
            continue
        where = document.locate(key_path)
        if not isinstance(base, str) or not base:
            problems.append(Problem(where, f"base: expected a file name, got {kind(base)}", "write base: common.yaml"))
            continue
        target = path.parent / base
        if _resolved(target) in chain:
            problems.append(Problem(where, f"base: {base} is a base of itself", "break the circle"))
            continue
        if len(documents) >= MAX_BASES:
            problems.append(Problem(where, f"base: more than {MAX_BASES} files", "use fewer"))
            continue
        try:
            below, keys = _read(target, env, sources, chain)
        except UnreadableError as unreadable:
            if unreadable.problems[0].location == Location(str(target)):
                first = unreadable.problems[0]
                problems.append(Problem(where, f"base: {target}: {first.text}", "the path is relative to this file"))
            else:
                problems.extend(unreadable.problems)
            continue
        if translation.is_older and "_extends" not in translation.keys:
            for setting in replaced(keys, translation.keys):
                level, last = innermost(below, setting)
                level.pop(last, None)
        merged = deep_merge(merged, below)
    return deep_merge(merged, data), translation.keys


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path
