"""The section `openai` of a study as the client needs it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import urlsplit

from pytest_llem.errors import EngineSettingError, JsonValue, ServerUnreachableError
from pytest_llem.job.config import ExperimentConfig

CLIENT = (
    "base_url",
    "api",
    "served_model",
    "api_key_env",
    "concurrency",
    "stream",
    "request_timeout_s",
    "ready_timeout_s",
    "enable_prefix_caching",
    "extra",
)
SERVER = ("command", "image", "server_args", "environment", "tensor_parallel_size", "ready_path", "keep_server")
"""Settings of a server that the pytest side starts; the client has no use for them."""

Api = Literal["completions", "chat"]
PATHS: Mapping[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class ClientSettings:
    """How to reach the server. `base_url` ends with the API's version and no slash, `root` is what lies above it.

    `enable_prefix_caching` is what the user knows of the server's prefix cache, `None` where it is to be found out. The
    key is in no representation of this.
    """

    base_url: str
    api: Api = "completions"
    served_model: str | None = None
    api_key_env: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int | None = None
    stream: bool = True
    request_timeout_s: float = 600.0
    ready_timeout_s: float = 600.0
    enable_prefix_caching: bool | None = None
    extra: Mapping[str, JsonValue] = field(default_factory=dict)

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
    known = {key: value for key, value in config.settings.items() if value is not None}
    for key in known:
        if key not in CLIENT and key not in SERVER:
            near = difflib.get_close_matches(key, CLIENT, n=1)
            raise EngineSettingError(
                f"openai.{key}: there is no such setting",
                fix=f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(CLIENT)}",
                details={"key": f"openai.{key}"},
            )
    url = known.get("base_url")
    if not isinstance(url, str):
        raise EngineSettingError(
            "openai.base_url: not set, and no server was started",
            fix="set openai.base_url to the address of a running server, e.g. http://127.0.0.1:8000/v1",
        )
    api = str(known.get("api", "completions"))
    if api not in PATHS:
        raise EngineSettingError(f"openai.api: unknown API {api!r}", fix=f"use one of: {', '.join(PATHS)}")
    name, concurrency, extra = known.get("api_key_env"), known.get("concurrency"), known.get("extra", {})
    if not isinstance(extra, Mapping):
        raise EngineSettingError(f"openai.extra: expected a mapping, got {type(extra).__name__}", fix="write a mapping")
    prefix = known.get("enable_prefix_caching")
    return ClientSettings(
        base_url=api_url(url),
        api=cast("Api", api),
        served_model=str(known["served_model"]) if "served_model" in known else None,
        api_key_env=str(name) if name is not None else None,
        api_key=_key(str(name), environment) if name is not None else None,
        concurrency=concurrency if isinstance(concurrency, int) else None,
        stream=bool(known.get("stream", True)),
        request_timeout_s=_seconds(known, "request_timeout_s"),
        ready_timeout_s=_seconds(known, "ready_timeout_s"),
        enable_prefix_caching=prefix if isinstance(prefix, bool) else None,
        extra=dict(extra),
    )


def api_url(url: str) -> str:
    """A base URL with scheme and version and without a trailing slash; `EngineSettingError` for what is none.

    Credentials do not belong in it: a study and its results hold the URL as it is.
    """
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


def _seconds(known: Mapping[str, JsonValue], name: str) -> float:
    value = known.get(name, 600.0)
    return float(value) if isinstance(value, (int, float)) else 600.0
