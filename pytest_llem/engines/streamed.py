"""An answer that arrives token by token, as the engines with a scheduler of their own hand it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pytest_llem.engines.protocol import Completion, Request

FINISHED: Mapping[str, Literal["stop", "length", "error"]] = {"stop": "stop", "length": "length"}


@dataclass
class StreamedAnswer:
    """The tokens of one request and when this process had them (CLOCK_MONOTONIC nanoseconds).

    Tokens that arrive together have one time: an engine may hand out several steps at once.
    """

    request: Request
    start_ns: int = 0
    ids: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    cached_tokens: int | None = None

    def add(self, new_ids: Sequence[int], now_ns: int) -> None:
        """Take the next tokens."""
        self.ids += new_ids
        self.times_ns += [now_ns] * len(new_ids)

    def grow_to(self, all_ids: Sequence[int], now_ns: int) -> None:
        """Take what is new in everything that was generated so far."""
        self.add(all_ids[len(self.ids) :], now_ns)

    def completion(self, engine: str, reason: str | None, now_ns: int) -> Completion:
        """What became of the request; a `reason` other than `stop` and `length` is an error with that word."""
        known = FINISHED.get(reason or "", "error")
        return Completion(
            index=self.request.index,
            input_tokens=len(self.request.token_ids),
            output_ids=tuple(self.ids),
            start_ns=self.start_ns,
            end_ns=self.times_ns[-1] if self.times_ns else now_ns,
            finish_reason=known,
            token_times_ns=tuple(self.times_ns),
            cached_tokens=self.cached_tokens,
            error=f"{engine} ended the request: {reason}" if known == "error" else None,
        )
