"""The section `openai` of a study: any server that speaks the OpenAI API, and how its client reaches it.

Studies take their schema from it, the engine and its helpers call `read_settings`, and `servers` reads the address.
Standard library only; settings may be added, but names and defaults must stay: experiments' ids are made of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal
from urllib.parse import urlsplit

from pytest_llem.errors import EngineSettingError, ServerUnreachableError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.setting import Extra, Name, PositiveFloat, PositiveInt, section, setting
from pytest_llem.job.wire import decode

Api = Literal["completions", "chat"]
PATHS: Mapping[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class OpenAISettings:
    """How to reach the server, or to start it."""

    base_url: Name | None = setting(None, "Where the server answers.", ["http://127.0.0.1:8000/v1"])
    command: tuple[Name, ...] | None = setting(
        None,
        "Starts the server, without a shell; {model}, {port} and others are filled in. Null: it is running "
        "already, or its image knows how.",
        [["vllm", "serve", "{model}", "--port", "{port}"]],
    )
    image: Name | None = setting(
        None,
        "Image that the server runs in; `command` then stands in place of the image's entry point.",
        ["vllm/vllm-openai:latest"],
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
    concurrency: PositiveInt | None = setting(None, "Requests in flight; null is all prompts at once.")
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


@dataclass(frozen=True)
class ClientSettings(OpenAISettings):
    """The settings with the server's address and the key. `base_url` ends with the API's version and no slash.

    The key is in no representation of this.
    """

    base_url: str = ""
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
        settings = decode(ClientSettings, {**given, "base_url": api_url(url)}, "openai")
    except ValueError as problem:
        raise EngineSettingError(str(problem), fix="correct the setting's value") from None
    if settings.api_key_env is None:
        return settings
    return replace(settings, api_key=_key(settings.api_key_env, environment))


def api_url(url: str) -> str:
    """A base URL with version and no trailing slash; `EngineSettingError` for none, or one that holds credentials."""
    parts = urlsplit(url)
    if "@" in url or parts.query:
        raise EngineSettingError(
            "openai.base_url holds a user name, a password or a query, which would stand in every result",
            fix="end it at the path, and name an environment variable that holds the key in openai.api_key_env",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineSettingError(
            f"openai.base_url {url!r} is not the URL of a server", fix="write it as http://HOST:PORT/v1"
        )
    path = parts.path.rstrip("/")
    if not path.rpartition("/")[2].startswith("v"):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def unreachable(url: str, text: str) -> ServerUnreachableError:
    """Nothing answers at a URL."""
    return ServerUnreachableError(
        f"nothing answers at {url}: {text}",
        fix="start the server, correct openai.base_url, or set openai.command to have it started",
        details={"base_url": url},
    )


def _key(name: str, environment: Mapping[str, str]) -> str:
    key = environment.get(name, "").strip()
    if not key:
        raise EngineSettingError(
            f"openai.api_key_env: the environment variable {name} is not set where the client runs",
            fix=f"export {name}=... before starting pytest",
        )
    return key
