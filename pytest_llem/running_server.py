"""A server that the user runs: is it there, and what of a machine's devices is its own?"""

from __future__ import annotations

import socket
import sys
from urllib.parse import urlsplit

from pytest_llem.engines.openai.settings import api_url, unreachable
from pytest_llem.job import ExperimentConfig

CONNECT_S = 5.0


def runs_already(config: ExperimentConfig) -> bool:
    """Whether a configuration measures a server that was there before."""
    return config.engine == "openai" and config.settings.get("base_url") is not None


def require_reachable(config: ExperimentConfig) -> None:
    """Raise `ServerUnreachableError` when a server should run already, and nobody listens at its address."""
    if not runs_already(config):
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
    return sys.maxsize if runs_already(config) else allowed_bytes
