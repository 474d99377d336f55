"""Answers that are in and not yet read, kept for when nothing is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pytest_llem.engines.openai.answers import Answer
from pytest_llem.engines.openai.failures import RequestFailedError
from pytest_llem.engines.protocol import Completion

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
