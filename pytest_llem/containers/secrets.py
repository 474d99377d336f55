"""Secrets: which variables a container may be given, and how their values are kept out of everything written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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
"""Passed on from the caller's environment. A proxy's address may hold credentials, so it counts as one."""

REDACTED = "***"

_PATTERNS = (
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(?<=\bbasic )[A-Za-z0-9+/=]{12,}"),
    re.compile(
        r"(?i)(?<![A-Za-z0-9])(?:[A-Z0-9]+_)*(?:TOKEN|PASSWORD|SECRET|API_KEY)[\"']?\s*[=:]\s*[\"']?([^\s\"',;&]{6,})"
    ),
)
_SHORTEST = 6


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


def _hide(match: re.Match[str]) -> str:
    if not match.re.groups:
        return REDACTED
    start = match.start(1) - match.start()
    return match.group()[:start] + REDACTED
