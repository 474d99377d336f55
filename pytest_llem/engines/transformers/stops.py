"""Ends the answers of a batch at strings, inside of `generate`.

`Generator` makes one criterion for each batch, and asks it afterwards where the answers ended. A step of the batch
waits for it: it must look at the newest tokens alone. transformers' own goes through the whole vocabulary before the
first step, and also ends an answer at a string that begins in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

CONTEXT_TOKENS = 4
"""A letter of UTF-8 has at most four bytes, and a token at least one: what is cut off in front is whole letters."""


class StopStrings:
    """Finds where the text of token ids first holds one of some strings.

    Text is made of tokens only where the newest of them may end a string: hardly any does.
    """

    def __init__(self, strings: Sequence[str], text_of: Callable[[Sequence[int]], str]) -> None:
        self._strings = tuple(strings)
        self._text_of = text_of
        self.reach = max((len(text.encode()) for text in strings), default=0) + CONTEXT_TOKENS
        """So many tokens before new ones may belong to a string that these complete."""
        self._last = {text[-1] for text in strings if text}
        # Alone, a token may lose the blank that it begins with.
        self._can_tell = " " not in self._last
        self._may_end: dict[int, bool] = {}

    def end_of(self, ids: Sequence[int], seen: int = 0) -> int | None:
        """How many of an answer's ids make up the first string, of which the first `seen` hold none; else `None`."""
        if self._can_tell and not any(map(self._is_last, ids[seen:])):
            return None
        begin = max(0, seen - self.reach)
        if not self._in(ids[begin:]):
            return None
        return next(count for count in range(seen + 1, len(ids) + 1) if self._in(ids[begin:count]))

    def _is_last(self, token: int) -> bool:
        """Whether a string may end in a token: it has a string's last letter, or a part of some letter."""
        known = self._may_end.get(token)
        if known is None:
            text = self._text_of([token])
            known = self._may_end[token] = "\N{REPLACEMENT CHARACTER}" in text or any(
                map(text.__contains__, self._last)
            )
        return known

    def _in(self, ids: Sequence[int]) -> bool:
        text = self._text_of(ids)
        return any(string in text for string in self._strings)


class EndAtStrings(StoppingCriteria):  # type: ignore[misc]  # torch and transformers come without types
    """Tells `generate` which rows have come to one of their strings, of answers that begin at position `begin`.

    Where beams share a request, rows change their places from step to step: each is looked at whole.
    """

    def __init__(self, stops: Sequence[StopStrings], begin: int, eos_ids: Sequence[int]) -> None:
        self._stops = stops
        self._begin = begin
        self._eos_ids = frozenset(eos_ids)
        self._ends: list[int | None] = [None] * len(stops)
        self._open = set(range(len(stops)))
        self._seen = 0
        self._reach = max(stop.reach for stop in stops)
        self._done: Any = None

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Which rows of `input_ids`, of shape (rows, prompt and answer so far), have ended: a boolean each."""
        known = max(0, self._seen - self._reach)
        rows = input_ids[:, self._begin + known :].tolist()
        each = len(rows) // len(self._stops)
        if each > 1:
            ended = [self._stops[place // each].end_of(_made(row)) is not None for place, row in enumerate(rows)]
            return torch.tensor(ended, device=input_ids.device)
        news, seen = self._done is None, self._seen - known
        for place in sorted(self._open):
            end = self._stops[place].end_of(rows[place], seen)
            if end is not None:
                self._ends[place], news = known + end, True
            if end is not None or not self._eos_ids.isdisjoint(rows[place][seen:]):
                self._open.discard(place)
        self._seen = known + len(rows[0])
        if news:
            self._done = torch.tensor([end is not None for end in self._ends], device=input_ids.device)
        return self._done

    def end(self, place: int, row: Sequence[int]) -> int | None:
        """How many tokens the answer at `place` has, whose row `generate` returned; `None` where it has no string.

        An end of sequence may come before that.
        """
        return self._ends[place] if self._seen else self._stops[place].end_of(_made(row))


def _made(row: Sequence[int]) -> list[int]:
    """The tokens of a beam, which `generate` may fill up with numbers below 0."""
    return [token for token in row if token >= 0]
