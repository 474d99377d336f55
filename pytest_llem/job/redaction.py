"""Keeps secrets out of everything that is written: known values in all their spellings, credentials by their form.

`job.job`, runners, containers, servers and the session call it before they write errors and logs. A pattern may be
added; none may be removed. Standard library only.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_bytes

HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SECRET_VARIABLES = (
    *HUB_TOKENS,
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

_NAMED: set[str] = set(SECRET_VARIABLES)

_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIALS?|PAT|KEY(?:_ID)?)$")
_USER_INFO = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)(?=@)")
_CREDENTIALS = {
    "hf_": re.compile(r"\bhf_(?:(?=[A-Za-z]*[0-9])[A-Za-z0-9]{8,}|[A-Za-z]{12,})"),
    "sk-": re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    **{f"gh{kind}_": re.compile(rf"\bgh{kind}_[A-Za-z0-9]{{16,}}") for kind in "pousr"},
    "github_pat_": re.compile(r"\bgithub_pat_[A-Za-z0-9_]{16,}"),
    "glpat-": re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}"),
    "nvapi-": re.compile(r"\bnvapi-[A-Za-z0-9_-]{16,}"),
    "xox": re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),
    "IA": re.compile(r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b"),
    "eyJ": re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    "-----BEGIN": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    "://": re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
}
"""Forms that nothing but a credential has: those of the Hugging Face hub, OpenAI, GitHub, GitLab, NVIDIA, Slack and
AWS, JSON web tokens (RFC 7519), private keys (RFC 7468), and the user information of a URL (RFC 3986); each by what
must stand in a text before it is worth looking closer. The first part of a JSON web token is bounded (chosen: above any
header), since without a bound a line of `eyJ-eyJ-` takes minutes."""

_AUTHORIZATION = {
    "bearer ": re.compile(r"(?<=\b(?i:bearer) )(?=[a-z]*[^a-z\s])[A-Za-z0-9._~+/=-]{8,}"),
    "basic ": re.compile(r"(?<=\b(?i:basic) )(?=[a-z]*[A-Z0-9+/=])[A-Za-z0-9+/=]{12,}"),
}
"""Words of small letters alone are none: a "basic configuration"."""

_SPECIAL = "".join(f"(?<!{name}_)" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
_WORDS = (
    rf"({_SPECIAL}TOKEN|(?:HF|HUB|ACCESS|AUTH|API|REFRESH|SESSION|JOB)[_-]TOKEN"
    r"|PASSWORD|PASSWD|PASSPHRASE|SECRET|API[_-]?KEY|ACCESS_KEY)"
)
"""Beside these a value is hidden; beside `token`, which a language model has as well, only what looks like a secret."""

_ASSIGNED = re.compile(rf"(?i)(?<![A-Za-z0-9]){_WORDS}([\"']?\s*[=:]\s*[\"']?)([^\s\"',;&]{{6,}})")
_KEY_OF_ONE = re.compile(rf"(?i)(?:^|[^A-Za-z0-9]){_WORDS}$")
_LIKE_A_TOKEN = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9._~+/=-]{8,}")
"""What RFC 6750 calls a b64token, with letters and digits: `<|im_start|>` and words are tokens of another kind."""

_HEADER = re.compile(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)([\"']?\s*[=:]\s*[\"']?)[^\s\"'][^\"'\n]*")
"""A header of a command that holds a credential of any scheme (RFC 9110, 11.6; RFC 6265)."""

_USER_AND_PASSWORD = re.compile(r"(?<=:)(?!\d+$).+", re.DOTALL)

_QUANTITY = re.compile(r"[0-9.,]+(?:e[+-]?[0-9]+)?[A-Za-z/]*")
_SHORTEST = 6
"""Chosen: replacing shorter values would tear up ordinary text, and no real credential is that short."""

_PLACEHOLDERS = ("ollama", "lm-studio", "sk-no-key-required", "not-needed", "no-key", "unused", "placeholder")
"""What clients are told to set where a server wants no key (Ollama, LM Studio, llama.cpp), its name among them."""

_SHORTEST_UNNAMED = 8
"""Chosen: of a variable that only sounds secret, shorter values, plain words and numbers are not hidden."""

_ORDINARY = re.compile(r"sk-(?:[a-z0-9]{1,15}[_-])*[a-z0-9]{1,15}")
"""A name of words, such as sk-learn-experiments-v2; a log loses it all the same."""

_SHORTEST_CREDENTIAL = 20
"""Chosen: far below the 37 characters of a hub's token, and longer than a name like hf_int8model in a study."""

_CHUNK_BYTES = 1 << 20
"""Chosen: of a log whose lines end, no more than this is searched at a time."""


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `SECRET_VARIABLES` that are set, with their values."""
    return {name: environment[name] for name in SECRET_VARIABLES if environment.get(name)}


def holds_secret(variable: str) -> bool:
    """Whether a variable of this name is expected to hold a secret."""
    return variable in _NAMED or _SECRET_NAME.search(variable) is not None


def name_secrets(settings: Mapping[str, object]) -> None:
    """Hide in this process, from now on, the values of variables in which an engine's settings say that a key is."""
    _NAMED.update(name for key, name in settings.items() if key.endswith("_key_env") and isinstance(name, str))


def without_user_info(url: str) -> str:
    """A URL without user and password."""
    return _USER_INFO.sub("", url).replace("://@", "://")


def has_credential(text: str) -> bool:
    """Whether a text holds what by its form can only be a credential."""
    if len(text) < _SHORTEST_CREDENTIAL:
        return False
    found = [match for mark, pattern in _CREDENTIALS.items() if mark in text for match in pattern.finditer(text)]
    long = (match for match in found if len(match[0]) >= _SHORTEST_CREDENTIAL or match.re is _CREDENTIALS["://"])
    return any(not _ORDINARY.fullmatch(match[0]) for match in long)


def hidden(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Every text to hide that follows from the environment, by default this process's; the longest first."""
    variables = os.environ if environment is None else environment
    return _hidden(frozenset(variables.items()), frozenset(_NAMED))


@lru_cache(maxsize=4)
def _hidden(variables: frozenset[tuple[str, str]], named: frozenset[str]) -> tuple[str, ...]:
    found = set()
    for name, value in variables:
        sounds_secret = "://" not in value and _SECRET_NAME.search(name) is not None and _is_no_word(value)
        if (name in named and value not in _PLACEHOLDERS) or sounds_secret:
            found.add(value)
        for pattern in _CREDENTIALS.values():
            found.update(pattern.findall(value))
        for user, password in _USER_INFO.findall(value) if "://" in value else ():
            found |= {password, unquote(password), f"{user}:{password}", unquote(f"{user}:{password}")}
    return _spellings(value.strip() for value in found if len(value.strip()) >= _SHORTEST)


def redact(text: str, values: Iterable[str] | None = None) -> str:
    """The text without the values to hide, `hidden()` by default, and without all that is recognisably a credential."""
    for value in hidden() if values is None else values:
        if len(value) >= _SHORTEST:
            text = text.replace(value, REDACTED)
    for mark, credential in _CREDENTIALS.items():
        if mark in text:
            text = credential.sub(REDACTED, text)
    small = text.lower()
    for mark, pattern in _AUTHORIZATION.items():
        if mark in small:
            text = pattern.sub(REDACTED, text)
    return _ASSIGNED.sub(_hide, text)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, each redacted, and whole where the option before it says what it is."""
    return [_redacted_after(before, argument) for before, argument in zip(["", *arguments], arguments, strict=False)]


def redacted(value: JsonValue, values: Iterable[str] | None = None) -> JsonValue:
    """A JSON value with every text in it redacted, also for what its key says that it is; keys stay."""
    kept = hidden() if values is None else tuple(values)
    if isinstance(value, str):
        return redact(value, kept)
    if isinstance(value, Mapping):
        return {key: REDACTED if _is_secret_entry(key, item) else redacted(item, kept) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item, kept) for item in value]
    return value


def redact_file(path: Path) -> None:
    """Redact a log in place, if it holds anything to redact; a missing file is ignored."""
    values, clean_bytes = hidden(), 0
    kept: list[bytes] = []
    try:
        with path.open("rb") as stream:
            while part := b"".join(stream.readlines(_CHUNK_BYTES)):
                text = part.decode("utf-8", "replace")
                cleaned = redact(text, values)
                if kept or cleaned != text:
                    kept.append(cleaned.encode())
                else:
                    clean_bytes += len(part)
            stream.seek(0)
            if kept:
                write_bytes(path, b"".join((stream.read(clean_bytes), *kept)), durable=False)
    except FileNotFoundError:
        return


def _redacted_after(before: str, argument: str) -> str:
    if before.startswith("-") and _is_secret_entry(before, argument):
        return REDACTED
    if before in ("-u", "--user", "-U", "--proxy-user"):  # as curl takes them
        argument = _USER_AND_PASSWORD.sub(REDACTED, argument, count=1)
    return redact(_HEADER.sub(rf"\1\2{REDACTED}", argument))


def _hide(match: re.Match[str]) -> str:
    word, between, value = match.groups()
    return f"{word}{between}{REDACTED}" if _tells_secret(word, value) else match.group()


def _tells_secret(word: str, value: str) -> bool:
    """Whether the value beside a word is one to hide; beside `token`, only what looks like one."""
    if word.lower() != "token":
        return value != REDACTED
    return _LIKE_A_TOKEN.fullmatch(value) is not None and _QUANTITY.fullmatch(value) is None


def _is_secret_entry(key: str, value: JsonValue) -> bool:
    word = _KEY_OF_ONE.search(key)
    return word is not None and isinstance(value, str) and len(value) >= _SHORTEST and _tells_secret(word[1], value)


def _is_no_word(value: str) -> bool:
    """Whether a value is long and odd enough that hiding it cannot tear up ordinary text, or the paths in it."""
    plain = (
        value.isdigit()
        or (value.isalpha() and value.islower())
        or (value.startswith("/") and os.access(value, os.F_OK))
    )
    return len(value) >= _SHORTEST_UNNAMED and not plain


def _spellings(values: Iterable[str]) -> tuple[str, ...]:
    """Values as they are, percent-encoded, in JSON, and in Base64 (RFC 4648, both alphabets) at any place in a text."""
    found = set()
    for value in values:
        lines = [line for line in value.splitlines() if len(line) > _SHORTEST and not line.startswith("-----")]
        for text in {value, *lines}:
            encoded = {quote(text, safe=""), quote(text), quote_plus(text)}
            found |= encoded | {re.sub("%..", lambda match: match[0].lower(), one) for one in encoded}
            found |= {text, json.dumps(text)[1:-1], *_in_base64(text.encode())}
    return tuple(sorted(found, key=len, reverse=True))


def _in_base64(value: bytes) -> Iterator[str]:
    """What a value contributes to the Base64 of any text that holds it: three alignments, without the shared ends."""
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(value)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + value).decode()[first:end]
