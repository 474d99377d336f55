"""What the events of one answer say, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_llem.engines.openai.failures import RequestFailedError

MOST_TOKENS = 1 << 16
"""More tokens than these are in no piece."""


@dataclass
class Pieces:
    """Texts with their times, and of tokens what the server tells: `ids`, and in `told_ns` a time for each.

    `timed` says that events state how many tokens there are so far.
    """

    chat: bool
    timed: bool
    texts: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    told_ns: list[int] = field(default_factory=list)
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
        text = self._text(choice)
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
