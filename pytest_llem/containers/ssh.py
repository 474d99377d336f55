"""A daemon behind ssh as a socket file of this machine.

The SDK wants paramiko for `ssh://` addresses. The `ssh` command is there wherever such an address works for `docker`,
and knows the user's keys and configuration, so each connection to the socket becomes one
`ssh HOST docker system dial-stdio`.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from pytest_llem.errors import SettingsError


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
    """The command whose standard streams are a connection to the daemon.

    `SettingsError` for an address without a host.
    """
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
