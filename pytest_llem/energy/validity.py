"""Judges whether a GPU measurement may be used: every reason against it that the readings themselves show.

`gpu_meter` calls it for every cycle. Each note's `code` is published (docs/energy.md lists them) and must not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot
from typing import Any, Literal

from pytest_llem.energy.attribution import own_pids
from pytest_llem.energy.counter_check import LOCKED_REL, MIN_INTERVALS, UNLOCKED_INTERVALS, Ratio, counter_power_ratio
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import PLAUSIBLE_W, TickSeries
from pytest_llem.job.config import Thresholds
from pytest_llem.job.measurement import Window, WindowEnergy
from pytest_llem.job.report import Note

PLAUSIBLE_REL = 1.5
"""Chosen: a board's control holds its mean power at the limit within percents; only peaks of milliseconds exceed it."""

IDLE_REL = 1.1
"""Chosen: settled idle power scatters by a few percent, and any work that is worth measuring adds more than a tenth."""

POWER_CAP = 0x4
"""Clock event of the power limit (NVML documentation, `nvmlClocksEventReasonSwPowerCap`)."""

AVERAGED_NS = 1_000_000_000
"""A power reading may be a mean over the second before it (NVML documentation, `nvmlDeviceGetPowerUsage`)."""


@dataclass(frozen=True)
class DeviceEvidence:
    """The readings and events of one GPU.

    `ticks` is `None` for a GPU without a counter, `memory_before_bytes` for one that is not leased to the cycle or
    whose server was loaded before, `power_limit_w` (the highest that can be set) where the driver does not tell.
    """

    uuid: str
    ticks: TickSeries | None
    samples: tuple[Sample, ...]
    events: tuple[Mapping[str, Any], ...]
    memory_before_bytes: int | None
    power_limit_w: float | None = None


@dataclass(frozen=True)
class Evidence:
    """The readings and events of the cycle's GPUs. Processes in `containers` count as measured."""

    windows: tuple[Window, ...]
    devices: tuple[DeviceEvidence, ...]
    events: tuple[Mapping[str, Any], ...]
    placement: Literal["host", "worker"]
    containers: frozenset[str] = frozenset()


def check(evidence: Evidence, accounted: Sequence[WindowEnergy], limits: Thresholds) -> list[Note]:
    """Every reason against using the measure windows' energy; without measure windows, against any window's."""
    windows = [window for window in evidence.windows if window.name == "measure"] or list(evidence.windows)
    reasons: list[Note] = []
    for device in evidence.devices:
        reasons.extend(_sensor(device, windows, limits))
        reasons.extend(_foreign(device, evidence))
        reasons.extend(_memory(device, limits))
        reasons.extend(_throttled(device, windows, limits))
        reasons.extend(_counter(device, evidence.windows, limits))
        reasons.extend(_implausible(device, windows, accounted))
        reasons.extend(_elsewhere(device, windows, evidence.containers))
        spread = _clock_spread(device, windows)
        if spread > limits.clocks_rel:
            reasons.append(Note("clocks_changed", f"{device.uuid}: SM clock varied by {spread:.0%} while measured"))
    reasons.extend(_suspended(evidence, limits))
    reasons.extend(_too_short(accounted, limits))
    return reasons


def remarks(evidence: Evidence) -> list[Note]:
    """Notes on conditions that do not invalidate the measurement."""
    windows = [window for window in evidence.windows if window.name == "measure"]
    notes: list[Note] = []
    for device in evidence.devices:
        share = _throttled_share(device, windows, "power_ns")
        if share > Thresholds.throttled_thermal_rel:
            notes.append(Note("power_capped", f"{device.uuid}: held at its power limit {share:.0%} of the time"))
        if any(event["event"] == "processes" and event["unknown"] for event in device.events):
            message = f"{device.uuid}: its processes have ids of another namespace; whose they are was not checked"
            notes.append(Note("processes_unknown", message))
    return notes


def _sensor(device: DeviceEvidence, windows: Sequence[Window], limits: Thresholds) -> list[Note]:
    notes: list[Note] = []
    errors = [event for event in device.events if event["event"] == "error"]
    errors = [event for event in errors if any(w.start_ns <= event["t_ns"] <= w.end_ns for w in windows)]
    for event in errors[:1]:
        notes.append(Note("sensor_gap", f"{device.uuid}: its driver failed while measured: {event['message']}"))
    if device.ticks is None:
        times = [sample.t_ns for sample in device.samples if sample.power_w is not None]
        allowed_s = limits.gap_s
    else:
        times = list(device.ticks.mid_ns)
        allowed_s = max(limits.gap_periods * (device.ticks.period_ns or 0.0) / 1e9, 0.05)
    for window in windows:
        if device.ticks is not None and device.ticks.reset_within(window.start_ns, window.end_ns):
            notes.append(Note("counter_reset", f"{device.uuid}: the energy counter jumped in {window.name}"))
        gap_s = _largest_gap_s(times, window)
        if gap_s is None:
            notes.append(Note("sensor_gap", f"{device.uuid}: no readings on both sides of window {window.name}"))
        elif gap_s > allowed_s:
            notes.append(Note("sensor_gap", f"{device.uuid}: no reading for {gap_s:.2f} s in window {window.name}"))
    return notes


def counter_ratio(device: DeviceEvidence, windows: Sequence[Window]) -> Ratio | None:
    """The device's counter against its power readings in the windows; over the cycle, where they hold too few."""
    ratio = counter_power_ratio(device.ticks, device.samples, windows)
    idle = all(window.name == "idle" for window in windows)
    if ratio is not None and ratio.intervals >= (MIN_INTERVALS if idle else UNLOCKED_INTERVALS):
        return ratio
    whole = counter_power_ratio(device.ticks, device.samples)
    return None if whole is None else replace(whole, explained=whole.explained + LOCKED_REL)


def _counter(device: DeviceEvidence, windows: Sequence[Window], limits: Thresholds) -> list[Note]:
    judged = [window for window in windows if window.name in ("measure", "idle")] or list(windows)
    for window in judged:
        ratio = counter_ratio(device, [window])
        if ratio is not None and ratio.disagrees(limits.counter_rel):
            message = f"{device.uuid}: the counter states {ratio.value:.0%} of what the power readings add up to"
            return [Note("counter_disagrees", f"{message} in and around window {window.name}")]
    return []


def _implausible(device: DeviceEvidence, windows: Sequence[Window], accounted: Sequence[WindowEnergy]) -> list[Note]:
    limit_w = PLAUSIBLE_W if device.power_limit_w is None else PLAUSIBLE_REL * device.power_limit_w
    ends = {(window.start_ns, window.end_ns) for window in windows}
    for window in accounted:
        part = next((part for part in window.devices if part.id == device.uuid), None)
        if (window.start_ns, window.end_ns) not in ends or part is None or part.energy_j is None:
            continue
        seconds, bound_j = (window.end_ns - window.start_ns) / 1e9, part.uncertainty_j or 0.0
        if not -bound_j <= part.energy_j <= limit_w * seconds + bound_j:
            power = f"{part.energy_j / seconds:.0f} W in window {window.name}"
            return [Note("implausible_power", f"{device.uuid}: {power}; it can draw {limit_w:.0f} W at most")]
    return []


def _elsewhere(device: DeviceEvidence, windows: Sequence[Window], containers: frozenset[str]) -> list[Note]:
    """`meter_not_on_device` where nothing shows that the cycle ran on the GPU: no process of its own, no work."""
    if any(own_pids(event, containers) for event in device.events if event["event"] == "processes"):
        return []
    powers = [(sample.t_ns, sample.power_w) for sample in device.samples if sample.power_w is not None]
    during = [power for t, power in powers if any(w.start_ns < t <= w.end_ns + AVERAGED_NS for w in windows)]
    used = (s.utilisation for s in device.samples if any(w.start_ns < s.t_ns < w.end_ns for w in windows))
    if not during or any(used) or max(during) > IDLE_REL * min(power for _, power in powers):
        return []
    message = f"{device.uuid}: no process of the cycle was seen on it, and its power never left idle"
    return [Note("meter_not_on_device", message)]


def _largest_gap_s(times: Sequence[int], window: Window) -> float | None:
    before = [t for t in times if t <= window.start_ns]
    after = [t for t in times if t >= window.end_ns]
    if not before or not after:
        return None
    inside = [before[-1], *(t for t in times if window.start_ns < t < window.end_ns), after[0]]
    return max((b - a) / 1e9 for a, b in pairwise(inside))


def _foreign(device: DeviceEvidence, evidence: Evidence) -> list[Note]:
    seen = [event for event in device.events if event["event"] == "processes"]
    if evidence.placement == "host" and evidence.containers.isdisjoint(
        name for event in seen for name in event["containers"].values()
    ):
        # On the host the measured processes are no descendants of the meter's. Where control groups do not identify
        # them, only the processes of the first listing, from before the cycle, count.
        seen = seen[:1]
    # An id that does not exist here shows that the ids belong to another namespace: then a match is a coincidence.
    seen = [event for event in seen if not event["unknown"]]
    # A process without an entry in `containers` had ended when it was looked up.
    groups = [group for event in seen for group in event["containers"].items()]
    pids = sorted({int(pid) for pid, name in groups if name not in evidence.containers})
    if not pids:
        return []
    names = ", ".join(str(pid) for pid in pids[:5])
    return [Note("foreign_process", f"{device.uuid}: other processes compute on this GPU (pid {names})")]


def _memory(device: DeviceEvidence, limits: Thresholds) -> list[Note]:
    used = device.memory_before_bytes
    if used is None or used <= limits.residual_memory_bytes:
        return []
    return [Note("residual_memory", f"{device.uuid}: {used / 2**20:.0f} MiB were in use before the engine was loaded")]


def _throttled(device: DeviceEvidence, windows: Sequence[Window], limits: Thresholds) -> list[Note]:
    notes: list[Note] = []
    for code, key, limit in (
        ("throttled_thermal", "thermal_ns", limits.throttled_thermal_rel),
        ("throttled_power", "power_ns", limits.throttled_power_rel),
    ):
        share = _throttled_share(device, windows, key)
        if share > limit:
            notes.append(Note(code, f"{device.uuid}: clocks were held down for {share:.1%} of the measured time"))
    return notes


def _throttled_share(device: DeviceEvidence, windows: Sequence[Window], key: str) -> float:
    """Growth of a cumulative throttle counter (nanoseconds) around the windows, as a share of their time."""
    series = [
        (event["t_ns"], event[key])
        for event in device.events
        if event["event"] == "throttle" and event[key] is not None
    ]
    grown = length = 0.0
    for window in windows:
        before = [value for t, value in series if t <= window.start_ns]
        after = [value for t, value in series if t >= window.end_ns]
        if before and after:
            grown += max(0, after[0] - before[-1])
            length += window.end_ns - window.start_ns
    return grown / length if length else 0.0


def _clock_spread(device: DeviceEvidence, windows: Sequence[Window]) -> float:
    """Without the clocks that the power limit holds down: that is a condition, which repeats."""
    clocks = [
        sample.sm_clock_mhz
        for sample in device.samples
        if sample.sm_clock_mhz is not None
        and not (sample.clock_events or 0) & POWER_CAP
        and any(w.start_ns < sample.t_ns < w.end_ns for w in windows)
    ]
    return (max(clocks) - min(clocks)) / max(clocks) if clocks and max(clocks) > 0 else 0.0


def _suspended(evidence: Evidence, limits: Thresholds) -> list[Note]:
    ahead = [event["ahead_ns"] for event in evidence.events if event["event"] == "clock"]
    slept_s = (max(ahead) - min(ahead)) / 1e9 if ahead else 0.0
    if slept_s <= limits.suspended_s:
        return []
    return [Note("suspended", f"the machine was suspended for {slept_s:.1f} s while measured")]


def _too_short(accounted: Sequence[WindowEnergy], limits: Thresholds) -> list[Note]:
    chosen = [window for window in accounted if window.name == "measure"]
    stated = [(w.energy_j, w.uncertainty_j) for w in chosen if w.energy_j is not None and w.uncertainty_j is not None]
    energy_j = sum(joules for joules, _ in stated)
    relative = hypot(*(uncertainty for _, uncertainty in stated)) / energy_j if energy_j > 0 else 0.0
    if relative <= limits.uncertainty_rel:
        return []
    seconds = sum(w.end_ns - w.start_ns for w in chosen) / 1e9
    message = f"{seconds:.2f} s give an uncertainty of {relative:.0%}, more than {limits.uncertainty_rel:.0%}: "
    remedy = "measure longer, or calibrate the sensor"
    if all(window.terms and max(window.terms.values()) == window.terms.get("aliasing") for window in chosen):
        # Longer is no better.
        remedy = "the load may keep in step with the sensor; calibrate it, or let repeats or steps take another time"
    return [Note("window_too_short", message + remedy)]
