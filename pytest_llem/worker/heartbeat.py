"""Signs of life while a cycle runs: progress events at a limited rate, and heartbeats from a thread.

`cycle` starts the thread, and `repeats` ticks it; the runner's deadline for silence watches the events. A beat must
stay cheap, because it falls into measured windows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_llem.job.events import EventLog

PROGRESS_INTERVAL_S = 0.25
"""Chosen: fast enough for a terminal's progress line, rare beside the requests of a fast engine."""
MIN_BEAT_S, MAX_BEAT_S = 0.2, 2.5
WORKING_SHARE = 0.01
"""Share of one core that the process must have used since the last beat to count as working.

Chosen: measured beside an engine at rest, torch's threads use 0.001 % of a core, CodeCarbon's 0.2 %, Ray's 0.3 %.
"""


class Heartbeat:
    """Writes a `heartbeat` event about twice per `heartbeat_s`, for as long as the process is alive and not stuck.

    A thread that beats whatever happens would hide a deadlock. So while the engine is `working`, it beats only when
    there was progress since the last beat, or the process used the CPU; while the cycle loads or waits on purpose, it
    always beats. One beat costs about 0.1 ms.
    """

    def __init__(self, events: EventLog, heartbeat_s: float) -> None:
        self._events = events
        self._interval_s = min(max(heartbeat_s / 2, MIN_BEAT_S), MAX_BEAT_S)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llem-heartbeat", daemon=True)
        self._working = False
        self._ticks = 0

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def tick(self) -> None:
        """Say that the measured thread has got on."""
        self._ticks += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """The engine should be computing: from here on, a standstill stops the heartbeats."""
        self._working = True
        try:
            yield
        finally:
            self._working = False

    def _run(self) -> None:
        ticks, cpu_s = self._ticks, time.process_time()
        while not self._ended.wait(self._interval_s):
            moved = self._ticks != ticks or time.process_time() - cpu_s >= WORKING_SHARE * self._interval_s
            ticks, cpu_s = self._ticks, time.process_time()
            if moved or not self._working:
                self._events.emit("heartbeat", self._events.phase)


class ProgressReporter:
    """The engine's `progress` callback: ticks the heartbeat, and writes at most four `progress` events a second."""

    def __init__(self, events: EventLog, heartbeat: Heartbeat, name: str) -> None:
        self._events = events
        self._heartbeat = heartbeat
        self._name = name
        self._next_s = time.monotonic()
        self.repeat = 0

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` requests are finished; the same count again still is a sign of life."""
        self._heartbeat.tick()
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + PROGRESS_INTERVAL_S
            self._events.emit("progress", self._name, done=done, total=total, repeat=self.repeat)
