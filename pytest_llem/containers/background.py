"""Runs a call that may hang on a daemon thread, and waits for it with a timeout.

`preflight` runs its checks and `images` its pulls this way. It must stay a daemon thread: see `Call`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """A call that runs on a daemon thread of its own.

    A thread pool would be joined when the interpreter ends, and a stalled download would then keep pytest from ending.
    """

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(call,), name=name, daemon=True).start()

    def result(self, timeout_s: float) -> T:
        """Return or raise what the call did; `TimeoutError` when it has done neither within `timeout_s` seconds."""
        try:
            value, problem = self._answers.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise TimeoutError from None
        if problem is not None:
            raise problem
        return value  # type: ignore[return-value]

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._answers.put((call(), None))
        except BaseException as problem:  # noqa: BLE001  it is raised again where the result is asked for
            self._answers.put((None, problem))
