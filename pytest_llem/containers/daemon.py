"""The connection to a Docker daemon: its address, whether it responds, and what it can do.

All that talks to Docker, servers and `llem doctor` too, starts with `connect` and wraps its calls in `docker_errors`;
`runner_plan` asks whether it answers. The address must be found as the `docker` command does, to reach the same daemon.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import docker
import requests
from docker.errors import APIError, DockerException
from docker.tls import TLSConfig

from pytest_llem.containers.errors import DockerError, translate_docker_error
from pytest_llem.errors import SettingsError

NO_IMAGE = "(none)"
T = TypeVar("T")


@dataclass(frozen=True)
class DaemonFacts:
    """What a daemon reports about itself. `local` means reached over a socket file of this machine."""

    address: str
    local: bool
    version: str
    api_version: str
    architecture: str
    rootless: bool
    gpus: bool
    runtimes: tuple[str, ...]
    root_dir: str


def daemon_address() -> tuple[str, TLSConfig | None]:
    """The daemon's address as the `docker` command finds it: DOCKER_HOST, the current context, a rootless socket."""
    host = os.environ.get("DOCKER_HOST")
    if host:
        return host, None
    from docker.context import ContextAPI

    try:
        name = os.environ.get("DOCKER_CONTEXT")
        context = ContextAPI.get_context(name) if name else ContextAPI.get_current_context()
    except DockerException as problem:
        raise _daemon_error(str(problem)) from None
    if context is not None and context.name != "default" and context.Host:
        return str(context.Host), context.TLSConfig
    if not Path("/var/run/docker.sock").exists():
        rootless = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")) / "docker.sock"
        if rootless.exists():
            return f"unix://{rootless}", None
    return "unix:///var/run/docker.sock", None


def connect(timeout_s: float = 60.0) -> docker.DockerClient:
    """A client of the daemon, after it has responded once; else `DockerError` (`daemon_down`, `daemon_permission`)."""
    address, tls = daemon_address()
    with docker_errors(NO_IMAGE):
        if address.startswith("ssh://"):
            return docker.DockerClient(base_url=bridge(address), version="auto", timeout=int(timeout_s))
        if os.environ.get("DOCKER_HOST"):
            return docker.from_env(version="auto", timeout=int(timeout_s))
        return docker.DockerClient(base_url=address, tls=tls or False, version="auto", timeout=int(timeout_s))


def daemon_answers(timeout_s: float = 3.0) -> bool:
    """Whether a daemon responds at all; detection of the runner asks this."""
    try:
        client = connect(timeout_s)
    except DockerError:
        return False
    client.close()
    return True


def daemon_facts(client: docker.DockerClient) -> DaemonFacts:
    """Ask the daemon about itself."""
    address, _ = daemon_address()
    with docker_errors(NO_IMAGE):
        info = client.info()
    runtimes = tuple(sorted(info.get("Runtimes") or {}))
    devices = info.get("DiscoveredDevices") or []
    cdi = any("nvidia.com/gpu" in str(device.get("ID", "")) for device in devices)
    return DaemonFacts(
        address=address,
        local=address.startswith("unix://"),
        version=str(info.get("ServerVersion")),
        api_version=str(client.api.api_version),
        architecture=str(info.get("Architecture")),
        rootless=any("rootless" in option for option in info.get("SecurityOptions") or ()),
        gpus="nvidia" in runtimes or cdi,
        runtimes=runtimes,
        root_dir=str(info.get("DockerRootDir")),
    )


@contextmanager
def docker_errors(image: str) -> Iterator[None]:
    """Turn whatever the SDK raises inside the block into a `DockerError` about `image`."""
    try:
        yield
    except APIError as problem:
        raise translate_docker_error(125, str(problem.explanation or problem), image) from None
    except DockerException as problem:
        raise translate_docker_error(125, str(problem), image) from None
    except (requests.exceptions.RequestException, ConnectionError) as problem:
        raise _daemon_error(str(problem)) from None


def _daemon_error(text: str) -> DockerError:
    return translate_docker_error(125, f"Cannot connect to the Docker daemon: {text}", NO_IMAGE)


@cache
def bridge(address: str) -> str:
    """The `unix://` address that leads to an `ssh://[USER@]HOST[:PORT]` daemon, for as long as this process lives."""
    command = ssh_command(address)
    directory = tempfile.TemporaryDirectory(prefix="llem-ssh-")
    path = Path(directory.name) / "docker.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    threading.Thread(target=_serve, args=(listener, command, directory), name="llem-ssh", daemon=True).start()
    return f"unix://{path}"


def ssh_command(address: str) -> list[str]:
    """The command whose streams are a connection to the daemon. `SettingsError` for an address without a host."""
    parts = urlsplit(address)
    if not parts.hostname or parts.hostname.startswith("-"):
        raise SettingsError(f"DOCKER_HOST={address}: no host", fix="write it as ssh://USER@HOST or ssh://HOST:PORT")
    command = ["ssh", "-T", "-o", "ConnectTimeout=30", "-o", "BatchMode=yes"]
    command += ["-l", parts.username] if parts.username else []
    command += ["-p", str(parts.port)] if parts.port else []
    return [*command, "--", parts.hostname, "docker system dial-stdio"]


def _serve(listener: socket.socket, command: list[str], directory: tempfile.TemporaryDirectory[str]) -> None:
    """Give each connection to an ssh of its own, which holds it from then on; keeps `directory` alive."""
    with directory:
        while True:
            connection, _ = listener.accept()
            with connection:
                # In a session of its own: a Ctrl-C is pytest's to handle, and must not cut the way to the daemon
                process = subprocess.Popen(
                    command, stdin=connection.fileno(), stdout=connection.fileno(), start_new_session=True
                )
            threading.Thread(target=process.wait, daemon=True).start()


def in_background(call: Callable[[], T], name: str) -> Future[T]:
    """The outcome of a call on a daemon thread: a pool would be joined, and a stalled call keep pytest from ending."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as problem:  # noqa: BLE001  it is raised again where the result is asked for
            outcome.set_exception(problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome
