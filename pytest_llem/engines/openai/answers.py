"""Parses an answer of a server: while it arrives no more than its begin and end, and the rest when no window is open.

`client` feeds it, and the rest of the folder reads it; the `kind` of a failure is part of the results and must stay. A
stream's events are not tokens: `usage` gives the number of tokens, and a token has a time only if the server says which
event carried it (vLLM: `token_ids`; llama.cpp: `timings.predicted_n`) or if there were as many events as tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_llem.engines.openai.settings import Api
from pytest_llem.engines.protocol import Completion, Request

LONGEST_BYTES = 64 << 20
"""More than this is no answer."""

LAST_EVENTS = 4
"""Among so many events at the end of a stream are its reason to end and its usage."""

FINISHED = {
    "length": ("length", "max_tokens", "model_length"),
    "stop": ("stop", "eos", "eos_token", "stop_sequence", "end_turn"),
}
"""The reasons to end, and the words that servers have for them; another one stays as it is."""

LONGEST_REASON = 40
"""Chosen: the known words have at most 14 letters, and results hold a count by each."""

DONE = b"[DONE]"
_DONE_LINE = len(b"data: [DONE]") + 3


class RequestFailedError(Exception):
    """One request that got no usable answer; `kind` is its class, and the text says what was seen."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Answer:
    """Takes in one answer, streamed (`feed`, `close`) or `whole`; both raise `RequestFailedError`: trust no server."""

    def __init__(self, api: Api, *, timed: bool = False) -> None:
        self.first_ns: int | None = None
        self.done = False
        self.size_bytes = 0
        self._pieces = Pieces(chat=api == "chat", timed=timed)
        self._rest = b""
        self._events: list[bytes] = []
        self._times_ns: list[int] = []
        self._looked = 0
        self._end = Pieces(chat=api == "chat", timed=False)
        self._last_ns = 0

    @property
    def timings(self) -> Mapping[str, Any] | None:
        """The server's own times of this request, as far as it tells."""
        return self._end.timings

    def feed(self, data: bytes, now_ns: int) -> None:
        """Bytes of an event stream, however they are cut, and when they came."""
        self.size_bytes += len(data)
        if self.size_bytes > LONGEST_BYTES:
            raise RequestFailedError("malformed", f"an answer of more than {LONGEST_BYTES} bytes")
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line[:5] == b"data:":
                if len(line) < _DONE_LINE and line[5:].strip() == DONE:
                    self.done = True
                else:
                    self._events.append(line)
                    self._times_ns.append(now_ns)
        if self.first_ns is None:
            self._look_for_the_first(now_ns)

    def close(self, now_ns: int) -> None:
        """The stream has ended."""
        if self._rest[:5] == b"data:":
            rest, self._rest = self._rest, b""
            self.feed(rest + b"\n", now_ns)
        for event in reversed(self._events[-LAST_EVENTS:]):
            self._end.take(_parsed(event[5:]), 0)
            if self._end.reason is not None and self._end.usage:
                break
        if not self.done and self._end.reason is None:
            raise RequestFailedError("dropped", f"the stream ended after {len(self._events)} events, without an end")
        self._last_ns = self._last_part_ns(now_ns)

    def whole(self, body: bytes, now_ns: int) -> None:
        """An answer that was not streamed: when its first token was there, nobody knows."""
        self._end.take(_parsed(body), now_ns)
        self._pieces = self._end
        self._last_ns = now_ns

    def completion(self, request: Request, start_ns: int, *, sent_tokens: int | None) -> Completion:
        """What is known of the request before `read`; `sent_tokens` counts its prompt where the server does not."""
        usage = self._end.usage
        count = count_of(usage, "completion_tokens")
        if count is None:
            self._read_events()
            count = self._pieces.tokens or None
        if count is None:
            raise RequestFailedError("no_usage", "the answer does not say how many tokens it has")
        given = count_of(usage, "prompt_tokens")
        given = given if given is not None else sent_tokens
        if given is None:
            raise RequestFailedError("no_usage", "the answer does not say how many tokens the prompt has")
        return Completion(
            index=request.index,
            input_tokens=given,
            output_ids=(),
            start_ns=start_ns,
            end_ns=self._last_ns,
            finish_reason=self._finish(count, request),
            cached_tokens=self._end.cached,
            output_tokens=count,
            first_token_ns=self.first_ns,
        )

    def read(self, completion: Completion) -> Completion:
        """The completion with its text, and with ids and times of its tokens where the server tells them."""
        self._read_events()
        pieces, count, text = self._pieces, completion.generated, "".join(self._pieces.texts)
        if len(pieces.times_ns) > count or (text and not count):
            said = f"{count} tokens are said to be in {max(len(pieces.times_ns), 1)} pieces of text"
            raise RequestFailedError("wrong_usage", said)
        times = chunks = None
        if self.first_ns is not None or not count:
            times = next((tuple(t) for t in (pieces.told_ns, pieces.times_ns) if len(t) == count), None)
            chunks = tuple(pieces.arrivals_ns)
        # Usage, and the reason to end, may come long after the last token.
        return dataclasses.replace(
            completion,
            output_ids=tuple(pieces.ids) if len(pieces.ids) == count else (),
            token_times_ns=times,
            end_ns=(times or chunks or (completion.end_ns,))[-1],
            text=text,
            chunk_times_ns=None if chunks == tuple(dict.fromkeys(times or ())) else chunks,
        )

    def _read_events(self) -> None:
        events, times_ns = self._events, self._times_ns
        self._events, self._times_ns = [], []
        for event, now_ns in zip(events, times_ns, strict=True):
            self._pieces.take(_parsed(event[5:]), now_ns)

    def _look_for_the_first(self, now_ns: int) -> None:
        """Parse events until one of them holds a part of the answer: a stream may begin with others."""
        for event in self._events[self._looked :]:
            self._looked += 1
            seen = Pieces(chat=self._pieces.chat, timed=self._pieces.timed)
            seen.take(_parsed(event[5:]), now_ns)
            if seen.arrivals_ns:
                self.first_ns = now_ns
                return

    def _last_part_ns(self, now_ns: int) -> int:
        """When the last event came that held a part of the answer; as far as is known before `read`."""
        latest = list(zip(self._events, self._times_ns, strict=True))[-LAST_EVENTS:]
        for event, event_ns in reversed(latest):
            seen = Pieces(chat=self._pieces.chat, timed=False)
            seen.take(_parsed(event[5:]), event_ns)
            if seen.arrivals_ns:
                return event_ns
        return latest[-1][1] if latest else now_ns

    def _finish(self, count: int, request: Request) -> str:
        reason = self._end.reason
        if reason is None:
            return "length" if count >= request.max_new_tokens else "stop"
        return next((known for known, words in FINISHED.items() if reason in words), reason[:LONGEST_REASON])


def _parsed(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        raise RequestFailedError("malformed", f"not JSON: {payload[:80]!r}") from None


MOST_TOKENS = 1 << 16
"""More tokens than these are in no piece."""


@dataclass
class Pieces:
    """Texts with their times, and token `ids` with theirs (`told_ns`); `timed` if events state the count so far.

    `arrivals_ns` are the times of the events that brought either.
    """

    chat: bool
    timed: bool
    texts: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    told_ns: list[int] = field(default_factory=list)
    arrivals_ns: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] | None = None
    reason: str | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the server told of, without its usage."""
        return len(self.ids) or len(self.told_ns)

    @property
    def cached(self) -> int | None:
        """Tokens of the prompt that came from a cache; `None` where the server does not tell."""
        details = self.usage.get("prompt_tokens_details")
        cached = count_of(details, "cached_tokens") if isinstance(details, Mapping) else None
        return cached if cached is not None else count_of(self.timings or {}, "cache_n")

    def take(self, event: Any, now_ns: int) -> None:
        """One event. Raises `RequestFailedError` where it is none of this API, or an error."""
        try:
            self._take(event, now_ns)
        except (AttributeError, IndexError, KeyError, TypeError) as problem:
            said = str(event)[:80]
            raise RequestFailedError("malformed", f"no answer of this API ({problem!r}): {said}") from None

    def _take(self, event: Any, now_ns: int) -> None:
        if event.get("error"):
            raise RequestFailedError("server_error", str(event["error"])[:300])
        timings = event.get("timings")
        if isinstance(timings, Mapping):
            self.timings = timings
        if event.get("usage"):
            self.usage = _mapping(event["usage"])
        choices = event["choices"]
        if not choices:
            return
        choice = choices[0]
        text, told = self._text(choice), len(self.told_ns)
        if text:
            self.texts.append(text)
            self.times_ns.append(now_ns)
        ids = choice.get("token_ids")
        if ids:
            self.ids += [int(value) for value in ids]
            self.told_ns += [now_ns] * len(ids)
        elif self.timed and timings is not None:
            fresh = (count_of(timings, "predicted_n") or 0) - len(self.told_ns)
            self.told_ns += [now_ns] * min(fresh, MOST_TOKENS)
        if text or len(self.told_ns) > told:
            self.arrivals_ns.append(now_ns)
        if choice.get("finish_reason"):
            self.reason = str(choice["finish_reason"])

    def _text(self, choice: Any) -> str:
        if not self.chat:
            return str(choice.get("text") or "")
        message = choice.get("delta") or choice.get("message") or {}
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        return str(thoughts) + str(message.get("content") or "")


def count_of(values: Mapping[str, Any], name: str) -> int | None:
    """A count that a server states; `None` where it is absent, `RequestFailedError` where it is no count."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestFailedError("wrong_usage", f"{name} is {value!r}")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("usage is no object")
    return value


def of_status(status: int, text: str) -> RequestFailedError:
    """The failure that an HTTP status stands for."""
    kind = "http_429" if status == 429 else f"http_{status // 100}xx"
    return RequestFailedError(kind, f"HTTP {status}: {' '.join(text.split())[:300]}")


def counted(completions: Iterable[Completion]) -> str:
    """The failures by class, in words: `2 timeout, 1 http_429`."""
    classes = Counter(c.failure or "error" for c in completions if c.error is not None)
    return ", ".join(f"{count} {kind}" for kind, count in classes.most_common())


MOST_BYTES = 256 << 20
"""More than this is not kept: then answers are read as they come."""


class Backlog:
    """The unread answers by their completion. `clean` hides secrets in what a server says."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._unread: dict[int, tuple[Completion, Answer]] = {}
        self._size_bytes = 0

    def clear(self) -> None:
        """Forget what nobody will ask for."""
        self._unread.clear()
        self._size_bytes = 0

    def add(self, completion: Completion, answer: Answer) -> Completion:
        """Keep an answer for later; returns its completion, as it is then to be used."""
        if self._size_bytes + answer.size_bytes > MOST_BYTES:
            return self._read(completion, answer)
        self._size_bytes += answer.size_bytes
        self._unread[id(completion)] = completion, answer
        return completion

    def read(self, completions: Sequence[Completion]) -> list[Completion]:
        """The completions with all that their answers say; what cannot be read has failed."""
        return [self._read(*self._unread.pop(id(c), (c, None))) for c in completions]

    def _read(self, completion: Completion, answer: Answer | None) -> Completion:
        if answer is None:
            return completion
        try:
            return answer.read(completion)
        except RequestFailedError as failure:
            return failed(completion, failure, self._clean)


def failed(completion: Completion, failure: RequestFailedError, clean: Callable[[str], str] = str) -> Completion:
    """A completion that turned out to be none: it counts nowhere."""
    return dataclasses.replace(
        completion,
        output_tokens=0,
        finish_reason="error",
        error=f"{failure.kind}: {clean(str(failure))}",
        failure=failure.kind,
        first_token_ns=None,
        cached_tokens=None,
    )
