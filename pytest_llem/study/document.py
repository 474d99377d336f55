"""Reads YAML files into plain data, with the position of every key and value.

`sources` and `settings` read files with it, and `study` uses its small functions. Scalars must follow the YAML
1.2 core schema: `no`, `1:30` and `010` are not turned into something else. What a hostile file could use (aliases that
explode, endless nesting, tags, duplicate keys) must be refused at its position.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import open_regular
from pytest_llem.job.redaction import has_credential, holds_secret
from pytest_llem.study.model import SourceText
from pytest_llem.study.other_tools import tool_of
from pytest_llem.study.problems import Location, Problem

Key = str | int
KeyPath = tuple[Key, ...]

# Chosen: a study of 100,000 explicit experiments fits; a larger file is no study.
MAX_BYTES = 32 * 1024 * 1024
# Chosen: far above what a person writes; a program's file of that size adds less to a manifest than its plan does.
MAX_KEPT_BYTES = 1024 * 1024
# Chosen: far deeper than any setting, far from the recursion limit of the C composer.
MAX_DEPTH = 64
_NAME_IT = "name its variable: openai.api_key_env for a server's key; workers and servers inherit all others"
# Chosen: 10,000 explicit experiments of thirty settings each; reading so many takes some seconds.
MAX_VALUES = 750_000
# Chosen: far longer than any name, path or template, and short enough to look for placeholders in it.
MAX_TEXT = 100_000
_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
# Unicode's category Cc, apart from tab, newline and carriage return, which a prompt may hold.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_OLD_BOOL = re.compile(r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)\Z")
_INT = re.compile(r"[-+]?[0-9][0-9_]*\Z|0x[0-9a-fA-F]+\Z|0o[0-7]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
# Chosen: about the digits of the largest float, and far below where int() of a text refuses (4300 digits).
_MAX_DIGITS = 300


class PlaceholderText(str):
    """A quoted value that is one placeholder: it takes the type its setting wants (`plain`), or stays text."""

    __slots__ = ("plain",)
    plain: JsonValue


class OldBoolean(str):
    """An unquoted `yes`, `no`, `on` or `off`: a boolean in YAML 1.1, and a text here, which engines take for true."""

    __slots__ = ()
    REMEDY = "write true or false, or quote it"


def old_boolean(value: JsonValue) -> str | None:
    """What is wrong with the first such word in a value that may be anything."""
    if isinstance(value, OldBoolean):
        return f"{value} is no boolean here, but a text that engines take for true"
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((problem for item in inside if (problem := old_boolean(item)) is not None), None)


class _PlainLoader(yaml.CSafeLoader):
    """Leaves every plain scalar a string: `_plain` gives it its type."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own type)


class UnreadableError(Exception):
    """A document that cannot be read at all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(str(problems[0]))
        self.problems = tuple(problems)


def _unreadable(location: Location, text: str, fix: str | None = None) -> UnreadableError:
    return UnreadableError([Problem(location, text, fix)])


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
        return _at(str(self.path), self._find(self.written(path), want_key=key)[1].start_mark)

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
        raise _unreadable(Location(str(path)), f"cannot be read: {reason}", "check the path") from None
    if len(raw) > MAX_BYTES:
        raise _unreadable(Location(str(path)), f"larger than {MAX_BYTES >> 20} MiB", "split the study")
    return _parse(raw, path, env)


def _parse(raw: bytes, path: Path, env: Mapping[str, str]) -> Document:
    name = str(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        # One character per byte, because columns of a file that is not UTF-8 can only be counted in bytes.
        where = _behind(name, raw[: problem.start].decode("latin-1"))
        raise _unreadable(where, "not UTF-8", "save the file as UTF-8") from None
    root = _compose(text, name)
    if root is None:
        raise _unreadable(Location(name), "the file is empty", "give at least `model: ...`")
    count = _written_out(root, {}) if "*" in text else 0
    if count > MAX_VALUES:
        what = f"{count:,} values once its aliases are written out, more than {MAX_VALUES:,}"
        raise _unreadable(_at(name, root.start_mark), what, "use a sweep instead of nested aliases")
    reader = _Reader(name, env)
    data = reader.value(root, 0)
    if reader.problems:
        raise UnreadableError(reader.problems)
    tool = tool_of(data)
    if tool is not None:
        what, hint = (
            f"this is a file of {tool}, not a study",
            "docs/studies.md, 'Files of other tools', says how to write it",
        )
        raise _unreadable(_at(name, root.start_mark), what, hint)
    if not isinstance(data, dict):
        what = f"expected a mapping of settings, got {kind(data)}"
        raise _unreadable(_at(name, root.start_mark), what, "write `key: value` lines")
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
        raise _unreadable(_at(name, mark), f"YAML syntax error: {what}", _syntax_hint(what, text, mark)) from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        position = getattr(problem, "position", None)
        where = Location(name)
        if isinstance(position, int):
            # libyaml counts in bytes of UTF-8.
            where = _behind(name, text.encode()[:position].decode(errors="ignore"))
        what = getattr(problem, "reason", None) or (str(problem) or type(problem).__name__).splitlines()[0]
        raise _unreadable(where, f"YAML syntax error: {what}") from None
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
            where = _at(name, event.start_mark)
            raise _unreadable(where, f"more than {MAX_VALUES:,} values", "use a sweep, or split the study")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_TEXT:
            what = f"a text of {len(event.value):,} characters, more than {MAX_TEXT:,}"
            raise _unreadable(_at(name, event.start_mark), what, "shorten it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                where = _at(name, event.start_mark)
                raise _unreadable(where, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax_hint(what: str, text: str, mark: _Mark | None) -> str | None:
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


class _Mark(Protocol):
    line: int
    column: int


def _at(name: str, mark: _Mark | None) -> Location:
    return Location(name) if mark is None else Location(name, mark.line + 1, mark.column + 1)


def _behind(name: str, before: str) -> Location:
    """The position of what follows a part of the file."""
    return Location(name, before.count("\n") + 1, len(before) - before.rfind("\n"))


class _Reader:
    """Turns nodes into plain values, once per document."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.env = env
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def problem(self, node: yaml.Node, text: str, fix: str | None = None) -> None:
        self.problems.append(Problem(_at(self.name, node.start_mark), text, fix))

    def value(self, node: yaml.Node, depth: int) -> JsonValue:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        where = _at(self.name, node.start_mark)
        if depth >= MAX_DEPTH:
            raise _unreadable(where, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        if id(node) in self._open:
            raise _unreadable(where, "an alias that contains itself", "write the value out")
        self._open.add(id(node))
        try:
            if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
                self.problem(node, f"the tag {node.tag!r} is not supported", "write plain values")
                return None
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, depth + 1) for item in node.value]
            return self._mapping(node, depth)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, JsonValue]:
        own: dict[str, JsonValue] = {}
        merged: dict[str, JsonValue] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem(key, "a key must be a plain word", "quote it")
                continue
            if key.value == "<<" and not key.style:
                for source in self._merge_sources(value, depth):
                    merged = {**source, **merged}
                continue
            if key.value in own:
                self.problem(key, f"{key.value!r} appears twice in one mapping", "keep one of them")
                continue
            own[key.value] = self.value(value, depth + 1)
        return {**merged, **own}

    def _merge_sources(self, node: yaml.Node, depth: int) -> Iterator[dict[str, JsonValue]]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.value(source, depth + 1)
            if isinstance(value, dict):
                yield value
            else:
                self.problem(source, f"'<<' merges mappings, got {kind(value)}", "refer to a mapping")

    def _scalar(self, node: yaml.ScalarNode) -> JsonValue:
        text: str = node.value
        tag = node.tag
        control = _CONTROL.search(text)
        if control is not None:
            self.problem(node, f"the control character U+{ord(control.group()):04X}", "take it out")
            return None
        if "${" in text:
            filled = self._fill(node, text)
            if filled is None:
                return None
            if _PLACEHOLDER.fullmatch(text) and text != "$${" and node.style:
                quoted = PlaceholderText(filled)
                quoted.plain = self._plain(node, filled)
                return quoted
            text = filled
        if has_credential(text):
            self.problem(node, "this is a credential, and a study's values stand in every result", _NAME_IT)
            return None
        if tag == "tag:yaml.org,2002:str" or tag == "!":
            # An empty resolver table gives plain and quoted scalars one tag; the style tells them apart.
            return text if node.style or tag == "!" else self._plain(node, text)
        forced = {"int": _INT, "float": _FLOAT, "bool": _BOOL, "null": _NULL}.get(tag.rpartition(":")[2])
        if tag.startswith("tag:yaml.org,2002:") and forced is not None:
            if forced.match(text):
                value = self._plain(node, text)
                return float(value) if tag.endswith("float") and isinstance(value, int) else value
            self.problem(node, f"{text!r} is not of the type its tag says", "leave the tag out")
            return None
        self.problem(node, f"the tag {tag!r} is not supported", "write plain values")
        return None

    def _plain(self, node: yaml.Node, text: str) -> JsonValue:
        if _NULL.match(text):
            return None
        if _BOOL.match(text):
            return text[0] in "tT"
        if _OLD_BOOL.match(text):
            return OldBoolean(text)
        number = text.replace("_", "")
        if _INT.match(text):
            if len(number) > _MAX_DIGITS:
                self.problem(node, f"a number of {len(number)} digits", "write a smaller number")
                return None
            return int(number, 0) if number[:2] in ("0x", "0o") else int(number, 10)
        value = float(number) if _FLOAT.match(text) else None
        if _NOT_FINITE.match(text) or (value is not None and math.isinf(value)):
            self.problem(node, f"{text!r} is not a finite number", "write a finite number")
            return None
        return text if value is None else value

    def _fill(self, node: yaml.Node, text: str) -> str | None:
        missing: list[str] = []
        secret: list[str] = []

        def replace(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            if name is None:
                return "${"
            value = self.env.get(name)
            if holds_secret(name):
                secret.append(name)
                return ""
            if default is not None and not value:
                return str(default)
            if value is None:
                missing.append(name)
                return ""
            return value

        filled = _PLACEHOLDER.sub(replace, text)
        for name in missing:
            fix = f"set it, or give a default: ${{{name}:-value}}"
            self.problem(node, f"the environment variable {name} is not set", fix)
        for name in secret:
            self.problem(node, f"{name} sounds secret, and a study's values stand in every result", _NAME_IT)
        return None if missing or secret else filled


def kind(value: object) -> str:
    """What a YAML reader would call a value: `a mapping`, `a list`, `the number 4`, ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge integer"
        return f"the number {text}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:37] + '...'!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list"


def shown(value: JsonValue) -> str:
    """A value as YAML has it, without quotes."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def deep_merge(lower: Mapping[str, JsonValue], upper: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`upper` laid over `lower`: mappings merge key by key, anything else is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
