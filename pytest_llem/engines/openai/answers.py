"""Parses an answer of a server: while it arrives no more than its begin and end, and the rest when no window is open.

`client` feeds it, and the rest of the folder reads it; the `kind` of a failure is part of the results and must stay. A
stream's events are not tokens: `usage` gives the number of tokens, and a token has a time only if the server says which
event carried it (vLLM: `token_ids`; llama.cpp: `timings.predicted_n`) or if there were as many events as tokens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pytest_llem.engines.openai.events import BOM, LAST_EVENTS, Events, RequestFailedError, parsed
from pytest_llem.engines.openai.settings import Api
from pytest_llem.engines.protocol import Completion, Request

FINISHED = {
    "length": ("length", "max_tokens", "model_length"),
    "stop": ("stop", "eos", "eos_token", "stop_sequence", "end_turn"),
}
"""The reasons to end, and the words that servers have for them; another one stays as it is."""

LONGEST_REASON = 40
"""Chosen: the known words have at most 14 letters, and results hold a count by each."""

GIVEN_UP = ("abort", "aborted", "error", "cancelled", "canceled", "timeout")
"""The reasons to end with which servers say that they did not finish an answer."""


class Answer:
    """Takes in one answer, streamed (`feed`, `close`) or `whole`; both raise `RequestFailedError`: trust no server."""

    def __init__(self, api: Api, *, timed: bool = False) -> None:
        self._pieces = self._end = Pieces(chat=api == "chat", timed=timed)
        self._events = Events()
        self._streamed = True
        self._last_ns = 0
        self.feed = self._events.feed
        """Takes bytes of an event stream, however they are cut, and when they came."""

    @property
    def timings(self) -> Mapping[str, Any] | None:
        """The server's own times of this request, as far as it tells."""
        return self._end.timings

    @property
    def done(self) -> bool:
        """Whether the stream has said that it is."""
        return self._events.done

    @property
    def begun(self) -> bool:
        """Whether a part of the answer has come, of one that failed."""
        with suppress(RequestFailedError):
            self._read_events()
        return bool(self._pieces.arrivals_ns)

    @property
    def size_bytes(self) -> int:
        """How much of a stream came."""
        return self._events.size_bytes

    def close(self, now_ns: int) -> None:
        """The stream has ended."""
        self._events.close(now_ns)
        self._last_ns = now_ns
        for wanted in LAST_EVENTS:
            self._end = Pieces(chat=self._pieces.chat, timed=False)
            for event, event_ns in self._events.last(wanted):
                self._end.take(event, event_ns)
                self._last_ns = event_ns
            if self._end.reason is not None and self._end.usage:
                break
        if self._end.reason is None and not self.done:
            self._read_events()
            self._end = self._pieces
        if self._end.reason is None and not self.done:
            count = len(self._events)
            if not count and self._events.stray is not None:
                raise RequestFailedError("malformed", f"no event stream: {self._events.stray!r}")
            raise RequestFailedError("dropped", f"the stream ended after {count} events, without an end")
        self._last_ns = (self._end.arrivals_ns or (self._last_ns,))[-1]

    def whole(self, body: bytes, now_ns: int) -> None:
        """An answer that was not streamed: when its first token was there, nobody knows."""
        self._streamed = False
        self._pieces.take(parsed(body.removeprefix(BOM)), now_ns)
        self._require_choices(self._pieces)
        self._last_ns = now_ns

    def completion(
        self,
        request: Request,
        start_ns: int,
        *,
        sent_tokens: int | None,
        due_ns: int | None = None,
        sent_ns: int | None = None,
        retries: int = 0,
    ) -> Completion:
        """What is known of the request before `read`; `sent_tokens` counts its prompt where the server does not."""
        if self._end.usage.get("completion_tokens") is None:
            # Events without it may have come behind.
            self._read_events()
            self._end = self._pieces
        count = count_of(self._end.usage, "completion_tokens")
        count = count if count is not None else self._pieces.tokens or None
        if count is None:
            raise RequestFailedError("no_usage", "the answer does not say how many tokens it has")
        if self._end.reason in GIVEN_UP:
            raise RequestFailedError("server_error", f"the server did not finish the answer: {self._end.reason}")
        given = count_of(self._end.usage, "prompt_tokens")
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
            due_ns=due_ns,
            sent_ns=sent_ns,
            retries=retries,
        )

    def read(self, completion: Completion) -> Completion:
        """The completion with its text, and with ids and times of its tokens where the server tells them."""
        self._read_events()
        self._require_choices(self._pieces)
        pieces, count, text = self._pieces, completion.generated, "".join(self._pieces.texts)
        if len(pieces.times_ns) > count or (text and not count):
            said = f"{count} tokens are said to be in {max(len(pieces.times_ns), 1)} pieces of text"
            raise RequestFailedError("wrong_usage", said)
        if pieces.uncounted and pieces.tokens != count:
            raise RequestFailedError(
                "wrong_usage", f"after a usage of {count} tokens came more text, and no other usage"
            )
        first_ns = times = chunks = None
        if self._streamed and (pieces.arrivals_ns or not count):
            first_ns = next(iter(pieces.arrivals_ns), None)
            times = next((tuple(t) for t in (pieces.told_ns, pieces.times_ns) if len(t) == count), None)
            chunks = tuple(pieces.arrivals_ns)
        # Usage, and the reason to end, may come long after the last token.
        return dataclasses.replace(
            completion,
            output_ids=tuple(pieces.ids) if len(pieces.ids) == count else (),
            token_times_ns=times,
            first_token_ns=first_ns,
            end_ns=(times or chunks or (completion.end_ns,))[-1],
            text=text,
            said=None if (said := "".join(pieces.said)) == text or not pieces.chat else said,
            chunk_times_ns=None if chunks == tuple(dict.fromkeys(times or ())) else chunks,
        )

    def _read_events(self) -> None:
        for event, now_ns in self._events.taken():
            self._pieces.take(event, now_ns)

    def _require_choices(self, pieces: Pieces) -> None:
        if not pieces.choices:
            raise RequestFailedError("malformed", "the answer has no choices")

    def _finish(self, count: int, request: Request) -> str:
        reason = self._end.reason
        if reason is None:
            return "length" if count >= request.max_new_tokens else "stop"
        return next((known for known, words in FINISHED.items() if reason in words), reason[:LONGEST_REASON])


MOST_TOKENS = 1 << 24
"""More tokens than these are in no request. Chosen: above the longest context of any model, 10 million tokens."""

MOST_IN_PIECE = 1 << 16
"""More tokens than these are in no piece."""

LARGEST_ID = 1 << 31
"""Chosen: ids are 32-bit integers in every tokenizer."""


@dataclass
class Pieces:
    """Texts with their times, and token `ids` with theirs (`told_ns`); `timed` if events state the count so far.

    `said` is what a chat says in the texts, without thoughts and calls.

    `uncounted` is whether text came after the last usage, which then cannot be that of the whole answer.
    `arrivals_ns` are the times of the events that brought either.
    """

    chat: bool
    timed: bool
    texts: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    told_ns: list[int] = field(default_factory=list)
    arrivals_ns: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] | None = None
    reason: str | None = None
    choices: int = 0
    uncounted: bool = False

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
        if event.get("error") or "error" in (event.get("type"), event.get("object")):
            raise RequestFailedError("server_error", str(event.get("error") or event)[:300])
        timings = event.get("timings")
        if isinstance(timings, Mapping):
            self.timings = timings
        if event.get("usage"):
            self.usage = _mapping(event["usage"])
            self.uncounted = False
        told = len(self.told_ns)
        # A ping has none, and neither has usage; but a last token without a text of its own is told of with the usage.
        choice = event["choices"][0] if event.get("choices") else {}
        self.choices += bool(event.get("choices"))
        text = self._text(choice)
        if text:
            self.texts.append(text)
            self.times_ns.append(now_ns)
            self.uncounted = bool(self.usage) and not event.get("usage")
        ids = choice.get("token_ids")
        if ids:
            if not all(type(value) is int and 0 <= value < LARGEST_ID for value in ids):
                raise TypeError("token_ids are no ids")
            self.ids += ids
            self.told_ns += [now_ns] * len(ids)
        elif self.timed and isinstance(timings, Mapping):
            fresh = (count_of(timings, "predicted_n") or 0) - len(self.told_ns)
            self.told_ns += [now_ns] * min(fresh, MOST_IN_PIECE)
        if text or len(self.told_ns) > told:
            self.arrivals_ns.append(now_ns)
        if choice.get("finish_reason"):
            self.reason = str(choice["finish_reason"])

    def _text(self, choice: Any) -> str:
        if not self.chat:
            return plain_text(choice.get("text"))
        message = choice.get("delta") or choice.get("message") or {}
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
        called = "".join(plain_text(call.get(key)) for call in calls for key in ("name", "arguments"))
        said = plain_text(message.get("content"))
        self.said.append(said)
        return plain_text(thoughts) + said + called


def plain_text(value: Any) -> str:
    """The text of a field that is text, a list of parts with texts, or null. `TypeError` for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise TypeError("its text is no text")
    return "".join(plain_text(part.get("text") or part.get("thinking")) for part in value)


def count_of(values: Mapping[str, Any], name: str) -> int | None:
    """A count that a server states; `None` where it is absent, `RequestFailedError` where it is no count."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
        raise RequestFailedError("wrong_usage", f"{name} is {value!r:.40}")
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
