"""The sampler's sources for AMD GPUs: one per device, read through `amdsmi`. Not verified on hardware.

The sampler process opens them for the meter `amdsmi`. The accumulator times its resolution is energy in microjoules and
advances about every millisecond (AMD SMI documentation, `amdsmi_get_energy_count`), so it is read at a fixed distance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pytest_llem.energy.nvml_source import SensorError
from pytest_llem.energy.processes import foreign_pids
from pytest_llem.energy.readings import Sample, SampleWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_llem.errors import JsonValue

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


class AmdSource:
    """One AMD GPU. Quantities without a sensor are left out; an error is written, and the device is tried again."""

    def __init__(self, amdsmi: Any, handle: object, uuid: str, owners: Sequence[int]) -> None:
        self.due_ns = time.monotonic_ns()
        self.known_until_ns = 0.0
        self._amdsmi = amdsmi
        self._handle = handle
        self._uuid = uuid
        self._owners = owners
        self._power_w: float | None = None
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
            self._failed(writer, begin, problem)
            return
        end = time.monotonic_ns()
        if self.known_until_ns == 0.0:
            writer.event(end, "sensor", device=self._uuid, counter=True, power="average")
        self._failing = False
        self.known_until_ns = begin - UPDATE_NS
        temperature = clock = None
        if begin >= self._state_due_ns:
            self._state_due_ns = begin + STATE_PERIOD_NS
            self._power_w = self._power()
            temperature, clock = self._temperature(), self._clock()
        energy_mj = float(count["energy_accumulator"]) * float(count["counter_resolution"]) / 1e3
        low = begin - UPDATE_NS
        writer.sample(
            Sample(
                (low + end) // 2,
                self._uuid,
                self._power_w,
                energy_mj,
                temperature,
                clock,
                bracket_ns=(end - low) // 2,
            )
        )
        if begin >= self._processes_due_ns:
            self._processes_due_ns = begin + PROCESSES_PERIOD_NS
            self._read_processes(writer)

    def power_w(self) -> float | None:
        """The latest socket power."""
        return self._power_w

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

    def _read_processes(self, writer: SampleWriter) -> None:
        listed = self._optional("amdsmi_get_gpu_process_list")
        if isinstance(listed, list):
            pids = [int(process["pid"]) for process in listed if isinstance(process, Mapping)]
            foreign, unknown = foreign_pids(pids, self._owners)
            writer.event(
                time.monotonic_ns(),
                "processes",
                device=self._uuid,
                pids=tuple(pids),
                foreign=tuple(foreign),
                unknown=tuple(unknown),
            )

    def _optional(self, name: str, *more: object) -> object:
        try:
            result: object = getattr(self._amdsmi, name)(self._handle, *more)
        except self._amdsmi.AmdSmiException:
            return None
        return result

    def _failed(self, writer: SampleWriter, now_ns: int, problem: Exception) -> None:
        self.due_ns = now_ns + RETRY_NS
        self._power_w = None
        if not self._failing:
            self._failing = True
            writer.event(now_ns, "error", device=self._uuid, code=None, message=str(problem))


def open_gpus(uuids: Sequence[str], owners: Sequence[int]) -> tuple[list[AmdSource], list[JsonValue]]:
    """Sources for the AMD GPUs with these UUIDs (all for none), and a line of facts about each.

    Raises `SensorError` when the library or a device cannot be opened.
    """
    amdsmi: Any = import_module("amdsmi")
    sources: list[AmdSource] = []
    facts: list[JsonValue] = []
    try:
        amdsmi.amdsmi_init()
        handles = amdsmi.amdsmi_get_processor_handles()
        for index, handle in enumerate(handles):
            uuid = str(amdsmi.amdsmi_get_gpu_device_uuid(handle))
            if uuids and uuid not in uuids:
                continue
            sources.append(AmdSource(amdsmi, handle, uuid, owners))
            asic = sources[-1]._optional("amdsmi_get_gpu_asic_info")
            driver = sources[-1]._optional("amdsmi_get_gpu_driver_info")
            facts.append(
                {
                    "uuid": uuid,
                    "index": index,
                    "name": str(asic.get("market_name")) if isinstance(asic, Mapping) else "AMD GPU",
                    "driver": str(driver.get("driver_version")) if isinstance(driver, Mapping) else "unknown",
                    "mig": False,
                    "module": False,
                    "memory_used_bytes": None,
                }
            )
    except amdsmi.AmdSmiException as problem:
        raise SensorError(
            f"amdsmi: {problem}", "run `amd-smi list`; it should show the GPUs without an error"
        ) from None
    if not sources:
        raise SensorError("amdsmi finds no such GPU", "check `amd-smi list`, or use --llem-meter=auto")
    return sources, facts
