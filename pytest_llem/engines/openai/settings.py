"""The section `openai` of a study: any server that speaks the OpenAI API, and how its client reaches it.

Studies take their schema from it, the engine and its helpers call `read_settings`, and `servers` reads the address.
Standard library only; settings may be added, but names and defaults must stay: experiments' ids are made of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pytest_llem.errors import EngineSettingError, ServerUnreachableError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import expanded, open_regular
from pytest_llem.job.setting import Extra, Name, PositiveFloat, PositiveInt, section, setting
from pytest_llem.job.wire import decode

if TYPE_CHECKING:
    import ssl

Api = Literal["completions", "chat"]
LONGEST_CA_BYTES = 16 << 20
"""Chosen: the bundle of all public authorities has a quarter of a megabyte."""
PATHS: Mapping[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class OpenAISettings:
    """How to reach the server, or to start it."""

    base_url: Name | None = setting(None, "Where the server answers.", ["http://127.0.0.1:8000/v1"])
    command: tuple[Name, ...] | None = setting(
        None,
        "Starts the server, without a shell; {model} or {gguf}, {port} and others are filled in. Null: it is running "
        "already, or its image knows how.",
        [["vllm", "serve", "{model}", "--port", "{port}"]],
    )
    image: Name | None = setting(
        None,
        "Image that the server runs in; `command` then stands in place of the image's entry point.",
        ["vllm/vllm-openai:v0.26.0"],
    )
    server_args: tuple[Name, ...] = setting(
        (),
        "Arguments behind the command or the image's entry point, with the same placeholders.",
        [["--model", "{model}", "--port", "{port}", "--dtype", "{dtype}"]],
    )
    environment: Mapping[str, str] = section(
        dict,
        "Variables of the server that is started, with the same placeholders; no secrets.",
        [{"OMP_NUM_THREADS": "1"}],
    )
    tensor_parallel_size: PositiveInt = setting(
        1, "GPUs that are leased for the server, and filled in as {tensor_parallel_size}."
    )
    api: Api = setting("completions", "Which endpoint to use.")
    served_model: Name | None = setting(None, "Name of the model on the server; null asks for the first.")
    api_key_env: Name | None = setting(
        None, "Environment variable that holds the key; the key itself is never written down."
    )
    ca_file: Name | None = setting(
        None,
        "PEM file of the authority that signed the server's certificate, or of a self-signed one; relative to where "
        "pytest starts. It is trusted beside those of the system.",
        ["~/certificates/server.pem"],
    )
    concurrency: PositiveInt | None = setting(None, "Requests in flight, or sessions open; null is all at once.")
    stream: bool = setting(True, "Stream answers, so that token times are known.")
    request_timeout_s: PositiveFloat = setting(600.0, "Longest time of one request.")
    keep_server: bool = setting(
        True,
        "Whether a started server stays for the next cycles that need the same one; false starts it anew "
        "for every cycle, which gates then count as independent.",
    )
    ready_path: Name | None = setting(
        None, "Answers 200 once the server is ready; null asks /health, then /v1/models.", ["/ready"]
    )
    ready_timeout_s: PositiveFloat = setting(600.0, "Longest time until a started server answers.")
    enable_prefix_caching: bool | None = setting(
        None,
        "Whether the server reuses the cache of common prefixes: true keeps that, false says that it was "
        "started without. Null: it is found out, and emptied before every repeat.",
    )
    extra: Extra = section(dict, "Passed through: fields of the request's body.", [{"ignore_eos": True}])

    @property
    def gets_gguf(self) -> bool:
        """Whether the server that is started gets its model as a GGUF file."""
        return any("{gguf}" in text for text in (*(self.command or ()), *self.server_args, *self.environment.values()))


@dataclass(frozen=True)
class ClientSettings(OpenAISettings):
    """The settings with the server's address and the key. `base_url` ends with the API's version and no slash.

    `bare_url` is the address as the study has it, where that has no version. The key is in no representation of this.
    """

    base_url: str = ""
    bare_url: str | None = None
    api_key: str | None = field(default=None, repr=False)

    @property
    def root(self) -> str:
        """Where a server answers that is no part of the API: `/health`, `/metrics`."""
        return self.base_url.removesuffix("/v1")

    @property
    def answers_at(self) -> str:
        """The endpoint that is measured."""
        return self.base_url + PATHS[self.api]

    def without_key(self, text: str) -> str:
        """A text from outside, without the key, should a server repeat it."""
        return text.replace(self.api_key, "***") if self.api_key else text


def reuses_prefixes(config: ExperimentConfig) -> bool:
    """Whether prompts may find their beginnings in the server's cache; some are asked to look there by each request."""
    asked = config.settings.get("enable_prefix_caching")
    return config.workload.cache is not None if asked is None else bool(asked)


def read_settings(config: ExperimentConfig, environment: Mapping[str, str]) -> ClientSettings:
    """The client's settings. Raises `EngineSettingError` for an unknown one, a bad URL, or a key that is not set."""
    given = {key: value for key, value in config.settings.items() if value is not None}
    known = [setting.name for setting in fields(OpenAISettings)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise EngineSettingError(
                f"openai.{key}: there is no such setting",
                fix=f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(known)}",
                details={"key": f"openai.{key}"},
            )
    url = given.get("base_url")
    if not isinstance(url, str):
        raise EngineSettingError(
            "openai.base_url: not set, and no server was started",
            fix="set openai.base_url to the address of a running server, e.g. http://127.0.0.1:8000/v1",
        )
    api = given.get("api", "completions")
    if api not in PATHS:
        raise EngineSettingError(f"openai.api: unknown API {api!r}", fix=f"use one of: {', '.join(PATHS)}")
    try:
        bare, versioned = api_urls(url)
        settings = decode(ClientSettings, {**given, "base_url": versioned, "bare_url": bare}, "openai")
    except ValueError as problem:
        raise EngineSettingError(str(problem), fix="correct the setting's value") from None
    if settings.api_key_env is None:
        return settings
    return replace(settings, api_key=_key(settings.api_key_env, environment))


def api_url(url: str) -> str:
    """A base URL with version and no trailing slash; `EngineSettingError` for none, or one that holds credentials."""
    return api_urls(url)[1]


def api_urls(url: str) -> tuple[str | None, str]:
    """A base URL as it is, where it has no version, and with one; both without a trailing slash."""
    if "@" in url or "?" in url:
        raise EngineSettingError(
            "openai.base_url holds a user name, a password or a query, which would stand in every result",
            fix="end it at the path, and name an environment variable that holds the key in openai.api_key_env",
        )
    try:
        parts = urlsplit(url)
        why = "" if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 else "no http://HOST:PORT"
    except ValueError as problem:
        why = str(problem)
    if why:
        raise EngineSettingError(
            f"openai.base_url {url!r:.300} is not the URL of a server: {why}", fix="write it as http://HOST:PORT/v1"
        )
    bare = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return (None, bare) if re.search(r"/v\d\w*$", parts.path.rstrip("/")) else (bare, f"{bare}/v1")


_TLS_FIXES = {
    "WRONG_VERSION_NUMBER": "write openai.base_url with http://, or start the server with TLS",
    "mismatch": "write the host in openai.base_url as its certificate names it",
    "expired": "renew the server's certificate",
    "not yet valid": "set the clocks of both machines",
    "": "name the PEM file of the authority that signed its certificate, or of the self-signed one, in openai.ca_file",
}
"""Words of OpenSSL for what it refuses, and what helps."""


def unreachable(url: str, text: str, kind: str = "refused") -> ServerUnreachableError:
    """Nothing answers at a URL, or nothing that could be used: `kind` is the class of the failed request."""
    said = f"nothing answers at {url}"
    fix = "start the server, correct openai.base_url (port, http or https://), or set openai.command to have it started"
    if kind == "tls":
        said, fix = f"no safe connection to {url}", next(fix for word, fix in _TLS_FIXES.items() if word in text)
    elif kind == "malformed":
        said, fix = (
            f"what answers at {url} is no HTTP server",
            "correct openai.base_url; a server with TLS wants https://",
        )
    return ServerUnreachableError(f"{said}: {text}", fix=fix, details={"base_url": url})


def tls_context(settings: ClientSettings) -> ssl.SSLContext | Literal[True]:
    """What a server's certificate is held against. Raises `EngineSettingError` for a `ca_file` that holds none."""
    if settings.ca_file is None:
        return True
    import ssl

    context = ssl.create_default_context()
    try:
        with open_regular(expanded(settings.ca_file)) as stream:
            context.load_verify_locations(cadata=stream.read(LONGEST_CA_BYTES).decode("ascii", "replace"))
    except (OSError, ValueError, RuntimeError) as problem:
        raise EngineSettingError(
            f"openai.ca_file {settings.ca_file}: {problem}",
            fix="name a file with certificates in PEM form (BEGIN CERTIFICATE) that can be read where the client runs",
        ) from None
    return context


def _key(name: str, environment: Mapping[str, str]) -> str:
    key = environment.get(name, "").strip()
    if not key:
        raise EngineSettingError(
            f"openai.api_key_env: the environment variable {name} is not set where the client runs",
            fix=f"export {name}=... before starting pytest",
        )
    if not key.isprintable():
        raise EngineSettingError(
            f"openai.api_key_env: the environment variable {name} holds more than a line of text, which is no key",
            fix=f"export the key alone as {name}",
        )
    return key
