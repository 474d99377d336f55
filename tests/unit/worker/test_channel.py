"""Lines over a socket: each message by itself, however fast they come."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pytest_llem.worker.channel import receive, send


def test_a_message_that_came_behind_another_is_received_by_itself() -> None:
    """A worker that fails at once has ended before the news of its start is read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(theirs, {"pid": 1})
        send(theirs, {"status": 256})
        assert receive(ours) == ({"pid": 1}, [])
        assert receive(ours) == ({"status": 256}, [])


def test_descriptors_stay_with_their_message() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Path(os.devnull).open("rb") as first:
        send(theirs, {"number": 1}, (first.fileno(),))
        send(theirs, {"number": 2})
        for number, count in ((1, 1), (2, 0)):
            message, descriptors = receive(ours)
            for descriptor in descriptors:
                os.close(descriptor)
            assert (message, len(descriptors)) == ({"number": number}, count)


def test_a_long_message_arrives_whole_and_a_closed_socket_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            send(theirs, {"text": "x" * 50_000})
            message, _ = receive(ours)
            assert message == {"text": "x" * 50_000}
        assert receive(ours) == (None, [])
