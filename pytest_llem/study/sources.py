"""Reads the files of a study, the file itself and the chain of its bases, and merges their data.

The loader reports problems through `Sources`, which knows the file and position of every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.study.document import Document, KeyPath, UnreadableError, deep_merge, kind, read_document
from pytest_llem.study.llenergymeasure.translate import document_words, translate
from pytest_llem.study.llenergymeasure.words import MARKS
from pytest_llem.study.problems import Location, Problem

# Chosen: far beyond any chain of shared settings that a reader could follow.
MAX_BASES = 32


@dataclass
class Sources:
    """The merged data of a study, and the documents it came from, the study's own first."""

    data: dict[str, JsonValue]
    documents: list[Document]
    problems: list[Problem] = field(default_factory=list)
    is_older: bool = False

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
        """Note a problem with what stands at `path`."""
        self.problems.append(Problem(self.locate(path, key=at_key), text, fix))


def read_sources(path: Path, env: Mapping[str, str]) -> Sources:
    """Read a study and its bases. Raises `UnreadableError` when the study itself cannot be read."""
    problems: list[Problem] = []
    documents: list[Document] = []
    data = _read(path, env, documents, problems, ())
    return Sources(data, documents, problems, any(MARKS & document_words(document) for document in documents))


def _read(
    path: Path, env: Mapping[str, str], documents: list[Document], problems: list[Problem], chain: tuple[Path, ...]
) -> dict[str, JsonValue]:
    document = read_document(path, env)
    documents.append(document)
    problems.extend(translate(document))
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
            below = _read(target, env, documents, problems, chain)
        except UnreadableError as unreadable:
            if unreadable.problems[0].location == Location(str(target)):
                first = unreadable.problems[0]
                problems.append(Problem(where, f"base: {target}: {first.text}", "the path is relative to this file"))
            else:
                problems.extend(unreadable.problems)
            continue
        merged = deep_merge(merged, below)
    return deep_merge(merged, data)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path
