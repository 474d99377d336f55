"""Takes an event stream apart as the standard for server-sent events says, and reads the JSON in its events.

`answers` feeds it while a window is open, when it may only cut lines and note times, and reads its events afterwards.
https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from pytest_llem.job.files import parse_json

LONGEST_BYTES = 64 << 20
"""More than this is no answer."""

LAST_EVENTS = (1, 2, 4)
"""Among so many lines at the end of a stream are mostly its reason to end and its usage: the fewest are tried first."""

SEVERAL_BYTES = 512
"""Chosen: more than an event of one token has, so that bytes of this size mostly hold several."""

BOM = b"\xef\xbb\xbf"
DONE = b"[DONE]"
_DONE_LINE = len(b"data: [DONE]") + 3
_FIELDS = (b":", b"data", b"event", b"id", b"retry")


class RequestFailedError(Exception):
    """One request that got no usable answer; `kind` is its class, and the text says what was seen."""

    def __init__(self, kind: str, text: str) -> None:
        # Headers and paths may hold bytes that are no text, which no result could be written with.
        super().__init__(text.encode("utf-8", "replace").decode())
        self.kind = kind


class Events:
    """The events of one stream, however its bytes are cut, and when they came.

    A line of data that is JSON by itself is an event, since some servers leave out the blank line between events; other
    lines are joined up to the blank line. Comments, events without data and other fields are passed over.
    """

    def __init__(self) -> None:
        self.done = False
        self.size_bytes = 0
        self.stray: bytes | None = None
        self._rest: list[bytes] = []
        self._lines: list[bytes] = []
        self._times_ns: list[int] = []
        self._begins: list[int] = []
        self._open = self._begun = False

    def __len__(self) -> int:
        return len(self._lines)

    def feed(self, data: bytes, now_ns: int) -> None:
        """Bytes of the stream. Raises `RequestFailedError` where there are too many, or they tell of an error."""
        self.size_bytes += len(data)
        if self.size_bytes > LONGEST_BYTES:
            raise RequestFailedError("malformed", f"an answer of more than {LONGEST_BYTES} bytes")
        if b"\n" not in data and b"\r" not in data:
            self._rest.append(data)
            return
        if self._rest:
            data = b"".join((*self._rest, data))
            self._rest = []
        if not self._begun:
            self._begun, data = True, data.removeprefix(BOM)
        if len(data) > SEVERAL_BYTES and self._feed_plain(data, now_ns):
            return
        # Of bytes, this knows no other ends of lines than the standard: LF, CR, and both.
        lines = data.splitlines()
        if data[-1:] != b"\n":
            # A carriage return may be the first half of an end of line.
            self._rest = [lines.pop() + (b"\r" if data[-1:] == b"\r" else b"")]
        for line in lines:
            if line[:5] == b"data:":
                if len(line) < _DONE_LINE and (word := line[5:].strip()) in (b"", DONE):
                    self.done = self.done or bool(word)
                    self._open = self._open and not word
                    continue
                if not self._open:
                    self._begins.append(len(self._lines))
                    self._open = True
                self._lines.append(line)
                self._times_ns.append(now_ns)
            elif not line:
                self._open = False
            elif line[:6] == b"event:" and line[6:].strip() == b"error":
                raise RequestFailedError("server_error", "the stream holds an event of the type error")
            elif self.stray is None and not line.startswith(_FIELDS):
                self.stray = line[:80]

    def _feed_plain(self, data: bytes, now_ns: int) -> bool:
        """Take whole events of one line each, as servers mostly send them, at once; false for any others."""
        if self._open or b"\r" in data or data[-2:] != b"\n\n":
            return False
        # Splitting at single ends of lines is twice as fast as at blank lines.
        parts = data.split(b"\n")
        lines, between = parts[:-1:2], parts[1::2]
        if any(between):
            return False
        if data[:5] != b"data:" or data.count(b"\n\ndata:") != len(lines) - 1:
            return False
        done = lines[-1] == b"data: [DONE]"
        lines = lines[:-1] if done else lines
        if min(map(len, lines), default=0) < _DONE_LINE:
            return False
        self._begins += range(len(self._lines), len(self._lines) + len(lines))
        self._lines += lines
        self._times_ns += [now_ns] * len(lines)
        self.done = self.done or done
        return True

    def close(self, now_ns: int) -> None:
        """The stream has ended. A line that was cut off is no event, except for one that lacks only its end."""
        rest, self._rest = b"".join(self._rest), []
        if rest[:5] == b"data:" and rest[5:].strip() != DONE:
            try:
                parsed(rest[5:])
            except RequestFailedError:
                rest = b""
        self.feed(rest + b"\n\n", now_ns)

    def last(self, lines: int) -> Iterator[tuple[Any, int]]:
        """The events of the last lines with their times."""
        wanted = max(0, len(self._lines) - lines)
        return self._from(self._begins[bisect_right(self._begins, wanted) - 1] if self._begins else 0)

    def taken(self) -> Iterator[tuple[Any, int]]:
        """All events with their times, which are forgotten then."""
        yield from self._from(0)
        self._lines, self._times_ns, self._begins = [], [], []

    def last_ns(self, now_ns: int) -> int:
        """When the last line of data came."""
        return self._times_ns[-1] if self._times_ns else now_ns

    def _from(self, line: int) -> Iterator[tuple[Any, int]]:
        while line < len(self._lines):
            event, line = self._read(line)
            yield event, self._times_ns[line - 1]

    def _read(self, begin: int) -> tuple[Any, int]:
        """The event that begins with a line, and the number of the line behind it."""
        try:
            return parsed(self._lines[begin][5:]), begin + 1
        except RequestFailedError:
            behind = bisect_right(self._begins, begin)
            end = self._begins[behind] if behind < len(self._begins) else len(self._lines)
            if end == begin + 1:
                raise
        return parsed(b"\n".join(line[5:] for line in self._lines[begin:end])), end


def parsed(payload: bytes) -> Any:
    """The JSON of an answer or event. Raises `RequestFailedError`."""
    try:
        return parse_json(payload, "the answer", finite=False)
    except ValueError as problem:
        raise RequestFailedError("malformed", f"{problem}: {payload[:80]!r}") from None
