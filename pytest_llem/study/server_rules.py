"""Rules for settings of servers: one that runs already, or one that is started and has to be told what it serves.

`rules` has them among its own. They must refuse a setting that does not reach the server: a result would state it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pytest_llem.engines.openai.settings import api_url
from pytest_llem.errors import EngineSettingError
from pytest_llem.study.canonical import Get
from pytest_llem.study.problems import suggest
from pytest_llem.study.rule import Rule, refused

PLACEHOLDERS = ("model", "gguf", "port", "host", "dtype", "load_format", "revision", "tensor_parallel_size")
"""Names that may stand between braces in the command, the arguments and the environment of a started server."""

_STARTING = ("command", "image", "server_args", "environment")
_NOWHERE = "is neither in openai.command nor in openai.server_args or openai.environment"
_PLACEHOLDER = re.compile(r"\{([a-z][a-z_]*)\}")
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


def _which_server(get: Get) -> str | None:
    url = get("openai.base_url")
    set_beside = [f"openai.{name}" for name in _STARTING if get(f"openai.{name}")]
    if url is not None and set_beside:
        return refused(
            f"openai.base_url cannot be combined with {set_beside[0]}: a server at a URL runs already",
            "leave openai.base_url out to have the server started, or the other to measure the one at the URL",
        )
    if url is None and not _starts(get):
        return refused(
            "engine openai needs a server: openai.base_url, openai.command and openai.image are all missing",
            "give openai.base_url of a running server, openai.command to start one, or openai.image to start one in a "
            "container",
        )
    return None


def _known_placeholders(get: Get) -> str | None:
    for path, text in _texts(get):
        for name in _PLACEHOLDER.findall(text):
            if name not in PLACEHOLDERS:
                near = suggest(name, PLACEHOLDERS)
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                return refused(f"{path}: unknown placeholder {{{name}}}", f"{near or ''} known are {known}".strip())
    return None


def _reaches(get: Get, name: str) -> bool:
    return any(f"{{{name}}}" in text for _, text in _texts(get))


def _reaches_server(get: Get) -> str | None:
    """A setting that does not reach the server would be recorded without being true."""
    if not _starts(get):
        return None
    for name in ("model", "port"):
        if not (_reaches(get, name) or (name == "model" and _reaches(get, "gguf"))):
            return refused(f"the server is not told its {name}: {{{name}}} {_NOWHERE}", f"add --{name} '{{{name}}}'")
    if _reaches(get, "model") and _reaches(get, "gguf"):
        return refused("the server gets its model twice, as {model} and as {gguf}", "leave one of them out")
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
            return refused(f"{path} {value} does not reach the server: {{{name}}} {_NOWHERE}", fix)
    passes_dummy = _reaches(get, "load_format") or any("dummy" in text for _, text in _texts(get))
    if get("weights") == "dummy" and not passes_dummy:
        fix = "write {load_format} where the server expects it: it becomes auto or dummy"
        return refused(f"weights dummy does not reach the server: {{load_format}} {_NOWHERE}", fix)
    return None


def _address(get: Get) -> str | None:
    """Refuses what is no address, and credentials, which every result would hold."""
    url = get("openai.base_url")
    try:
        if url is not None:
            api_url(str(url))
    except EngineSettingError as problem:
        return refused(problem.message, str(problem.fix))
    return None


def _concurrency(get: Get) -> str | None:
    if get("openai.concurrency") is not None and get("workload.arrival") is not None:
        return refused("openai.concurrency cannot be combined with workload.arrival", "put it into the arrival process")
    return None


SERVER_RULES = (
    Rule(("openai.base_url", *_GIVEN), _which_server, "openai"),
    Rule(_GIVEN, _known_placeholders, "openai"),
    Rule((*_GIVEN, "dtype", "revision", "weights", "openai.tensor_parallel_size"), _reaches_server, "openai"),
    Rule(("openai.concurrency", "workload.arrival"), _concurrency, "openai"),
    Rule(("openai.base_url",), _address, "openai"),
)
