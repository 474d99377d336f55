"""Writes `events.jsonl`, a worker's log of its cycle, and identifies the clock of its timestamps.

Workers write it, runners follow it while the cycle runs; `containers.host_meter` and `machine.processes` ask for
the clock. Names and fields are part of the job directory's format (docs/protocol.md): add to them, never change them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pytest_llem.errors import JsonValue

EVENT_PREFIX = "LLEM-EVENT "
"""Marks the lines of a container's output that are events: its files cannot be read while it runs."""


class EventLog:
    """Appends events to `events.jsonl`, one flushed line each; the first is a `clock` event.

    Thread-safe. `phase` is the name of the latest phase; `mirror` is called with each line as well.
    """

    def __init__(self, path: Path, mirror: Callable[[str], None] | None = None) -> None:
        self.phase: str | None = None
        self._mirror = mirror
        self._lock = threading.Lock()
        self._stream: IO[str] = path.open("a", encoding="utf-8", buffering=1)
        self.emit("clock", None, **clock_facts())

    def emit(self, event: str, name: str | None = None, **more: JsonValue) -> int:
        """Append one event and return its time (CLOCK_MONOTONIC, nanoseconds)."""
        t_ns = time.monotonic_ns()
        record: dict[str, JsonValue] = {"t_ns": t_ns, "event": event}
        if name is not None:
            record["name"] = name
        record.update(more)
        line = json.dumps(record) + "\n"
        with self._lock:
            if event == "phase":
                self.phase = name
            self._stream.write(line)
            if self._mirror is not None:
                self._mirror(line)
        return t_ns

    def close(self) -> None:
        """Close the file; `emit` fails afterwards."""
        self._stream.close()


def clock_facts() -> dict[str, JsonValue]:
    """Identity of this clock domain: boot id, time namespace, and its three clocks in nanoseconds."""
    return {
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "time_namespace": _link("/proc/self/ns/time"),
        "monotonic_ns": time.monotonic_ns(),
        "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None,
        "realtime_ns": time.time_ns(),
    }


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError:
        return None
