"""Names experiments by the settings that distinguish them, in characters that `-k` accepts.

`loader`, `points` and `sweep` call it. Names are test ids and must stay: each depends on its own values alone, so an
axis may get more values. What is too long or nested is shortened and carries six hex digits of the whole.
"""

from __future__ import annotations

import hashlib
import json
import re

from pytest_llem.errors import JsonValue

# Chosen: a value still readable in a terminal line of test ids.
MAX_VALUE = 40
# Chosen: ids are also directory names, which most file systems limit to 255 bytes.
MAX_ID = 160
_PLAIN = re.compile(r"[A-Za-z0-9_.+/]+(?:[-:][A-Za-z0-9_.+/]+)*\Z")
_OTHER = re.compile(r"[^A-Za-z0-9_.+]+")


def digest(value: JsonValue) -> str:
    """Six hex digits of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:6]


def text_of(value: JsonValue) -> str:
    """A value as part of an id."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        text = repr(value)
        return text if len(text) <= MAX_VALUE else f"{text[:12]}.{digest(value)}"
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, (list, tuple)):
        if not value:
            return "none"
        if all(item is None or isinstance(item, (bool, int, float, str)) for item in value):
            joined = "+".join(text_of(item) for item in value)
            if len(joined) <= MAX_VALUE and not any("+" in item for item in value if isinstance(item, str)):
                return joined
        return f"{len(value)}_items.{digest(list(value))}"
    if isinstance(value, dict):
        return _mapping(value)
    return digest(str(value))


def _word(value: str) -> str:
    if len(value) <= MAX_VALUE and _PLAIN.match(value) and not value.startswith(("/", ".")):
        return value
    tail = _OTHER.sub("_", value.rstrip("/").rpartition("/")[2]).strip("_.+")[:24]
    return f"{tail}.{digest(value)}" if tail else digest(value)


def _mapping(value: dict[str, JsonValue]) -> str:
    if not value:
        return "none"
    simple = all(isinstance(item, (bool, int, float)) or item is None for item in value.values())
    joined = "+".join(f"{_word(key)}:{text_of(item)}" for key, item in value.items())
    if simple and len(joined) <= MAX_VALUE:
        return joined
    first = next((str(item) for item in value.values() if isinstance(item, str)), next(iter(value)))
    return f"{_OTHER.sub('_', first)[:24]}.{digest(value)}"


def shorten(name: str) -> str:
    """An id of bearable length."""
    return name if len(name) <= MAX_ID else f"{name[: MAX_ID - 7]}.{digest(name)}"


def slug(text: str) -> str:
    """A text as the name of a study: letters, digits, `_`, `.`, `-`."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:80]
    return cleaned or f"study-{digest(text)}"
