"""Reads YAML files into plain data, with the position of every key and value.

`sources` and `settings` read files with it; `nodes` gives the values. What a hostile file could use (aliases that
explode, endless nesting, tags, duplicate keys) must be refused at its position.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import open_regular
from pytest_llem.study.model import SourceText
from pytest_llem.study.nodes import MAX_DEPTH, Mark, NodeReader, located
from pytest_llem.study.other_tools import tool_of
from pytest_llem.study.problems import Location, UnreadableError, unreadable
from pytest_llem.study.values import Key, KeyPath, kind

# Chosen: a study of 100,000 explicit experiments fits; a larger file is no study.
MAX_BYTES = 32 * 1024 * 1024
# Chosen: far above what a person writes; a program's file of that size adds less to a manifest than its plan does.
MAX_KEPT_BYTES = 1024 * 1024
# Chosen: 10,000 explicit experiments of thirty settings each; reading so many takes some seconds.
MAX_VALUES = 750_000
# Chosen: far longer than any name, path or template, and short enough to look for placeholders in it.
MAX_TEXT = 100_000


class _PlainLoader(yaml.CSafeLoader):
    """Leaves every plain scalar a string: `nodes` gives it its type."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own type)


@dataclass
class Document:
    """One YAML file: its data as plain values, and the position of every key and value."""

    path: Path
    data: dict[str, JsonValue]
    root: yaml.Node
    raw: bytes
    moved: dict[KeyPath, KeyPath] = field(default_factory=dict)

    def as_read(self) -> SourceText:
        """The file as it was read, for the run's manifest."""
        text = self.raw.decode("utf-8-sig") if len(self.raw) <= MAX_KEPT_BYTES else None
        return SourceText(str(self.path.resolve()), text, hashlib.sha256(self.raw).hexdigest())

    def written(self, path: KeyPath) -> KeyPath:
        """Where the user wrote what is now at `path`: older words of a study are renamed after reading."""
        for length in range(len(path), 0, -1):
            old = self.moved.get(path[:length])
            if old is not None:
                return old + path[length:]
        return path

    def holds(self, path: KeyPath) -> bool:
        """Whether the file itself has something at `path`."""
        return self._find(self.written(path))[0] == len(path)

    def locate(self, path: KeyPath, *, key: bool = False) -> Location:
        """The position of the value at `path` (or of its key), or of what encloses it."""
        return located(str(self.path), self._find(self.written(path), want_key=key)[1].start_mark)

    def _find(self, path: KeyPath, *, want_key: bool = False) -> tuple[int, yaml.Node]:
        """How far `path` leads into the file, and the node of its last part."""
        node = last = self.root
        for depth, part in enumerate(path):
            step = _child(node, part)
            if step is None:
                return depth, last
            key_node, node = step
            last = key_node if key_node is not None and (want_key or not _has_extent(node)) else node
        return len(path), last


def _has_extent(node: yaml.Node) -> bool:
    return not (isinstance(node, yaml.ScalarNode) and node.value == "")


def _child(node: yaml.Node, part: Key) -> tuple[yaml.Node | None, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key, value
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == "<<":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    inner = _child(source, part)
                    if inner is not None:
                        return inner
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return None, node.value[part]
    return None


def read_document(path: Path, env: Mapping[str, str]) -> Document:
    """Read a study file. Raises `UnreadableError` with located problems, and nothing else."""
    try:
        with open_regular(path) as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise unreadable(Location(str(path)), f"cannot be read: {reason}", "check the path") from None
    if len(raw) > MAX_BYTES:
        raise unreadable(Location(str(path)), f"larger than {MAX_BYTES >> 20} MiB", "split the study")
    return _parse(raw, path, env)


def _parse(raw: bytes, path: Path, env: Mapping[str, str]) -> Document:
    name = str(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        # One character per byte, because columns of a file that is not UTF-8 can only be counted in bytes.
        where = _behind(name, raw[: problem.start].decode("latin-1"))
        raise unreadable(where, "not UTF-8", "save the file as UTF-8") from None
    root = _compose(text, name)
    if root is None:
        raise unreadable(Location(name), "the file is empty", "give at least `model: ...`")
    count = _written_out(root, {}) if "*" in text else 0
    if count > MAX_VALUES:
        what = f"{count:,} values once its aliases are written out, more than {MAX_VALUES:,}"
        raise unreadable(located(name, root.start_mark), what, "use a sweep instead of nested aliases")
    reader = NodeReader(name, env)
    data = reader.value(root, 0)
    if reader.problems:
        raise UnreadableError(reader.problems)
    tool = tool_of(data)
    if tool is not None:
        what, hint = (
            f"this is a file of {tool}, not a study",
            "docs/studies.md, 'Files of other tools', says how to write it",
        )
        raise unreadable(located(name, root.start_mark), what, hint)
    if not isinstance(data, dict):
        what = f"expected a mapping of settings, got {kind(data)}"
        raise unreadable(located(name, root.start_mark), what, "write `key: value` lines")
    return Document(path, data, root, raw)


def _compose(text: str, name: str) -> yaml.Node | None:
    loader = None
    try:
        _check_bounds(text, name)
        loader = _PlainLoader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        what = problem.problem or problem.context or "cannot be parsed"
        raise unreadable(located(name, mark), f"YAML syntax error: {what}", _syntax_hint(what, text, mark)) from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        position = getattr(problem, "position", None)
        where = Location(name)
        if isinstance(position, int):
            # libyaml counts in bytes of UTF-8.
            where = _behind(name, text.encode()[:position].decode(errors="ignore"))
        what = getattr(problem, "reason", None) or (str(problem) or type(problem).__name__).splitlines()[0]
        raise unreadable(where, f"YAML syntax error: {what}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return node


def _check_bounds(text: str, name: str) -> None:
    """Refuse what takes minutes to compose, and nesting that overflows the stack of the C composer, which recurses."""
    shallow = text.count("[") + text.count("{") < 200 and all(len(line) < 200 for line in text.splitlines())
    if shallow and len(text) <= MAX_TEXT:
        return
    depth = values = 0
    for event in yaml.parse(text, Loader=_PlainLoader):
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_VALUES:
            where = located(name, event.start_mark)
            raise unreadable(where, f"more than {MAX_VALUES:,} values", "use a sweep, or split the study")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_TEXT:
            what = f"a text of {len(event.value):,} characters, more than {MAX_TEXT:,}"
            raise unreadable(located(name, event.start_mark), what, "shorten it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                where = located(name, event.start_mark)
                raise unreadable(where, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax_hint(what: str, text: str, mark: Mark | None) -> str | None:
    lines = text.splitlines()
    if mark is not None and mark.line < len(lines) and "${" in lines[mark.line]:
        return "quote a placeholder that stands inside braces or brackets"
    if "cannot start any token" in what or "tab character" in what:
        return "indent with spaces, not tabs, and quote values that begin with a special character"
    if "mapping values are not allowed" in what:
        return "quote values that contain ': ', and check the indentation"
    if "expected a single document" in what or "another document" in what:
        return "one study per file"
    return None


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node has with every alias written out; 1 for an alias to what encloses it."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1
        parts = [item for pair in node.value for item in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


def _behind(name: str, before: str) -> Location:
    """The position of what follows a part of the file."""
    return Location(name, before.count("\n") + 1, len(before) - before.rfind("\n"))
