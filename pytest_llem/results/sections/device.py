"""The section `device` of a result: what it ran on, and whether what was set on its GPUs held while it was measured.

`attempts` calls it with the cycle's samples, and `derive` asks it for the reasons against the result. It believes the
readings in the measure windows, never the setter: without readings a setting counts as not verified.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

from pytest_llem.energy.nvml_devices import CLOCK_EVENTS
from pytest_llem.energy.readings import Sample, read_sample_events, read_samples
from pytest_llem.errors import JsonValue
from pytest_llem.job.gpu_setting import GpuSetting
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import EnergyReport, Measurement, Window
from pytest_llem.job.report import Note
from pytest_llem.results.energy_schema import DeviceSection, GpuSettingSection, GpuStateSection
from pytest_llem.results.sections.energy import MEASURE

CLOCK_STEP_MHZ = 15.0
"""Distance of two SM clocks of NVIDIA's boards (`nvidia-smi -q -d SUPPORTED_CLOCKS`): a driver takes the next one."""

HELD_SHARE = 0.9
"""Chosen: a tenth of the time at another clock moves the mean by less than steps that a sweep would tell apart."""

LIMIT_W = 1.0
"""Chosen: limits are whole watts by intent, and a driver may round them."""

LIMIT_REL = 0.05
"""How far mean power may read above its limit: what a board's power readings err by (NVML documentation of
`nvmlDeviceGetPowerUsage`; arXiv 2312.02741)."""

BESIDE_NS = 600_000_000
"""Chosen: half a second between two readings of a limit (`nvml_source.STATE_PERIOD_NS`) and a step of the counter. A
limit is the same beside a window."""

REACH_NS = 1_000_000_000
"""Chosen: twice the time between two readings. So far to either side one reading speaks for the measured time."""

DEFAULT = "default"
CLOCKS = ("sm_clock_mhz", "memory_clock_mhz")
IDLE = next(bit for bit, name in CLOCK_EVENTS.items() if name == "gpu_idle")


@dataclass(frozen=True)
class _Readings:
    """The readings of one GPU: those of the measure windows, those beside them, and its mean power with k=2."""

    windows: tuple[tuple[int, int], ...]
    inside: tuple[Sample, ...]
    near: tuple[Sample, ...]
    mean_w: float | None
    uncertainty_w: float
    covers_more: bool
    """Whether the power is that of a module, CPU included, which a GPU's limit does not bound."""
    default_limit_w: float | None
    profiles: tuple[tuple[str, ...], ...]
    """Active sets of profiles, in order; none where the board has no profiles."""

    def under_load(self, name: str) -> list[float]:
        """The readings of a clock with work on the GPU, as far as the driver says so."""
        read = [sample for sample in self.inside if getattr(sample, name) is not None]
        busy = [sample for sample in read if not (sample.clock_events or 0) & IDLE]
        return [getattr(sample, name) for sample in busy or read]

    def covered(self, *names: str) -> bool:
        """Whether the readings of one of these tell of the measured time, all but a tenth of it."""
        times = sorted(s.t_ns for s in self.near if any(getattr(s, name) is not None for name in names))
        told = 0
        for start, end in self.windows:
            reached = start
            for t_ns in times[bisect_left(times, start - REACH_NS) : bisect_right(times, end + REACH_NS)]:
                told += max(0, min(t_ns + REACH_NS, end) - max(t_ns - REACH_NS, reached))
                reached = max(reached, min(t_ns + REACH_NS, end))
        return told >= HELD_SHARE * sum(end - start for start, end in self.windows)

    @property
    def clock_events(self) -> dict[str, float]:
        """The share of the readings at which each reason held the clocks down; idling does not."""
        masks = [sample.clock_events for sample in self.inside if sample.clock_events is not None]
        found = Counter(name for mask in masks for bit, name in CLOCK_EVENTS.items() if mask & bit and bit != IDLE)
        return {name: count / len(masks) for name, count in found.most_common()}

    @property
    def limits_w(self) -> tuple[float, ...]:
        """The limits in force, in order."""
        return tuple(dict.fromkeys(s.power_limit_w for s in self.near if s.power_limit_w is not None))

    @property
    def powers_w(self) -> list[float]:
        """The power readings of the measure windows."""
        return [sample.power_w for sample in self.inside if sample.power_w is not None]


def derive_device(job: Job, measurement: Measurement, samples: Path) -> DeviceSection:
    """The section; how the leased GPUs were set as far as `samples` has readings of them."""
    asked = job.config.device
    section = DeviceSection(kind=job.devices.kind, cpus=asked.cpus, numa_node=asked.numa_node)
    if job.devices.kind == "cpu":
        return section
    energy = measurement.energy
    leased = [device.id for device in energy.devices if device.kind == "gpu" and device.leased] if energy else []
    windows = [window for window in measurement.windows if window.name == MEASURE]
    read: dict[str, list[Sample]] = {}
    for sample in read_samples(samples):
        read.setdefault(sample.device, []).append(sample)
    events = list(read_sample_events(samples))
    # Of a MIG instance the whole GPU is metered, which is its state; what was to be set is judged, metered or not.
    named = job.devices.uuids if asked.gpu_settings or not leased else ()
    gpus = dict.fromkeys([*leased, *named])
    states = (
        _state(gpu, _settings(job, gpu), _readings(gpu, read.get(gpu, ()), events, windows, energy)) for gpu in gpus
    )
    return replace(section, gpus=tuple(states))


def device_reasons(device: DeviceSection) -> Iterator[Note]:
    """Why a cycle whose GPUs were not set as the study asks, or set meanwhile, may not be used, with what was read."""
    for gpu in device.gpus:
        limits = " and ".join(map(_written, gpu.power_limits_w))
        ours = any(setting.name == "power_limit_w" for setting in gpu.settings)
        if not ours and max(gpu.power_limits_w, default=0.0) - min(gpu.power_limits_w, default=0.0) > LIMIT_W:
            yield Note(
                "power_limit_changed",
                f"{gpu.id}: limits of {limits} W were in force while measured: find out what sets them "
                "(`nvidia-smi -q -d POWER`)",
            )
        for setting in gpu.settings:
            if setting.held or (setting.held is None and setting.requested == DEFAULT and setting.name in CLOCKS):
                continue  # to a clock of the board's own there is nothing to hold it
            asked = f"{gpu.id}: {setting.name} {_written(setting.requested)} asked"
            if setting.held is None:
                why = "too little was read of it while measured (readings are half a second apart)"
                yield Note("setting_not_verified", f"{asked}, and {why}: measure longer, with the meter nvml")
            elif setting.name == "power_limit_w":
                seen = f"a limit of {limits} in force and {_written(setting.observed)} drawn in the mean"
                yield Note("power_limit_not_applied", f"{asked}, {seen} while measured")
            elif setting.name == "power_profile":
                yield Note("power_profile_not_active", f"{asked}, {setting.observed} active while measured")
            else:
                why = ", ".join(f"{name} {share:.0%} of the time" for name, share in gpu.clock_events.items())
                span = f"{_written(setting.observed_low)} to {_written(setting.observed_high)}"
                seen = f"{_written(setting.observed)} in the median while measured ({span})"
                yield Note("clock_not_held", f"{asked}, {seen}{f': {why}' if why else ''}")


def with_power_limits(environment: Mapping[str, JsonValue], device: DeviceSection) -> Mapping[str, JsonValue]:
    """The environment with each GPU's limit of the cycle, where that is known, for what it was when it was gathered."""
    limits = {gpu.id: min(gpu.power_limits_w) for gpu in device.gpus if gpu.power_limits_w}
    gpus = environment.get("gpus")
    if not limits or not isinstance(gpus, (list, tuple)):
        return environment
    found: list[JsonValue] = [
        {**gpu, "power_limit_w": limits.get(str(gpu.get("uuid")), gpu.get("power_limit_w"))}
        if isinstance(gpu, Mapping)
        else gpu
        for gpu in gpus
    ]
    return {**environment, "gpus": found}


def _written(value: float | str | None) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, (int, float)) else str(value)


def _settings(job: Job, gpu: str) -> list[GpuSetting]:
    """What the study asks of a GPU, with what was made of it where that is known."""
    made = {setting.name: setting for setting in job.gpu_settings if setting.gpu == gpu}
    asked = job.config.device.gpu_settings
    return [made.get(name, GpuSetting(gpu, name, value)) for name, value in asked.items()]


def _readings(
    gpu: str,
    samples: Sequence[Sample],
    events: Sequence[Mapping[str, Any]],
    windows: Collection[Window],
    energy: EnergyReport | None,
) -> _Readings:
    spans = tuple((window.start_ns, window.end_ns) for window in windows)

    def within(beside_ns: int) -> tuple[Sample, ...]:
        def near(t_ns: int) -> bool:
            return any(start - beside_ns <= t_ns <= end + beside_ns for start, end in spans)

        return tuple(sample for sample in samples if near(sample.t_ns))

    mean_w, uncertainty_w = _mean_power(gpu, energy)
    of_gpu = [event for event in events if event.get("device") == gpu]
    defaults = [event.get("default_limit_w") for event in of_gpu if event["event"] == "sensor"]
    last_ns = max((window.end_ns for window in windows), default=0)
    first_ns = min((window.start_ns for window in windows), default=0)
    profiles = [event for event in of_gpu if event["event"] == "profiles" and event["t_ns"] <= last_ns]
    before = [event for event in profiles if event["t_ns"] <= first_ns][-1:]
    during = before + [event for event in profiles if event["t_ns"] > first_ns]
    return _Readings(
        windows=spans,
        inside=within(0),
        near=within(BESIDE_NS),
        mean_w=mean_w,
        uncertainty_w=uncertainty_w,
        covers_more=energy is not None and energy.scope == "module",
        default_limit_w=defaults[0] if defaults else None,
        profiles=tuple(tuple(event["active"]) for event in during if event.get("active") is not None),
    )


def _mean_power(gpu: str, energy: EnergyReport | None) -> tuple[float | None, float]:
    """A GPU's mean power over the measure windows and its k=2 uncertainty; `None` where it was not measured."""
    measured = [window for window in energy.windows if window.name == MEASURE] if energy and energy.measured else []
    parts = [part for window in measured for part in window.devices if part.id == gpu]
    seconds = sum(window.end_ns - window.start_ns for window in measured) / 1e9
    joules = [part.energy_j for part in parts if part.energy_j is not None]
    if not joules or len(joules) < len(measured) or not seconds:
        return None, 0.0
    return sum(joules) / seconds, sum(part.uncertainty_j or 0.0 for part in parts) / seconds


def _state(gpu: str, settings: Sequence[GpuSetting], read: _Readings) -> GpuStateSection:
    applied = [float(s.applied) for s in settings if s.name == "power_limit_w" and isinstance(s.applied, (int, float))]
    return GpuStateSection(
        id=gpu,
        power_limits_w=read.limits_w or tuple(applied),
        sm_clock_mhz=_median(read.under_load("sm_clock_mhz")),
        memory_clock_mhz=_median(read.under_load("memory_clock_mhz")),
        clock_events=read.clock_events,
        power_profiles=read.profiles[-1] if read.profiles else None,
        settings=tuple(_judged(setting, read) for setting in settings),
    )


def _judged(setting: GpuSetting, read: _Readings) -> GpuSettingSection:
    section = GpuSettingSection(
        name=setting.name, requested=setting.requested, previous=setting.previous, applied=setting.applied
    )
    if setting.name == "power_limit_w":
        return _judged_limit(section, read)
    if setting.name == "power_profile":
        return _judged_profile(section, read)
    clocks = read.under_load(setting.name)
    if not clocks:
        return section
    section = replace(section, observed=median_low(clocks), observed_low=min(clocks), observed_high=max(clocks))
    if isinstance(setting.requested, str):
        return section  # what the board does on its own is no number to hold it to
    near = [abs(clock - setting.requested) <= CLOCK_STEP_MHZ for clock in clocks]
    held = sum(near) >= HELD_SHARE * len(near)
    return replace(section, held=held and (read.covered(setting.name) or None))


def _judged_limit(section: GpuSettingSection, read: _Readings) -> GpuSettingSection:
    """A limit holds where no other was in force beside the windows and mean power does not exceed it."""
    own_w = read.default_limit_w if read.default_limit_w is not None else section.applied
    limit_w = own_w if isinstance(section.requested, str) else section.requested
    powers_w, limits_w = read.powers_w, read.limits_w
    mean_w = read.mean_w if read.mean_w is not None else fmean(powers_w) if powers_w else None
    if mean_w is None or not limits_w or limit_w is None or isinstance(limit_w, str):
        return section
    kept = all(abs(limit - limit_w) <= LIMIT_W for limit in limits_w)
    drawn_w = 0.0 if read.covers_more else mean_w
    held = kept and drawn_w - read.uncertainty_w <= limit_w * (1 + LIMIT_REL)
    return replace(
        section,
        observed=mean_w,
        observed_low=min(powers_w, default=None),
        observed_high=max(powers_w, default=None),
        held=held and (read.covered("power_limit_w") or None),
        reached="sw_power_cap" in read.clock_events or drawn_w >= limit_w * (1 - LIMIT_REL),
    )


def _judged_profile(section: GpuSettingSection, read: _Readings) -> GpuSettingSection:
    """A profile holds where it was active all the time; `default` is none."""
    if not read.profiles:
        return section
    asked = () if section.requested == DEFAULT else (section.requested,)
    held = all((set(asked) <= set(active)) if asked else not active for active in read.profiles)
    covered = read.covered("power_limit_w", "sm_clock_mhz", "memory_clock_mhz")  # profiles are read with them
    return replace(section, observed=", ".join(read.profiles[-1]) or "none", held=held and (covered or None))


def _median(values: Sequence[float]) -> float | None:
    return median_low(values) if values else None
