"""Keeps secrets out of everything that is written: known variables by value, credentials by their form.

`job.job`, runners, containers, servers and the session call it before they write errors and logs. A pattern may be
added; none may be removed. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_llem.errors import JsonValue

SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_API_KEY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
)
"""Passed on from the caller's environment. A proxy's address counts as secret, because it may hold credentials."""

REDACTED = "***"

_PATTERNS = (
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(?<=\bbasic )[A-Za-z0-9+/=]{12,}"),
    re.compile(
        r"(?i)(?<![A-Za-z0-9])(?:[A-Z0-9]+_)*(?:TOKEN|PASSWORD|SECRET|API_KEY)[\"']?\s*[=:]\s*[\"']?(?=[^\s\"',;&]*[A-Za-z])([^\s\"',;&]{6,})"
    ),
)
_SHORTEST = 6
"""Chosen: replacing shorter values would tear up ordinary text, and no real credential is that short."""


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `SECRET_VARIABLES` that are set, with their values."""
    return {name: environment[name] for name in SECRET_VARIABLES if environment.get(name)}


def redact(text: str, values: Iterable[str] = ()) -> str:
    """The text without the given secret values and without anything that is recognisably a credential.

    Values shorter than six characters are left, since replacing them would tear up ordinary text.
    """
    for value in sorted(set(values), key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, REDACTED)
    for pattern in _PATTERNS:
        text = pattern.sub(_hide, text)
    return text


def redacted(value: JsonValue, values: Iterable[str] = ()) -> JsonValue:
    """A JSON value with every text in it redacted; keys stay."""
    if isinstance(value, str):
        return redact(value, values)
    if isinstance(value, Mapping):
        return {key: redacted(item, values) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item, values) for item in value]
    return value


def redact_file(path: Path, values: Iterable[str] = ()) -> None:
    """Redact a log in place, if it holds anything to redact; a missing file is ignored."""
    kept = tuple(values)
    try:
        with path.open("rb") as stream:
            clean = all(redact(text, kept) == text for text in map(_text, stream))
        if clean:
            return
        with path.open("rb") as stream:
            lines = [redact(text, kept) for text in map(_text, stream)]
        path.write_text("".join(lines), encoding="utf-8")
    except FileNotFoundError:
        return


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _hide(match: re.Match[str]) -> str:
    if not match.re.groups:
        return REDACTED
    start = match.start(1) - match.start()
    return match.group()[:start] + REDACTED
