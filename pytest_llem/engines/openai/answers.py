"""An answer as it comes in: what was generated, how much of it, and when.

Pieces of a stream are no tokens: one may hold several, or none. How many tokens there were is what `usage` says, and a
token has a time of its own only where the server tells which piece it came in (vLLM: `token_ids`; llama.cpp:
`timings.predicted_n`), or where there were as many pieces as tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pytest_llem.engines.openai.failures import RequestFailedError
from pytest_llem.engines.openai.settings import Api
from pytest_llem.engines.protocol import Completion, Request

LONGEST_BYTES = 64 << 20
"""More than this is no answer."""
MOST_TOKENS = 1 << 16
"""More tokens than these are in no piece."""
LENGTH_WORDS = ("length", "max_tokens", "model_length")


class Answer:
    """Takes in one answer, streamed (`feed`, then `close`) or at once (`whole`).

    `timed` says that each piece of a stream states how many tokens there are so far (`timings.predicted_n`). Every
    method raises `RequestFailedError` for what the API does not allow: nothing that a server says is trusted.
    """

    def __init__(self, api: Api, *, timed: bool = False) -> None:
        self.first_ns: int | None = None
        self.done = False
        self.timings: Mapping[str, Any] | None = None
        self._chat = api == "chat"
        self._timed = timed
        self._rest = b""
        self._texts: list[str] = []
        self._piece_times_ns: list[int] = []
        self._told_times_ns: list[int] = []
        self._ids: list[int] = []
        self._usage: Mapping[str, Any] | None = None
        self._reason: str | None = None
        self._last_ns = 0

    def feed(self, data: bytes, now_ns: int) -> None:
        """Bytes of an event stream, however they are cut, and when they came."""
        if self._rest:
            data = self._rest + data
            if len(data) > LONGEST_BYTES:
                raise RequestFailedError("malformed", "an event without an end")
        lines = data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_ns)

    def close(self, now_ns: int) -> None:
        """The stream has ended."""
        if self._rest.startswith(b"data:"):
            self._event(self._rest[5:].strip(), now_ns)
        if not self.done and self._reason is None:
            raise RequestFailedError("dropped", f"the stream ended after {len(self._texts)} pieces, without an end")

    def whole(self, body: bytes, now_ns: int) -> None:
        """An answer that was not streamed."""
        self._event(body, now_ns)
        # When its first token was there, nobody knows.
        self.first_ns = None
        self._piece_times_ns, self._told_times_ns = [], []
        self._last_ns = now_ns

    def completion(self, request: Request, start_ns: int, *, sent_tokens: int | None) -> Completion:
        """What became of the request; `sent_tokens` counts its prompt where the server does not."""
        usage = self._usage or {}
        count = _count(usage, "completion_tokens")
        if count is None:
            count = len(self._ids) or len(self._told_times_ns) or None
        if count is None:
            raise RequestFailedError("no_usage", "the answer does not say how many tokens it has")
        given = _count(usage, "prompt_tokens")
        given = given if given is not None else sent_tokens
        if given is None:
            raise RequestFailedError("no_usage", "the answer does not say how many tokens the prompt has")
        pieces, text = len(self._piece_times_ns), "".join(self._texts)
        if pieces > count or (text and not count):
            raise RequestFailedError("wrong_usage", f"{count} tokens are said to be in {max(pieces, 1)} pieces of text")
        ids = tuple(self._ids) if len(self._ids) == count else ()
        times = self._times(count)
        return Completion(
            index=request.index,
            input_tokens=given,
            output_ids=ids,
            start_ns=start_ns,
            end_ns=times[-1] if times else self._last_ns,
            finish_reason=self._finish(count, request),
            token_times_ns=times,
            cached_tokens=self._cached(usage),
            output_tokens=count,
            text=text,
            first_token_ns=self.first_ns,
        )

    def _times(self, count: int) -> tuple[int, ...] | None:
        if self.first_ns is None and count:
            return None
        for times in (self._told_times_ns, self._piece_times_ns):
            if len(times) == count:
                return tuple(times)
        return None

    def _finish(self, count: int, request: Request) -> Literal["length", "stop"]:
        if self._reason is None:
            return "length" if count >= request.max_new_tokens else "stop"
        return "length" if self._reason in LENGTH_WORDS else "stop"

    def _cached(self, usage: Mapping[str, Any]) -> int | None:
        details = usage.get("prompt_tokens_details")
        cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else None
        return cached if cached is not None else _count(self.timings or {}, "cache_n")

    def _event(self, payload: bytes, now_ns: int) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(payload)
        except ValueError:
            raise RequestFailedError("malformed", f"not JSON: {payload[:80]!r}") from None
        try:
            self._take(event, now_ns)
        except (AttributeError, IndexError, KeyError, TypeError) as problem:
            raise RequestFailedError("malformed", f"no answer of this API ({problem}): {payload[:80]!r}") from None

    def _take(self, event: Any, now_ns: int) -> None:
        if event.get("error"):
            raise RequestFailedError("server_error", str(event["error"])[:300])
        timings = event.get("timings")
        if isinstance(timings, Mapping):
            self.timings = timings
        if event.get("usage"):
            self._usage = _mapping(event["usage"])
        choices = event["choices"]
        if not choices:
            return
        choice = choices[0]
        text = self._text(choice)
        ids = choice.get("token_ids")
        fresh = len(ids) if ids else 0
        if ids:
            self._ids += [int(value) for value in ids]
        elif self._timed and timings is not None:
            fresh = max(0, (_count(timings, "predicted_n") or 0) - len(self._told_times_ns))
        if text or fresh:
            if self.first_ns is None:
                self.first_ns = now_ns
            self._last_ns = now_ns
            self._told_times_ns += [now_ns] * min(fresh, MOST_TOKENS)
            if text:
                self._texts.append(text)
                self._piece_times_ns.append(now_ns)
        if choice.get("finish_reason"):
            self._reason = str(choice["finish_reason"])
            self._last_ns = now_ns

    def _text(self, choice: Any) -> str:
        if not self._chat:
            return str(choice.get("text") or "")
        message = choice.get("delta") or choice.get("message") or {}
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        return str(thoughts) + str(message.get("content") or "")


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("usage is no object")
    return value


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestFailedError("wrong_usage", f"{name} is {value!r}")
    return value
