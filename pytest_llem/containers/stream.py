"""Reads a container's output while it runs: events go to the caller, everything else into `worker.log`.

`ephemeral`, `kept`, `runner` and `servers.container` attach to their containers with it. Nothing may be written
to the log before it is redacted.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from docker.utils.socket import SocketError, frames_iter

from pytest_llem.errors import JsonValue
from pytest_llem.job.events import EVENT_PREFIX
from pytest_llem.job.files import parse_object
from pytest_llem.job.redaction import hidden, redact

Event = dict[str, JsonValue]
_LONGEST_LINE_BYTES = 1 << 20
"""Chosen: output without an end of line is taken in parts of a megabyte, so that it cannot fill the memory."""

_KEPT_BYTES = 65536
"""Chosen: holds the tracebacks of all processes of a parallel engine."""


class Attachment:
    """The client's end of a container's streams; under `worker.lifeline` it lives while its input is attached."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._inner = getattr(raw, "_sock", None) or raw
        # The SDK's timeout of a minute would end the stream of a worker that is quiet for that long
        if hasattr(self._inner, "settimeout"):
            self._inner.settimeout(None)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Stream number (1 output, 2 error) and bytes, until the container or the connection ends."""
        with contextlib.suppress(SocketError, OSError, ValueError):
            yield from frames_iter(self._raw, tty=False)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Hang up; the reading thread's `frames` end too."""
        if hasattr(self._inner, "shutdown"):
            with contextlib.suppress(OSError):
                self._inner.shutdown(socket.SHUT_RDWR)
        for candidate in (self._raw, self._inner):
            with contextlib.suppress(OSError):
                candidate.close()


class OutputPump:
    """Reads frames on a thread: events for `next_event` and `events_file`, everything else, redacted, for the log."""

    def __init__(
        self,
        frames: Iterable[tuple[int, bytes]],
        log: Path,
        events_file: IO[str] | None = None,
    ) -> None:
        self._frames = frames
        self._log_path = log
        self._secrets = hidden()
        self._events_file = events_file
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._kept = ""
        self._thread = threading.Thread(target=self._run, name="llem-container-output", daemon=True)
        self.ended = False

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or `None` after `timeout_s` or at the end of the stream (`ended` is true then)."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if event is None:
            self.ended = True
        return event

    def rest(self, timeout_s: float) -> Iterator[Event]:
        """The events that were read and not yet taken, waiting at most `timeout_s` for the stream's end."""
        self._thread.join(timeout_s)
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if event is None:
                self.ended = True
                return
            yield event

    @property
    def last_output(self) -> str:
        """The end of what went to the log (at most 64 KiB), to classify an error."""
        return self._kept

    def _run(self) -> None:
        rests: dict[int, bytes] = {}
        with self._log_path.open("a", encoding="utf-8", errors="replace") as log:
            for stream, data in self._frames:
                *lines, rests[stream] = (rests.get(stream, b"") + data).split(b"\n")
                if len(rests[stream]) > _LONGEST_LINE_BYTES:
                    lines.append(rests.pop(stream))
                for line in lines:
                    self._take(line, log)
            for rest in rests.values():
                if rest:
                    self._take(rest, log)
        self._events.put(None)

    def _take(self, line: bytes, log: IO[str]) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text.startswith(EVENT_PREFIX):
            event = _parse(text[len(EVENT_PREFIX) :])
            if event is not None:
                if self._events_file:
                    self._events_file.write(text[len(EVENT_PREFIX) :] + "\n")
                    self._events_file.flush()
                self._events.put(event)
                return
        text = redact(text, self._secrets)
        self._kept = (self._kept + text + "\n")[-_KEPT_BYTES:]
        log.write(text + "\n")
        log.flush()


def _parse(text: str) -> Event | None:
    try:
        return parse_object(text, "an event")
    except ValueError:
        return None
