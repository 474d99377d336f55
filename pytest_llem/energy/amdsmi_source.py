"""The sampler's sources for AMD GPUs: one per device, read through `amdsmi`. Not verified on hardware.

The sampler process opens them for the meter `amdsmi`. It must stay cheap to import (no dataclasses, no statistics).
The accumulator advances about every millisecond (`UPDATE_NS`), so it is read at a fixed distance.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf

from pytest_llem.energy import amdsmi_devices
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

    def __init__(self, gpu: amdsmi_devices.AmdGpu, owners: Sequence[int]) -> None:
        self._gpu = gpu
        self._amdsmi = gpu.smi
        self._uuid = gpu.uuid
        self._owners = owners
        self._state_due_ns = 0
        self._processes_due_ns = 0
        self._failing = False

    def poll(self, writer: SampleWriter) -> None:
        """Read the accumulator, and what else is due."""
        begin = time.monotonic_ns()
        self.due_ns = begin + PERIOD_NS
        try:
            count = self._amdsmi.amdsmi_get_energy_count(self._gpu.handle)
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
        temperature = clock = memory_clock = cap_w = None
        if begin >= self._state_due_ns:
            self._state_due_ns = begin + STATE_PERIOD_NS
            self.power_w = self._gpu.power_w
            temperature, cap_w = self._gpu.temperature_c, self._gpu.power_cap_w
            clock, memory_clock = self._gpu.clock_mhz("GFX"), self._gpu.clock_mhz("MEM")
        energy_mj = float(count["energy_accumulator"]) * float(count["counter_resolution"]) / 1e3
        low = begin - UPDATE_NS
        t_ns, bracket_ns = (low + end) // 2, (end - low) // 2
        sample = Sample(t_ns, self._uuid, self.power_w, energy_mj, temperature, clock, bracket_ns=bracket_ns)
        writer.sample(sample._replace(memory_clock_mhz=memory_clock, power_limit_w=cap_w))
        if begin >= self._processes_due_ns:
            self._processes_due_ns = begin + PROCESSES_PERIOD_NS
            processes = self._gpu.processes
            if processes is not None:
                fields = listing(tuple(processes), self._owners)
                writer.event(time.monotonic_ns(), "processes", device=self._uuid, **fields)

    def finish(self, writer: SampleWriter) -> None:
        """Read once more."""
        self._state_due_ns = self._processes_due_ns = 0
        self.poll(writer)


class ListedSource(Source):
    """An AMD GPU that is not metered: only its processes are listed."""

    known_until_ns = inf
    counted = False

    def __init__(self, gpu: amdsmi_devices.AmdGpu, owners: Sequence[int]) -> None:
        self._gpu = gpu
        self._owners = owners

    def poll(self, writer: SampleWriter) -> None:
        """List its processes."""
        now = time.monotonic_ns()
        self.due_ns = now + PROCESSES_PERIOD_NS
        fields = listing(tuple(self._gpu.processes or ()), self._owners)
        writer.event(now, "processes", device=self._gpu.uuid, **fields)


def open_gpus(
    uuids: Sequence[str], owners: Sequence[int], beside: Sequence[str] = (), follow_pid: int | None = None
) -> list[tuple[Source, GpuFacts | None]]:
    """The AMD GPUs with these UUIDs (all for none) and facts about each, those `beside` them as not leased.

    With `follow_pid` those that hold a process of its tree take the place of `uuids`, if there are any. Where some are
    leased, the processes of all others are listed too: HIP may have numbered its GPUs otherwise than `amdsmi` says.
    Raises `SensorError` where one cannot open.
    """
    smi = amdsmi_devices.library()
    try:
        smi.amdsmi_init()
        gpus = {gpu.uuid: gpu for gpu in amdsmi_devices.found(smi)}
    except smi.AmdSmiException as problem:
        raise SensorError(f"amdsmi: {problem}", amdsmi_devices.REMEDY) from None
    held = [] if follow_pid is None else [uuid for uuid, gpu in gpus.items() if gpu.holds(follow_pid)]
    leased = held or list(uuids) or list(gpus)
    missing = [uuid for uuid in leased if uuid not in gpus]
    if missing or not leased:
        raise SensorError(f"amdsmi finds no GPU {', '.join(missing)}".rstrip(), "check `amd-smi list`")
    read = dict.fromkeys([*leased, *(uuid for uuid in beside if uuid in gpus)])
    opened: list[tuple[Source, GpuFacts | None]] = [
        (AmdSource(gpus[uuid], owners), _facts(gpus[uuid], leased=uuid in leased)) for uuid in read
    ]
    if uuids:
        opened += [(ListedSource(gpu, owners), None) for uuid, gpu in gpus.items() if uuid not in read]
    return opened


def _facts(gpu: amdsmi_devices.AmdGpu, *, leased: bool) -> GpuFacts:
    """What the meter needs to know of a GPU, with its memory in use now."""
    module = any(name in gpu.name for name in amdsmi_devices.MODULES)
    return GpuFacts(gpu.uuid, gpu.name, gpu.driver, module=module, memory_used_bytes=gpu.used_bytes, leased=leased)
