"""Waits before a cycle until a GPU is back at idle, or for a number of seconds.

`runners.measure_here` calls it under the lease of the devices. The first cycle on a GPU defines what idle is for the
run; no later one may, since waiting would then end while the GPU is still warm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pynvml

from pytest_llem.energy import amdsmi_devices
from pytest_llem.energy.nvml_devices import by_uuid, nvml
from pytest_llem.errors import JsonValue
from pytest_llem.job.files import read_json, slug, write_json
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.report import Note
from pytest_llem.worker.convergence import settle

REFERENCES = ".idle"
LIMIT_S = 120.0
"""Chosen: a board that is still warm after two minutes waits for its room, which must not hold up a run."""

POWER_BAND_REL, POWER_BAND_W = 0.10, 5.0
"""Chosen: twice the 5 % to which a reading is accurate (NVML documentation of nvmlDeviceGetPowerUsage), and 5 W for
boards that idle at a few watts."""

TEMPERATURE_BAND_C = 5.0
"""Chosen: small beside the tens of degrees between idle and load."""

READINGS = 5
"""Chosen: with `POLL_S`, half a second of readings of a driver that averages power over a second."""

POLL_S = 0.1
"""Chosen: NVML answers within a millisecond."""

Setting = Literal["auto"] | float


@dataclass(frozen=True)
class Cooldown:
    """How long a cycle waited, in seconds, why the wait ended, and what a reader of the result must know."""

    seconds: float
    reason: Literal["first cycle", "not needed", "fixed", "idle", "settled", "limit", "unknown"]
    note: Note | None = None

    @property
    def facts(self) -> dict[str, JsonValue]:
        """For the result's `runner.facts`."""
        return {"cooldown_s": self.seconds, "cooldown_ended": self.reason}


@dataclass(frozen=True)
class Reading:
    """Power and temperature of one GPU; `None` where it does not say."""

    power_w: float | None
    temperature_c: float | None


def cool_down(
    setting: Setting, devices: DeviceSet, run_dir: Path, *, loaded: bool = False, limit_s: float = LIMIT_S
) -> Cooldown:
    """Wait before a cycle; the caller holds the devices' lease.

    `auto` takes power and temperature at the run's first cycle on a GPU, before anything ran there, as its idle band,
    and waits later ones until both are back in it, at most `limit_s` seconds; a CPU has no such wait. With a `loaded`
    engine a GPU idles elsewhere: then the wait is for its power to stop falling. A number of seconds is waited between
    cycles, so not before the first.
    """
    names = devices.uuids or (devices.kind,)
    records = {name: run_dir / REFERENCES / f"{slug(name)}.json" for name in names}
    first = [name for name, record in records.items() if not record.exists()]
    if first:
        _record(first, records, devices)
        return Cooldown(0.0, "first cycle")
    if setting != "auto":
        time.sleep(setting)
        return Cooldown(float(setting), "fixed")
    if not devices.on_gpu:
        return Cooldown(0.0, "not needed")
    if loaded:
        waited_s, settled = settle(lambda: _total_w(devices.uuids), limit_s)
        return Cooldown(waited_s, "unknown" if settled is None else "settled" if settled else "limit")
    return _until_idle(devices.uuids, {name: read_json(record) for name, record in records.items()}, limit_s)


def _record(first: Sequence[str], records: Mapping[str, Path], devices: DeviceSet) -> None:
    taken: dict[str, list[Reading]] = {name: [] for name in first}
    if devices.on_gpu:
        for _ in range(READINGS):
            for name, reading in read(first).items():
                taken[name].append(reading)
            time.sleep(POLL_S)
    for name, readings in taken.items():
        records[name].parent.mkdir(parents=True, exist_ok=True)
        powers = [reading.power_w for reading in readings if reading.power_w is not None]
        temperatures = [reading.temperature_c for reading in readings if reading.temperature_c is not None]
        write_json(
            records[name],
            {
                "power_w": sum(powers) / len(powers) if powers else None,
                "temperature_c": sum(temperatures) / len(temperatures) if temperatures else None,
            },
        )


def _until_idle(uuids: Sequence[str], idle: Mapping[str, Mapping[str, JsonValue]], limit_s: float) -> Cooldown:
    started = time.monotonic()
    while True:
        readings = read(uuids)
        if not readings:
            return Cooldown(time.monotonic() - started, "unknown")
        above = [text for uuid, reading in readings.items() if (text := _above_idle(uuid, reading, idle[uuid]))]
        waited_s = time.monotonic() - started
        if not above:
            return Cooldown(waited_s, "idle")
        if waited_s >= limit_s:
            text = f"not back at idle after {limit_s:g} s of cooldown: {'; '.join(above)}"
            return Cooldown(waited_s, "limit", Note("cooldown_limit", text))
        time.sleep(POLL_S)


def _above_idle(uuid: str, now: Reading, idle: Mapping[str, JsonValue]) -> str | None:
    power, temperature = idle.get("power_w"), idle.get("temperature_c")
    highest_w = power * (1 + POWER_BAND_REL) + POWER_BAND_W if isinstance(power, (int, float)) else None
    highest_c = temperature + TEMPERATURE_BAND_C if isinstance(temperature, (int, float)) else None
    excess = []
    if now.power_w is not None and highest_w is not None and now.power_w > highest_w:
        excess.append(f"{now.power_w:.0f} W, idle is up to {highest_w:.0f} W")
    if now.temperature_c is not None and highest_c is not None and now.temperature_c > highest_c:
        excess.append(f"{now.temperature_c:.0f} °C, idle is up to {highest_c:.0f} °C")
    return f"{uuid}: {', '.join(excess)}" if excess else None


def read(uuids: Sequence[str]) -> dict[str, Reading]:
    """Power (NVML's one-second average) and temperature of each GPU; empty where the driver does not answer."""
    if any(map(amdsmi_devices.is_amd, uuids)):
        with amdsmi_devices.answering(uuids) as gpus:
            return {gpu.uuid: Reading(gpu.power_w, gpu.temperature_c) for gpu in gpus}
    try:
        with nvml():
            return {uuid: _reading(by_uuid(uuid)) for uuid in uuids}
    except pynvml.NVMLError:
        return {}


def _reading(handle: object) -> Reading:
    try:
        power_w: float | None = int(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3
    except pynvml.NVMLError:
        power_w = None
    try:
        temperature: float | None = float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        temperature = None
    return Reading(power_w, temperature)


def _total_w(uuids: Sequence[str]) -> float | None:
    powers = [reading.power_w for reading in read(uuids).values()]
    return sum(power for power in powers if power is not None) if powers and None not in powers else None
