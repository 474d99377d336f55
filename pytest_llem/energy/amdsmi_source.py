"""The sampler's sources for AMD GPUs: one per device, read through `amdsmi`. Not verified on hardware.

The sampler process opens them for the meter `amdsmi`. It must stay cheap to import (no dataclasses, no statistics).
The accumulator advances about every millisecond (`UPDATE_NS`), so it is read at a fixed distance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pytest_llem.energy.processes import listing
from pytest_llem.energy.readings import GpuFacts, Sample, SampleWriter, SensorError, Source

PERIOD_NS = 20_000_000
"""Chosen: as dense as the fastest NVIDIA counters, at well under 1 % of a core."""

UPDATE_NS = 1_000_000
"""How old a reading of the accumulator may be (AMD SMI documentation, `amdsmi_get_energy_count`)."""

STATE_PERIOD_NS = 500_000_000
"""Chosen: as for NVIDIA GPUs (`nvml_source`)."""

PROCESSES_PERIOD_NS = 2_000_000_000
"""Chosen: as for NVIDIA GPUs (`nvml_source`)."""

RETRY_NS = 1_000_000_000
"""Chosen: an error is noted once, and a device that recovers is read again within a second."""


class AmdSource(Source):
    """One AMD GPU. Quantities without a sensor are left out; an error is written, and the device is tried again."""

    def __init__(self, amdsmi: Any, handle: object, uuid: str, owners: Sequence[int]) -> None:
        self._amdsmi = amdsmi
        self._handle = handle
        self._uuid = uuid
        self._owners = owners
        self._state_due_ns = 0
        self._processes_due_ns = 0
        self._failing = False

    def poll(self, writer: SampleWriter) -> None:
        """Read the accumulator, and what else is due."""
        begin = time.monotonic_ns()
        self.due_ns = begin + PERIOD_NS
        try:
            count = self._amdsmi.amdsmi_get_energy_count(self._handle)
        except self._amdsmi.AmdSmiException as problem:
            self.due_ns = begin + RETRY_NS
            self.power_w = None
            if not self._failing:
                self._failing = True
                writer.event(begin, "error", device=self._uuid, code=None, message=str(problem))
            return
        end = time.monotonic_ns()
        if self.known_until_ns == 0.0:
            writer.event(end, "sensor", device=self._uuid, counter=True, power="average")
        self._failing = False
        self.known_until_ns = begin - UPDATE_NS
        temperature = clock = None
        if begin >= self._state_due_ns:
            self._state_due_ns = begin + STATE_PERIOD_NS
            self.power_w = self._power()
            temperature, clock = self._temperature(), self._clock()
        energy_mj = float(count["energy_accumulator"]) * float(count["counter_resolution"]) / 1e3
        low = begin - UPDATE_NS
        t_ns, bracket_ns = (low + end) // 2, (end - low) // 2
        writer.sample(Sample(t_ns, self._uuid, self.power_w, energy_mj, temperature, clock, bracket_ns=bracket_ns))
        if begin >= self._processes_due_ns:
            self._processes_due_ns = begin + PROCESSES_PERIOD_NS
            processes = self._optional("amdsmi_get_gpu_process_list")
            if isinstance(processes, list):
                fields = listing([int(p["pid"]) for p in processes if isinstance(p, Mapping)], self._owners)
                writer.event(time.monotonic_ns(), "processes", device=self._uuid, **fields)

    def finish(self, writer: SampleWriter) -> None:
        """Read once more."""
        self._state_due_ns = self._processes_due_ns = 0
        self.poll(writer)

    def _power(self) -> float | None:
        info = self._optional("amdsmi_get_power_info")
        if not isinstance(info, Mapping):
            return None
        # Each generation of boards fills one of the two; the other is "N/A" or 0.
        values = [info.get(name) for name in ("current_socket_power", "average_socket_power")]
        return next((float(value) for value in values if isinstance(value, (int, float)) and value > 0), None)

    def _temperature(self) -> float | None:
        smi = self._amdsmi
        value = self._optional(
            "amdsmi_get_temp_metric", smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT
        )
        return float(value) if isinstance(value, (int, float)) else None

    def _clock(self) -> float | None:
        info = self._optional("amdsmi_get_clock_info", self._amdsmi.AmdSmiClkType.GFX)
        value = info.get("clk") if isinstance(info, Mapping) else None
        return float(value) if isinstance(value, (int, float)) else None

    def _optional(self, name: str, *more: object) -> object:
        try:
            result: object = getattr(self._amdsmi, name)(self._handle, *more)
        except self._amdsmi.AmdSmiException:
            return None
        return result

    def facts(self) -> GpuFacts:
        """What the meter needs to know of the GPU."""
        asic, driver = self._optional("amdsmi_get_gpu_asic_info"), self._optional("amdsmi_get_gpu_driver_info")
        name = str(asic.get("market_name")) if isinstance(asic, Mapping) else "AMD GPU"
        return GpuFacts(
            self._uuid, name, str(driver.get("driver_version")) if isinstance(driver, Mapping) else "unknown"
        )


def open_gpus(
    uuids: Sequence[str], owners: Sequence[int], beside: Sequence[str] = (), follow_pid: int | None = None
) -> list[tuple[AmdSource, GpuFacts]]:
    """The AMD GPUs with these UUIDs (all for none) and facts about each. Raises `SensorError` where one cannot open."""
    amdsmi: Any = import_module("amdsmi")
    try:
        amdsmi.amdsmi_init()
        handles = {str(amdsmi.amdsmi_get_gpu_device_uuid(h)): h for h in amdsmi.amdsmi_get_processor_handles()}
    except amdsmi.AmdSmiException as problem:
        raise SensorError(
            f"amdsmi: {problem}", "run `amd-smi list`; it should show the GPUs without an error"
        ) from None
    sources = [AmdSource(amdsmi, h, uuid, owners) for uuid, h in handles.items() if not uuids or uuid in uuids]
    if not sources:
        raise SensorError("amdsmi finds no such GPU", "check `amd-smi list`, or use --llem-meter=auto")
    return [(source, source.facts()) for source in sources]
