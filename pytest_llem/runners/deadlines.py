"""Holding a worker to its deadlines, on the receiver's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pytest_llem.errors import JsonValue
from pytest_llem.job import Deadlines


class DeadlineWatch:
    """Says whether a worker is overdue: for the whole cycle, in loading, or silent for too long.

    Only the arrival of events counts, never the times written in them, which may come from another clock.
    """

    def __init__(self, limits: Deadlines, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._started = self._heard = self._phase_since = clock()
        self.phase: str | None = None

    def heard(self, event: Mapping[str, JsonValue]) -> None:
        """An event has arrived."""
        self._heard = self._clock()
        if event.get("event") == "phase":
            self.phase = str(event.get("name"))
            self._phase_since = self._heard

    @property
    def silent(self) -> bool:
        """Whether there was no sign of life for too long."""
        return self._clock() - self._heard > self._limits.silence_s

    def overdue(self) -> str | None:
        """Which limit is exceeded, in words; `None` while all are kept."""
        limits, now = self._limits, self._clock()
        if now - self._started > limits.timeout_s:
            return f"it ran for more than {limits.timeout_s:g} s (execution.timeout_s)"
        if limits.load_timeout_s and self.phase == "load" and now - self._phase_since > limits.load_timeout_s:
            return f"loading took more than {limits.load_timeout_s:g} s (execution.load_timeout_s)"
        if self.silent:
            return f"no sign of life for {limits.silence_s:g} s"
        return None
