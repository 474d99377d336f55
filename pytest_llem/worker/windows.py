"""The windows of a cycle: their edges, the meter that marks them, and the padding around them.

The cycle uses it, and `repeats` for windows of phases. Padding must stay: a GPU's energy counter steps about every 100
ms, and its value at an edge is known far better where power is steady around it (docs/energy.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from pytest_llem.energy import checked
from pytest_llem.energy.protocol import Meter
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.energy.window_edges import UNCALIBRATED_SETTLE_NS, lag_of
from pytest_llem.engines.protocol import Completion, Engine
from pytest_llem.errors import MeterError
from pytest_llem.job.events import EventLog
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.measurement import EnergyReport, Window
from pytest_llem.job.report import Note

SHORT_WINDOW_S = 3.0
"""Chosen: see tests/benchmarks/energy_accuracy.py. From here on same-load padding bounds an edge to about 0.1 %."""

IDLE_STEPS = 5
"""Chosen: `window_edges.fit` can tell a drift of idle power from five counter steps on."""

SAME_LOAD_STEPS = 2
"""Chosen: interpolation at an edge needs one whole interval of the same load beyond it, at any phase of the counter."""

ASSUMED_PERIOD_S = 0.1
"""Update period of the energy counter on A100 and H100 (arXiv 2312.02741), assumed without calibration."""

MAX_IDLE_S = 3.0
"""Chosen: the most idle time that is spent on each side, whatever period calibration found."""

MAX_UNMEASURED_REPEAT_S = 5.0
"""Chosen: same-load padding runs whole repeats, and longer ones cost more than idle padding's half a second."""


@dataclass(frozen=True)
class Padding:
    """What happens for `seconds` on each side of a window.

    `idle`: the device rests, confirmed synchronised. `same_load`: the measured load runs unmeasured. `none`: nothing.
    """

    kind: Literal["idle", "same_load", "none"]
    seconds: float


NO_PADDING = Padding("none", 0.0)

DECODING = ("measure", "decode", "steady_state")
"""The windows whose power rises and falls with the engine's steps."""

SINGLE_REL = 0.6
"""Chosen: most bring one; some tokens have no text of their own, and a busy client may read two at once."""


def choose_padding(
    window_s: float, period_s: float, *, can_synchronise: bool = True, repeat_s: float | None = None
) -> Padding:
    """The padding that pays for a window of about this length, read from a counter that steps every `period_s`.

    Idle padding costs time and gives exact edges: it is for windows under `SHORT_WINDOW_S`, and needs an engine that
    can be synchronised. Longer windows lose little at an edge inside the load, and clocks and temperature stay those of
    the load. `repeat_s` is the duration of one repeat, where known.
    """
    too_long = repeat_s is not None and repeat_s > MAX_UNMEASURED_REPEAT_S
    if can_synchronise and (window_s < SHORT_WINDOW_S or too_long):
        return Padding("idle", idle_padding_s(period_s))
    return NO_PADDING if too_long else Padding("same_load", SAME_LOAD_STEPS * period_s)


def idle_padding_s(period_s: float, settle_s: float = 0.0) -> float:
    """How long the device rests on each side of a window: until its counter shows it, and for the steps then needed."""
    return min(MAX_IDLE_S, settle_s + IDLE_STEPS * period_s)


def with_step(windows: Sequence[Window], completions: Iterable[Completion]) -> list[Window]:
    """The windows in which tokens are decoded, with the engine's step: the median time between arrivals of one token.

    It is not known where arrivals bring several: one step may have made them, or as many steps.
    """
    gaps: list[int] = []
    tokens = 0
    for completion in completions:
        times = completion.token_times_ns or completion.chunk_times_ns or ()
        gaps += [later - earlier for earlier, later in pairwise(times) if later > earlier]
        tokens += max(0, completion.generated - 1)
    if not gaps or len(gaps) < SINGLE_REL * tokens:
        return list(windows)
    step_s = median(gaps) / 1e9
    return [replace(window, step_s=step_s) if window.name in DECODING else window for window in windows]


class Metering:
    """The meter of a cycle, started and stopped exactly once, also when the cycle fails; or no meter.

    `samples` is where it writes readings, if it is one that does.
    """

    def __init__(self, meter: Meter | None, samples: Path) -> None:
        self.meter = meter
        self.samples = samples
        self.notes: list[Note] = []
        self._watch: SamplerProcess | None = None
        self._running = False
        if meter is not None:
            meter.start()
            self._running = True

    def period_s(self, devices: DeviceSet, name: str) -> float | None:
        """The period of the counter's steps under a meter, in seconds; `None` where padding would gain nothing."""
        if devices.kind != "cuda" or name == "none":
            return None
        if self.meter is None:
            # It runs on the host: only its name is known here, and an image may lack what importing it needs.
            return ASSUMED_PERIOD_S if name in ("auto", "nvml") else None
        if not self.meter.steps_visibly:
            return None
        return max((known.period_ns / 1e9 for known in self.meter.calibrations()), default=ASSUMED_PERIOD_S)

    def settle_s(self) -> float:
        """How long after work the metered counters show idle power alone, in seconds."""
        known = self.meter.calibrations() if self.meter is not None else ()
        return max((lag_of(each).settle_ns for each in known), default=UNCALIBRATED_SETTLE_NS) / 1e9

    def report(self, recorder: WindowRecorder) -> EnergyReport | None:
        """Stop the meter and account the recorded windows; `None` without a meter."""
        if self.meter is None or not self._running:
            return None
        self._running = False
        return checked.account(self.meter, recorder.windows)

    def watch(self, devices: DeviceSet, samples: Path) -> None:
        """Read GPUs here as well until `end_watch`, as their meter is elsewhere; nothing where that cannot be done."""
        with suppress(MeterError):
            library = "nvml" if devices.kind == "cuda" else "amdsmi"
            self._watch = SamplerProcess(samples, devices.uuids, library=library)
            self.samples = samples

    def end_watch(self) -> None:
        """Leave the GPUs' sensors alone from now on, before a window is measured."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def abandon(self) -> None:
        """Stop a meter that still runs after a failure; its own error is ignored, as the first failure counts."""
        self.end_watch()
        if self.meter is not None and self._running:
            self._running = False
            checked.account(self.meter, ())

    def power_w(self) -> float | None:
        """The latest power in watts."""
        if self.meter is not None:
            return checked.power_w(self.meter)
        return self._watch.power_w() if self._watch is not None else None


@dataclass
class OpenWindow:
    """What the body of a window may state about it."""

    repeats: int | None = None
    reset_s: float = 0.0


class WindowRecorder:
    """Opens and closes windows, and emits an event for each edge.

    At each edge the engine is brought to rest first, so that no work crosses an edge. An engine that could not
    synchronise at the first edge is drained only after the last one, because draining takes time that does not belong
    to the window.

    `idle_s` is how long the device rests on each side of a window with idle padding. Only an engine that answers
    `synchronized` counts as idle: one that has drained its requests may still be working.
    """

    def __init__(self, events: EventLog, meter: Meter | None, idle_s: float) -> None:
        self.windows: list[Window] = []
        self._events = events
        self._meter = meter
        self._idle_s = idle_s

    @contextmanager
    def window(self, name: str, engine: Engine | None = None, *, idle_padding: bool = False) -> Iterator[OpenWindow]:
        """One window around the body; nothing is recorded when the body raises."""
        index = sum(window.name == name for window in self.windows)
        synchronises = engine is None or engine.quiesce() == "synchronized"
        before_s = self._rest() if idle_padding and synchronises else None
        self._events.emit("window_begin", name, index=index)
        opened = OpenWindow()
        start_ns = self._mark()
        yield opened
        synchronised = synchronises and (engine is None or engine.quiesce() == "synchronized")
        end_ns = self._mark()
        self._events.emit("window_end", name, index=index, start_ns=start_ns, end_ns=end_ns)
        if engine is not None and not synchronises:
            engine.quiesce()
        after_s = self._rest(end_ns) if idle_padding and synchronised else None
        stated = (opened.repeats, opened.reset_s)
        self.windows.append(Window(name, start_ns, end_ns, index, before_s, after_s, *stated))

    def _rest(self, since_ns: int | None = None) -> float | None:
        """Let the device rest; returns for how long it has, in seconds, since now or an earlier time."""
        if self._idle_s <= 0:
            return None
        since_ns = time.monotonic_ns() if since_ns is None else since_ns
        time.sleep(self._idle_s)
        return (time.monotonic_ns() - since_ns) / 1e9

    def _mark(self) -> int:
        return checked.edge(self._meter) if self._meter is not None else time.monotonic_ns()
