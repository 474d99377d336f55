"""Reads the files of a study, the file itself and the chain of its bases, and merges their data.

The loader reads through `Sources`, which knows the file and position of every key; `experiments` locates settings.
Files of LLenergyMeasure are translated while they are read (`translation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.study.document import Document, read_document
from pytest_llem.study.fields import innermost
from pytest_llem.study.problems import MAX_PROBLEMS, Location, Problem, UnreadableError
from pytest_llem.study.shipped import study_file
from pytest_llem.study.translation import replaced, translate
from pytest_llem.study.values import KeyPath, deep_merge, kind

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

    def locate_setting(self, path: str, value: JsonValue = None, /) -> Location:
        """See `Locate`: a setting is shared, swept, part of a sweep's group, or in an experiment."""
        places = [place for place in self._places(path) if any(document.holds(place[0]) for document in self.documents)]
        for key_path, written in places if value is not None else ():
            if isinstance(written, list) and value in written:
                return self.locate((*key_path, written.index(value)))
            if written == value:
                return self.locate(key_path)
        return self.locate(places[0][0], key=True) if places else self.documents[0].locate(())

    def _places(self, path: str) -> Iterator[tuple[KeyPath, JsonValue]]:
        yield from _written(self.data, path, ())
        sweep, experiments = self.data.get("sweep"), self.data.get("experiments")
        yield from _written(sweep, path, ("sweep",))
        for name, group in sweep.items() if isinstance(sweep, Mapping) else ():
            for index, alternative in enumerate(group if isinstance(group, list) else ()):
                yield from _written(alternative, path, ("sweep", name, index))
        for index, entry in enumerate(experiments if isinstance(experiments, list) else ()):
            yield from _written(entry, path, ("experiments", index))

    def leaves_empty(self, key: str) -> bool:
        """Whether a key is written without a value, which takes away no base's either."""
        return key in self.data and all(document.data.get(key) is None for document in self.documents)

    def report(self, path: KeyPath, text: str, fix: str | None = None, at_key: bool = False) -> None:
        """Note a problem with what stands at `path`. Raises `UnreadableError` when there are `MAX_PROBLEMS`."""
        self.problems.append(Problem(self.locate(path, key=at_key), text, fix))
        if len(self.problems) >= MAX_PROBLEMS:
            raise UnreadableError(self.problems)


def _written(data: JsonValue, path: str, above: KeyPath) -> Iterator[tuple[KeyPath, JsonValue]]:
    """Where a mapping writes the setting, nested or dotted, and what."""
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if key == path:
            yield (*above, key), value
        elif path.startswith(f"{key}."):
            yield from _written(value, path.removeprefix(f"{key}."), (*above, key))


def read_sources(path: Path, env: Mapping[str, str]) -> Sources:
    """Read a study and its bases. Raises `UnreadableError` when the study itself cannot be read."""
    sources = Sources({}, [])
    sources.data, _ = _read(path, env, sources, ())
    return sources


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
        try:
            target = path.parent / study_file(base)
        except SettingsError as error:
            problems.append(Problem(where, f"base: {error.message}", error.fix))
            continue
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
