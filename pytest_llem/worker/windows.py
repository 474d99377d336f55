"""Recording windows: their edges on the clock, taken while the engine is quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_llem.energy.protocol import Meter
from pytest_llem.engines.protocol import Engine
from pytest_llem.job.events import EventLog
from pytest_llem.job.measurement import Window


@dataclass
class OpenWindow:
    """What the body of a window can say about it."""

    repeats: int | None = None


class WindowRecorder:
    """Opens and closes windows, and tells the receiver of the events about them.

    At each edge the engine is brought to rest first, so that work never crosses an edge. One that could not synchronise
    at the first edge has only its requests to drain, which have ended: asking it takes time that is not part of the
    window, and comes after the last edge.

    `quiet_s` is how long the device is left alone on each side of a window that asks for it: an energy counter that
    ticks every 100 ms is read far better with quiet around the window. Only an engine that answers `synchronized` is
    quiet: one that has drained its requests may still be at work.
    """

    def __init__(self, events: EventLog, meter: Meter | None, quiet_s: float) -> None:
        self.windows: list[Window] = []
        self._events = events
        self._meter = meter
        self._quiet_s = quiet_s
        self._quiet_since_ns: int | None = None

    @contextmanager
    def window(self, name: str, engine: Engine | None = None, *, quiet_sides: bool = False) -> Iterator[OpenWindow]:
        """One window around the body; nothing is recorded when the body raises."""
        index = sum(window.name == name for window in self.windows)
        synchronises = engine is None or engine.quiesce() == "synchronized"
        quiet_before_s = self._rest(synchronises, quiet_sides)
        self._events.emit("window_begin", name, index=index)
        opened = OpenWindow()
        start_ns = self._mark()
        yield opened
        synchronised = synchronises and (engine is None or engine.quiesce() == "synchronized")
        end_ns = self._mark()
        self._events.emit("window_end", name, index=index, start_ns=start_ns, end_ns=end_ns)
        if engine is not None and not synchronises:
            engine.quiesce()
        quiet_after_s: float | None = None
        self._quiet_since_ns = end_ns if synchronised else None
        if quiet_sides and synchronised:
            quiet_after_s = self._wait()
        self.windows.append(Window(name, start_ns, end_ns, index, quiet_before_s, quiet_after_s, opened.repeats))

    def busy(self) -> None:
        """Say that the device is about to work outside of any window."""
        self._quiet_since_ns = None

    def _rest(self, synchronised: bool, quiet_sides: bool) -> float | None:
        if not synchronised:
            self._quiet_since_ns = None
            return None
        if not quiet_sides:
            return None
        self._quiet_since_ns = time.monotonic_ns()
        return self._wait()

    def _wait(self) -> float | None:
        if self._quiet_s <= 0 or self._quiet_since_ns is None:
            return None
        time.sleep(self._quiet_s)
        return (time.monotonic_ns() - self._quiet_since_ns) / 1e9

    def _mark(self) -> int:
        return self._meter.mark() if self._meter is not None else time.monotonic_ns()
