"""What a server is started with, from the settings of an experiment.

The rest of `servers`, and `session.measuring`, use it. `runner` keeps a server as long as the specifications of cycles
are equal: whatever a server would have to be restarted for must be a field of `ServerSpec`.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pytest_llem.engines.model_files import find_gguf, find_model
from pytest_llem.engines.openai import INFO
from pytest_llem.engines.openai.settings import OpenAISettings, api_url, unreachable
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.wire import decode
from pytest_llem.machine.devices import serves_already

ENGINE = INFO.name
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class ServerSpec:
    """All that a server would have to be started anew for; placeholders are unfilled, `model` as the study has it."""

    command: tuple[str, ...]
    image: str | None
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    model: str
    revision: str | None
    dtype: str | None
    weights: str
    tensor_parallel_size: int
    gets_gguf: bool
    devices: DeviceSet
    cpus: str | None = None
    numa_node: int | None = None

    @classmethod
    def of(cls, config: ExperimentConfig, devices: DeviceSet) -> ServerSpec:
        """What the experiment's server is started with on these devices."""
        settings = server_settings(config)
        return cls(
            command=settings.command or (),
            image=settings.image,
            arguments=settings.server_args,
            environment=tuple(sorted(settings.environment.items())),
            model=config.model,
            revision=config.revision,
            dtype=config.dtype,
            weights=config.weights,
            tensor_parallel_size=settings.tensor_parallel_size,
            gets_gguf=settings.gets_gguf,
            devices=devices,
            cpus=config.device.cpus,
            numa_node=config.device.numa_node,
        )

    @property
    def name(self) -> str:
        """What the server is called in messages: its image, its program, or the module or script that Python runs."""
        if self.image is not None:
            return self.image
        program = Path(self.command[0]).name
        words = [word for word in self.command[1:] if not word.startswith("-")]
        is_python = program.startswith("python") and words and "-c" not in self.command
        return Path(words[0]).name if is_python else program

    def model_location(self) -> str:
        """Absolute path of a built-in or local model, else its id on the hub. Raises `ModelNotFoundError`."""
        if self.gets_gguf:
            return str(Path(find_gguf(self.model).location).absolute())
        source = find_model(self.model, weights=self.weights != "dummy")
        return str(Path(source.location).absolute()) if source.local else source.location

    def filled(self, model: str, host: str, port: int) -> Launch:
        """Command, arguments and environment with everything filled in."""
        values = {
            "model": model,
            "gguf": model,
            "host": host,
            "port": str(port),
            "dtype": self.dtype or "auto",
            "load_format": "dummy" if self.weights == "dummy" else "auto",
            "revision": self.revision or "main",
            "tensor_parallel_size": str(self.tensor_parallel_size),
        }
        return Launch(
            command=tuple(_fill(text, values) for text in self.command),
            arguments=tuple(_fill(text, values) for text in self.arguments),
            environment={name: _fill(text, values) for name, text in self.environment},
        )


@dataclass(frozen=True)
class Launch:
    """One start of a server: nothing is left to be filled in."""

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def words(self) -> tuple[str, ...]:
        """The whole command line."""
        return self.command + self.arguments


def _fill(text: str, values: Mapping[str, str]) -> str:
    # Braces are common in such arguments (JSON): only what is known is a placeholder.
    return re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match[1], match[0]), text)


def server_settings(config: ExperimentConfig) -> OpenAISettings:
    """The settings of the section `openai`, which the study has checked."""
    given = {name: value for name, value in config.settings.items() if value is not None}
    return decode(OpenAISettings, given, ENGINE)


CONNECT_S = 5.0
"""Chosen: a server that exists accepts a connection at once, across an ocean within a second."""


def require_reachable(config: ExperimentConfig) -> None:
    """Raise `ServerUnreachableError` when a server should run already, and nobody listens at its address."""
    if not serves_already(config):
        return
    url = api_url(str(config.settings["base_url"]))
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
    except OSError as problem:
        raise unreachable(url, problem.strerror or str(problem)) from None


def residual_allowance(config: ExperimentConfig, allowed_bytes: int) -> int:
    """How much memory of its devices may be in use before a cycle: any, where a server has loaded its model there."""
    return sys.maxsize if serves_already(config) else allowed_bytes
