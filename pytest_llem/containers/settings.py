"""The `docker:` section of a study: how containers are made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, cast, get_args

from pytest_llem.errors import JsonValue, SettingsError

Lifecycle = Literal["ephemeral", "session"]
Network = Literal["auto", "none", "host", "bridge"]
Pull = Literal["missing", "never", "always"]

_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class DockerSettings:
    """How containers are made.

    `lifecycle` is one container per cycle (`ephemeral`) or per image and device set (`session`). `memory_bytes` of
    `None` sets no limit. `network` of `auto` is none unless the workload needs one. `max_restarts` bounds how often an
    unhealthy session container is replaced, `residual_bytes` is how much GPU memory may be in use before a cycle in it.
    """

    lifecycle: Lifecycle = "ephemeral"
    memory_bytes: int | None = None
    shm_size_bytes: int = 8 * 2**30
    network: Network = "auto"
    pull: Pull = "missing"
    pull_timeout_s: float = 3600.0
    max_restarts: int = 2
    residual_bytes: int = 100 * 2**20
    pids_limit: int = 8192
    capabilities: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, data: Mapping[str, JsonValue]) -> DockerSettings:
        """Read the section; sizes are `memory: 32g` and `shm_size: 16g`.

        Raises `SettingsError` that names the key.
        """
        names = {"memory": "memory_bytes", "shm_size": "shm_size_bytes", "residual": "residual_bytes"}
        known = {field.name for field in fields(cls)}
        values: dict[str, object] = {}
        for key, value in data.items():
            name = names.get(key, key)
            if name not in known:
                accepted = sorted(known - set(names.values()) | set(names))
                raise SettingsError(f"docker.{key}: unknown setting", fix=f"use one of: {', '.join(accepted)}")
            values[name] = _value(key, name, value)
        return cls(**values)  # type: ignore[arg-type]


_CHOICES = {"lifecycle": get_args(Lifecycle), "network": get_args(Network), "pull": get_args(Pull)}


def _value(key: str, name: str, value: JsonValue) -> object:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise SettingsError(f"docker.{key}: {value!r}", fix=f"use one of: {', '.join(_CHOICES[name])}")
        return value
    if name.endswith("_bytes"):
        return None if value is None and name == "memory_bytes" else parse_size(value, f"docker.{key}")
    if name in ("capabilities", "mounts"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise SettingsError(f"docker.{key}: expected a list of texts, got {value!r}")
        return tuple(cast("list[str]", value))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise SettingsError(f"docker.{key}: expected a number that is not negative, got {value!r}")
    return float(value) if name == "pull_timeout_s" else int(value)


def parse_size(value: JsonValue, where: str) -> int:
    """Bytes from `16g`, `512m`, `1.5g` or a plain number; units are powers of 1024."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", str(value).strip().lower())
    if isinstance(value, str) and match and float(match[1]) > 0:
        return int(float(match[1]) * _UNITS[match[2]])
    raise SettingsError(f"{where}: {value!r} is not a size", fix="write it like 512m or 16g")
