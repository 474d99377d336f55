"""Predicts when an energy counter steps, so that a few reads per step bracket it closely.

The sampler's `GpuSource` asks `TickTracker` when to read next; `calibrate` uses its default step. GPU counters advance
about every 100 ms (A100, H100: arXiv 2312.02741). It must read no sensor and no clock itself, and stay cheap to import,
because the sampler process does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DEFAULT_STEP_NS = 2_000_000
"""Chosen: brackets of 2 % of a 100 ms period; faster only once calibration has shown that it disturbs nothing."""

FAST_POLL_NS = 20_000_000
"""Chosen: a counter faster than `4 * step_ns` needs no bracketing, and 50 reads a second cost little."""

_ACQUIRE_TICKS = 4
"""Chosen: the median of three intervals tolerates one missed step."""

_SMOOTHING = 0.1
"""Chosen: follows a drifting period within about ten steps, and averages the jitter of as many."""


class Tick(NamedTuple):
    """A step: the counter reached `value_mj` at some time between `low_ns` and `high_ns` (CLOCK_MONOTONIC)."""

    low_ns: int
    high_ns: int
    value_mj: int

    @property
    def mid_ns(self) -> int:
        """The middle of the bracket."""
        return (self.low_ns + self.high_ns) // 2


class TickTracker:
    """Predicts a counter's steps from those seen so far.

    `step_ns` is the distance of two reads near a step, never less than what calibration found harmless. Without a
    `period_ns` the first steps are found by polling evenly.
    """

    def __init__(self, step_ns: int = DEFAULT_STEP_NS, period_ns: int | None = None, jitter_ns: int = 0) -> None:
        self._step_ns = step_ns
        self._period_ns = float(period_ns) if period_ns else None
        self._jitter_ns = float(jitter_ns)
        self._missed_guard_ns = 0.0
        self._value_mj: int | None = None
        self._last_begin_ns = 0
        self._last: Tick | None = None
        self._first_mids: list[int] = []
        self.due_ns = 0

    @property
    def period_ns(self) -> float | None:
        """The period as estimated so far."""
        return self._period_ns

    @property
    def fast(self) -> bool:
        """Whether the counter advances so often that single steps are not worth finding."""
        return self._period_ns is not None and self._period_ns < 4 * self._step_ns

    def observe(self, begin_ns: int, end_ns: int, value_mj: int) -> Tick | None:
        """Take one reading, made between two times; returns the step that it reveals, if any, and sets `due_ns`."""
        if self._value_mj is None or value_mj == self._value_mj:
            self._value_mj = value_mj
            self._last_begin_ns = begin_ns
            self.due_ns = self._next_poll(end_ns)
            return None
        low_ns = self._last_begin_ns
        if self.fast and self._period_ns is not None:
            low_ns = max(low_ns, begin_ns - round(self._period_ns))
        tick = Tick(low_ns, end_ns, value_mj)
        self._value_mj = value_mj
        self._last_begin_ns = begin_ns
        self._learn(tick)
        self._last = tick
        self.due_ns = self._next_poll(end_ns)
        return tick

    def forget(self) -> None:
        """Start over after a gap: the next reading reveals no step."""
        self._value_mj = None
        self._last = None

    def _guard_ns(self) -> float:
        assert self._period_ns is not None
        wanted = max(1.5 * self._step_ns + 3 * self._jitter_ns, self._missed_guard_ns)
        return min(max(wanted, 2.0 * self._step_ns), self._period_ns / 2)

    def _next_poll(self, now_ns: int) -> int:
        """When to read next, given that the last read ended at `now_ns`."""
        if self._period_ns is None or self._last is None:
            return now_ns + self._step_ns
        if self.fast:
            return now_ns + FAST_POLL_NS
        guard = self._guard_ns()
        earliest = self._last.low_ns + self._period_ns - guard
        latest = self._last.high_ns + self._period_ns + 4 * guard
        if now_ns < earliest:
            return round(earliest)
        if now_ns > latest:
            return now_ns + max(self._step_ns, round(self._period_ns / 20))
        return now_ns + self._step_ns

    def _learn(self, tick: Tick) -> None:
        if self._period_ns is None:
            self._first_mids.append(tick.mid_ns)
            if len(self._first_mids) >= _ACQUIRE_TICKS:
                gaps = [b - a for a, b in zip(self._first_mids, self._first_mids[1:], strict=False)]
                self._period_ns = float(_median(gaps))
            return
        if self._last is None or self.fast:
            return
        width = tick.high_ns - tick.low_ns
        precise = width <= max(3 * self._step_ns, self._period_ns / 20)
        if not precise:
            self._missed_guard_ns = min(self._period_ns / 2, max(2 * self._guard_ns(), 4 * self._step_ns))
            return
        self._missed_guard_ns *= 0.9
        if self._last.high_ns - self._last.low_ns > self._period_ns / 20 + 3 * self._step_ns:
            return
        elapsed = tick.mid_ns - self._last.mid_ns
        periods = max(1, round(elapsed / self._period_ns))
        residual = elapsed - periods * self._period_ns
        if abs(residual) < self._period_ns / 2:
            self._period_ns += _SMOOTHING * residual / periods
            self._jitter_ns += _SMOOTHING * (abs(residual) - self._jitter_ns)


def _median(values: Sequence[int]) -> float:
    """As in `statistics`, whose import takes longer than a sampler has time for."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2
