"""Sends and receives JSON lines over a Unix socket, with file descriptors beside them.

The fork servers, the resident worker and their clients in `runners` use it. Free to change: both sides run one version.
"""

from __future__ import annotations

import json
import socket
from typing import Any

LIMIT = 1 << 20
"""Bytes read at a time. Chosen: far longer than any message, a longer one is read in parts."""

MAX_DESCRIPTORS = 16
"""Chosen: a log, a control socket and the lease files of as many devices as a machine has."""


def send(channel: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one JSON line, with file descriptors where the other side needs them."""
    data = json.dumps(message).encode() + b"\n"
    if descriptors:
        socket.send_fds(channel, [data], list(descriptors))
    else:
        channel.sendall(data)


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One JSON line and its descriptors, `None` if the other side is gone; a line behind it stays for the next call."""
    data = b""
    descriptors: list[int] = []
    while not data.endswith(b"\n"):
        try:
            waiting = channel.recv(LIMIT, socket.MSG_PEEK)
            length = waiting.find(b"\n") + 1 or len(waiting)
            part, received, _, _ = socket.recv_fds(channel, max(length, 1), MAX_DESCRIPTORS)
        except ConnectionError:
            part, received = b"", []
        descriptors.extend(received)
        if not part:
            return None, descriptors
        data += part
    message: dict[str, Any] = json.loads(data)
    return message, descriptors
