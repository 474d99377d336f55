"""Rules of the `openai` section: which server is measured, and that every setting of the study reaches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.study.canonical import Get
from pytest_llem.study.problems import suggest

PLACEHOLDERS = ("model", "port", "host", "dtype", "load_format", "revision", "tensor_parallel_size")
"""What is filled in, between braces, in the command, the arguments and the environment of a server that is started."""

_STARTING = ("command", "image", "server_args", "environment")

_NOWHERE = "is neither in openai.command nor in openai.server_args or openai.environment"

_NAMED = re.compile(r"\{([a-z][a-z_]*)\}")

_GIVEN = tuple(f"openai.{name}" for name in _STARTING)


def _texts(get: Get) -> Iterator[tuple[str, str]]:
    """Every text that placeholders are filled in, with the setting it belongs to."""
    for name in _STARTING:
        value = get(f"openai.{name}")
        if isinstance(value, Mapping):
            yield from ((f"openai.{name}", str(text)) for text in value.values())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from ((f"openai.{name}", str(text)) for text in value)


def _starts(get: Get) -> bool:
    return bool(get("openai.command") or get("openai.image"))


def _which_server(get: Get) -> Refusal | None:
    url = get("openai.base_url")
    set_beside = [f"openai.{name}" for name in _STARTING if get(f"openai.{name}")]
    if url is not None and set_beside:
        return Refusal(
            f"openai.base_url cannot be combined with {set_beside[0]}: a server at a URL runs already",
            "leave openai.base_url out to have the server started, or the other to measure the one at the URL",
        )
    if url is None and not _starts(get):
        return Refusal(
            "engine openai needs a server: openai.base_url, openai.command and openai.image are all missing",
            "give openai.base_url of a running server, openai.command to start one, or openai.image to start one in a "
            "container",
        )
    return None


def _known_placeholders(get: Get) -> Refusal | None:
    for path, text in _texts(get):
        for name in _NAMED.findall(text):
            if name not in PLACEHOLDERS:
                near = suggest(name, PLACEHOLDERS)
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                return Refusal(f"{path}: unknown placeholder {{{name}}}", f"{near or ''} known are {known}".strip())
    return None


def _reaches(get: Get, name: str) -> bool:
    return any(f"{{{name}}}" in text for _, text in _texts(get))


def _told_everything(get: Get) -> Refusal | None:
    """A setting that the server is not told of would be recorded, and not be true."""
    if not _starts(get):
        return None
    for name in ("model", "port"):
        if not _reaches(get, name):
            return Refusal(f"the server is not told its {name}: {{{name}}} {_NOWHERE}", f"add --{name} '{{{name}}}'")
    parallel = get("openai.tensor_parallel_size")
    set_here = {
        "dtype": get("dtype"),
        "revision": get("revision"),
        "openai.tensor_parallel_size": parallel if isinstance(parallel, int) and parallel > 1 else None,
    }
    for path, value in set_here.items():
        name = path.rpartition(".")[2]
        if value is not None and not _reaches(get, name):
            fix = f"write {{{name}}} where the server expects it, or leave {path} out"
            return Refusal(f"{path} {value} does not reach the server: {{{name}}} {_NOWHERE}", fix)
    told_dummy = _reaches(get, "load_format") or any("dummy" in text for _, text in _texts(get))
    if get("weights") == "dummy" and not told_dummy:
        fix = "write {load_format} where the server expects it: it becomes auto or dummy"
        return Refusal(f"weights dummy does not reach the server: {{load_format}} {_NOWHERE}", fix)
    return None


@dataclass(frozen=True)
class Refusal:
    """Why a combination cannot run, and what to change."""

    text: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """A check over `paths`; with `engine` it applies to that engine's experiments alone."""

    paths: tuple[str, ...]
    check: Callable[[Get], Refusal | None]
    engine: str | None = None


SERVER_RULES: tuple[Rule, ...] = (
    Rule(("openai.base_url", *_GIVEN), _which_server, "openai"),
    Rule(_GIVEN, _known_placeholders, "openai"),
    Rule((*_GIVEN, "dtype", "revision", "weights", "openai.tensor_parallel_size"), _told_everything, "openai"),
)
