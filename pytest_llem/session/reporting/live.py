"""Live status: which cycles are being measured now, on the user's terminal.

`Reporting` runs it in a thread, and tells it which cycles have ended. Its lines may change freely; what it reads
belongs to others: announcements to `runners/announcement.py`, the `events.jsonl` of each cycle to `job/events.py`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import parse_object, read_json
from pytest_llem.runners.announcement import ANNOUNCEMENTS
from pytest_llem.session.reporting.forecast import Forecast

TERMINAL_PERIOD_S = 0.25
"""Seconds between two updates on a terminal. Chosen: reads as live, and costs next to nothing beside a measurement."""

LOG_PERIOD_S = 30.0
"""Seconds between two lines on a cycle in a log. Chosen: so few lines stay readable."""

LOG_CHECK_S = 1.0
"""Seconds between two looks where lines go to a log. Chosen: soon enough for a cycle that has to wait."""

MAX_LINES = 8
"""Chosen: a worker per GPU of a machine with eight."""

# Lines below pytest's own: make room, save the cursor, go down, write, restore the cursor (VT100).
DOWN, UP, LINE, SAVE, RESTORE = "\x1bD", "\x1bM", "\x1bD\r\x1b[2K", "\x1b7", "\x1b8"


@dataclass
class Cycle:
    """A cycle that is being measured, followed through its events."""

    title: str
    events: Path
    since: float
    worker: str | None = None
    attempt: int = 1
    waiting: str | None = None
    counts: str | None = None
    phase: str = "start"
    progress: str = ""
    _offset: int = field(default=0, repr=False)

    def line(self) -> str:
        """One line: who, phase, progress, elapsed time, and last what may be cut: which cycle."""
        who = f"[{self.worker}] " if self.worker else ""
        again = f"attempt {self.attempt}, " if self.attempt > 1 else ""
        state = self.waiting or self.counts or f"{self.phase}{self.progress}"
        return f"{who}{again}{state}, {time.time() - self.since:.0f} s: {self.title}"

    def follow(self) -> None:
        """Read the events that are new."""
        with contextlib.suppress(OSError, ValueError), self.events.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._offset += len(complete)
            for text in complete.splitlines():
                self._take(parse_object(text, self.events))

    def _take(self, event: dict[str, JsonValue]) -> None:
        kind, name = event.get("event"), event.get("name")
        if kind == "phase":
            self.phase, self.progress = str(name), ""
        elif kind == "progress":
            done, total = event.get("done"), event.get("total")
            share = f" {done}/{total}" if total else f" {done}"
            repeat = event.get("repeat")
            self.progress = f"{share}, repeat {repeat}" if repeat is not None else share


class LiveStatus(threading.Thread):
    """Shows the announced cycles: a line each, kept up to date on a terminal; elsewhere a log line now and then."""

    def __init__(
        self,
        run_dir: Path,
        stream: IO[str],
        *,
        terminal: bool,
        width: int,
        forecast: Callable[[], Forecast | None] = lambda: None,
    ) -> None:
        super().__init__(name="llem-live-status", daemon=True)
        self._make_forecast = forecast
        self._forecast = forecast()
        self._announcements = run_dir / ANNOUNCEMENTS
        self._stream = stream
        self._terminal = terminal
        self._width = width
        self._cycles: dict[Path, Cycle] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._shown = 0
        self._logged: dict[tuple[str, str], float] = {}

    def run(self) -> None:
        """The thread's loop; see `stop`."""
        while not self._ended.wait(TERMINAL_PERIOD_S if self._terminal else LOG_CHECK_S):
            lines = self._observe()
            if not self._terminal:
                self._log()
                continue
            with self._lock:
                self._draw(self._with_forecast(lines))

    def clear(self) -> None:
        """Remove the lines before pytest writes one of its own."""
        with self._lock:
            self._draw([])

    def ended(self, directory: Path) -> None:
        """A cycle has ended, measured or reused."""
        with self._lock:
            if self._forecast is not None:
                self._forecast.ended(directory, time.time())

    def stop(self) -> None:
        """End the thread and leave the terminal clean."""
        self._ended.set()
        self.join(2.0)
        self.clear()

    def _observe(self) -> list[str]:
        announced = set(self._announcements.glob("*.json")) if self._announcements.is_dir() else set()
        for path in announced:
            with contextlib.suppress(StoreError):
                self._update(path)
        for path in set(self._cycles) - announced:
            self.ended(self._cycles.pop(path).events.parent)
        cycles = sorted(self._cycles.values(), key=lambda cycle: (len(cycle.worker or ""), cycle.worker or ""))
        return [cycle.line() for cycle in cycles]  # of `gw2` before `gw10`

    def _update(self, path: Path) -> None:
        data = read_json(path)
        title, since, waiting = str(data["title"]), data["since"], data["waiting"]
        cycle = self._cycles.get(path)
        assert isinstance(since, float)
        if cycle is None or (cycle.title, cycle.since) != (title, since):
            if cycle is not None:
                self.ended(cycle.events.parent)
            worker = str(data["worker"]) if data.get("worker") else None
            cycle = self._cycles[path] = Cycle(title, Path(str(data["events"])), since, worker)
            cycle.attempt = int(str(data.get("attempt", 1)))
        cycle.waiting = str(waiting) if waiting is not None else None
        cycle.counts = str(data["progress"]) if "progress" in data else None
        cycle.follow()
        with self._lock:
            if self._forecast is None:
                self._forecast = self._make_forecast()  # xdist's workers write the plan
            if self._forecast is not None:
                self._forecast.began(cycle.events.parent, since)

    def _with_forecast(self, lines: list[str]) -> list[str]:
        """The lines with how far the run is: before the only one, else above all."""
        how_far = self._forecast.text(time.time()) if self._forecast is not None and lines else ""
        if how_far and len(lines) == 1:
            return [f"{how_far} {lines[0]}"]
        lines = [how_far, *lines] if how_far else lines
        return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], f"and {len(lines) - MAX_LINES + 1} more"]

    def _draw(self, lines: list[str]) -> None:
        """Replace the lines below the cursor, and restore the cursor."""
        height = max(len(lines), self._shown)
        if height:
            texts = [line[: max(self._width - 1, 20)] for line in lines] + [""] * (height - len(lines))
            self._write("".join([DOWN * height, UP * height, SAVE, *(f"{LINE}{text}" for text in texts), RESTORE]))
        self._shown = len(lines)

    def _log(self) -> None:
        """On a dumb terminal or in CI: print what a cycle waits for at once, anything else only when it takes long."""
        now = time.time()
        for cycle in self._cycles.values():
            key = (cycle.title, "waiting" if cycle.waiting else "")
            last = self._logged.get(key)
            waits = cycle.waiting is not None and now - cycle.since >= LOG_CHECK_S
            if (last is None and waits) or now - max(last or 0.0, cycle.since) >= LOG_PERIOD_S:
                self._logged[key] = now
                with self._lock:
                    how_far = f"{self._forecast.text(now)} " if self._forecast is not None else ""
                    self._write(f"\nllem: {how_far}{cycle.line()}\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
