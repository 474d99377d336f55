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

BOM = b"\xef\xbb\xbf"
DONE = b"[DONE]"
_DONE_LINE = b"data: [DONE]"
_BLANK = b"\n\n"
_DONE_EVENT = _DONE_LINE + _BLANK
_END = _BLANK + _DONE_EVENT
_SHORTEST = len(_DONE_LINE) + 3
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

    While bytes come they are kept as they are, and looked at only as far as it takes to see the end of the stream, or
    an error. They are cut into lines when somebody asks.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._done = False
        self._stray: bytes | None = None
        self._chunks: list[tuple[bytes, int]] = []
        self._closed_ns: int | None = None
        self._cut = b""
        self._rest: list[bytes] = []
        self._lines: list[bytes] = []
        self._times_ns: list[int] = []
        self._begins: list[int] = []
        self._open = self._begun = False

    def __len__(self) -> int:
        self._split()
        return len(self._lines)

    @property
    def done(self) -> bool:
        """Whether the stream has said that it is."""
        return self._done

    @property
    def stray(self) -> bytes | None:
        """The first line that is no event stream's."""
        self._split()
        return self._stray

    def feed(self, data: bytes, now_ns: int) -> None:
        """Bytes of the stream. Raises `RequestFailedError` where there are too many, or they tell of an error."""
        self.size_bytes += len(data)
        if self.size_bytes > LONGEST_BYTES:
            raise RequestFailedError("malformed", f"an answer of more than {LONGEST_BYTES} bytes")
        self._chunks.append((data, now_ns))
        ends = data[-len(_END) :] == _END or (data == _DONE_EVENT and not self._cut)
        if b"event:" in data or (DONE in data and not ends) or (self._cut and _tells(self._cut + data[: len(_END)])):
            self._split()
        elif ends:
            self._done = True
        self._cut = b"" if data[-2:] == _BLANK else (self._cut + data[-len(_END) :])[-len(_END) :]

    def close(self, now_ns: int) -> None:
        """The stream has ended. A line that was cut off is no event, except for one that lacks only its end."""
        self._closed_ns = now_ns
        if self._cut:
            self._split()

    def last(self, lines: int) -> Iterator[tuple[Any, int]]:
        """The events of the last lines with their times."""
        found = self._plain_end(lines)
        if found is not None:
            return iter(found)
        self._split()
        wanted = max(0, len(self._lines) - lines)
        return self._from(self._begins[bisect_right(self._begins, wanted) - 1] if self._begins else 0)

    def taken(self) -> Iterator[tuple[Any, int]]:
        """All events with their times, which are forgotten then."""
        self._split()
        yield from self._from(0)
        self._lines, self._times_ns, self._begins = [], [], []

    def _plain_end(self, wanted: int) -> list[tuple[Any, int]] | None:
        """`last` of whole events of one line each, as servers mostly send them; `None` for any others."""
        found: list[tuple[Any, int]] = []
        for place in reversed(range(len(self._chunks))):
            data, came_ns = self._chunks[place]
            if data[-2:] != _BLANK or b"\r" in data:
                return None
            lines = data[:-2].rsplit(_BLANK, wanted + 1)
            if len(lines) > wanted + 1 or (self._chunks[place - 1][0][-2:] != _BLANK if place else self._rest):
                # What stands first is more than a line, or the end of one.
                del lines[0]
            for line in reversed(lines):
                if line == _DONE_LINE:
                    continue
                if line[:5] != b"data:" or b"\n" in line:
                    return None
                try:
                    found.append((parsed(line[5:]), came_ns))
                except RequestFailedError:
                    return None
                if len(found) == wanted:
                    return found[::-1]
        return None

    def _split(self) -> None:
        """Cut what came into lines."""
        chunks, self._chunks = self._chunks, []
        for data, came_ns in chunks:
            self._take(data, came_ns)
        closed_ns, self._closed_ns = self._closed_ns, None
        if closed_ns is None:
            return
        rest, self._rest = b"".join(self._rest), []
        if rest[:5] == b"data:" and rest[5:].strip() != DONE:
            try:
                parsed(rest[5:])
            except RequestFailedError:
                rest = b""
        self._take(rest + _BLANK, closed_ns)

    def _take(self, data: bytes, now_ns: int) -> None:
        if b"\n" not in data and b"\r" not in data:
            self._rest.append(data)
            return
        if self._rest:
            data = b"".join((*self._rest, data))
            self._rest = []
        if not self._begun:
            self._begun, data = True, data.removeprefix(BOM)
        # Of bytes, this knows no other ends of lines than the standard: LF, CR, and both.
        lines = data.splitlines()
        if data[-1:] != b"\n":
            # A carriage return may be the first half of an end of line.
            self._rest = [lines.pop() + (b"\r" if data[-1:] == b"\r" else b"")]
        for line in lines:
            if line[:5] == b"data:":
                if len(line) < _SHORTEST and (word := line[5:].strip()) in (b"", DONE):
                    self._done = self._done or bool(word)
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
            elif self._stray is None and not line.startswith(_FIELDS):
                self._stray = line[:80]

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


def _tells(data: bytes) -> bool:
    """Whether bytes may hold the end of the stream, or name an event."""
    return DONE in data or b"event:" in data


def parsed(payload: bytes) -> Any:
    """The JSON of an answer or event. Raises `RequestFailedError`."""
    try:
        return parse_json(payload, "the answer", finite=False)
    except ValueError as problem:
        raise RequestFailedError("malformed", f"{problem}: {payload[:80]!r}") from None
