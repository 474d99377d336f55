"""Turns the nodes of a YAML file into plain values: types of scalars, placeholders, merges, and what is refused.

`document` composes the nodes. Scalars must follow the YAML 1.2 core schema: `no`, `1:30` and `010` are not turned into
something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import yaml

from pytest_llem.errors import JsonValue
from pytest_llem.job.redaction import has_credential, holds_secret
from pytest_llem.study.problems import Location, Problem, unreadable
from pytest_llem.study.values import OldBoolean, PlaceholderText, kind

# Chosen: far deeper than any setting, far from the recursion limit of the C composer.
MAX_DEPTH = 64
_NAME_IT = "name its variable: openai.api_key_env for a server's key; workers and servers inherit all others"
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


class Mark(Protocol):
    """A position as PyYAML has it, from 0."""

    line: int
    column: int


def located(name: str, mark: Mark | None) -> Location:
    """The position in a file of that name, its beginning where there is none."""
    return Location(name) if mark is None else Location(name, mark.line + 1, mark.column + 1)


class NodeReader:
    """Turns nodes into plain values, once per document."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.env = env
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def _problem(self, node: yaml.Node, text: str, fix: str | None = None) -> None:
        self.problems.append(Problem(located(self.name, node.start_mark), text, fix))

    def value(self, node: yaml.Node, depth: int) -> JsonValue:
        """The value of a node at a depth; problems go to `problems`. Raises `UnreadableError` where it has no end."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        where = located(self.name, node.start_mark)
        if depth >= MAX_DEPTH:
            raise unreadable(where, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        if id(node) in self._open:
            raise unreadable(where, "an alias that contains itself", "write the value out")
        self._open.add(id(node))
        try:
            if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
                self._problem(node, f"the tag {node.tag!r} is not supported", "write plain values")
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
                self._problem(key, "a key must be a plain word", "quote it")
                continue
            if key.value == "<<" and not key.style:
                for source in self._merge_sources(value, depth):
                    merged = {**source, **merged}
                continue
            if key.value in own:
                self._problem(key, f"{key.value!r} appears twice in one mapping", "keep one of them")
                continue
            own[key.value] = self.value(value, depth + 1)
        return {**merged, **own}

    def _merge_sources(self, node: yaml.Node, depth: int) -> Iterator[dict[str, JsonValue]]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.value(source, depth + 1)
            if isinstance(value, dict):
                yield value
            else:
                self._problem(source, f"'<<' merges mappings, got {kind(value)}", "refer to a mapping")

    def _scalar(self, node: yaml.ScalarNode) -> JsonValue:
        text: str = node.value
        tag = node.tag
        control = _CONTROL.search(text)
        if control is not None:
            self._problem(node, f"the control character U+{ord(control.group()):04X}", "take it out")
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
            self._problem(node, "this is a credential, and a study's values stand in every result", _NAME_IT)
            return None
        if tag == "tag:yaml.org,2002:str" or tag == "!":
            # An empty resolver table gives plain and quoted scalars one tag; the style tells them apart.
            return text if node.style or tag == "!" else self._plain(node, text)
        forced = {"int": _INT, "float": _FLOAT, "bool": _BOOL, "null": _NULL}.get(tag.rpartition(":")[2])
        if tag.startswith("tag:yaml.org,2002:") and forced is not None:
            if forced.match(text):
                value = self._plain(node, text)
                return float(value) if tag.endswith("float") and isinstance(value, int) else value
            self._problem(node, f"{text!r} is not of the type its tag says", "leave the tag out")
            return None
        self._problem(node, f"the tag {tag!r} is not supported", "write plain values")
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
                self._problem(node, f"a number of {len(number)} digits", "write a smaller number")
                return None
            return int(number, 0) if number[:2] in ("0x", "0o") else int(number, 10)
        value = float(number) if _FLOAT.match(text) else None
        if _NOT_FINITE.match(text) or (value is not None and math.isinf(value)):
            self._problem(node, f"{text!r} is not a finite number", "write a finite number")
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
            self._problem(node, f"the environment variable {name} is not set", fix)
        for name in secret:
            self._problem(node, f"{name} sounds secret, and a study's values stand in every result", _NAME_IT)
        return None if missing or secret else filled
