"""The sampler's sources for NVIDIA GPUs: one per device, read through `pynvml`.

The sampler process opens them for the meter `nvml` and for calibration; the tests run them on a virtual clock. It must
stay cheap to import (no dataclasses, no statistics), because the measured process waits for the sampler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from typing import Any

import pynvml

from pytest_llem.energy import nvml_devices
from pytest_llem.energy.calibration import Calibration, load
from pytest_llem.energy.processes import listing
from pytest_llem.energy.readings import GpuFacts, Sample, SampleWriter, SensorError, Source
from pytest_llem.energy.ticks import TickTracker
from pytest_llem.errors import JsonValue

POWER_PERIOD_NS = 50_000_000
"""Chosen: half of the 100 ms at which A100 and H100 update their power (arXiv 2312.02741), so that none is missed."""

STATE_PERIOD_NS = 500_000_000
"""Chosen: temperature, clocks and memory change over seconds, and each is a call of its own that delays the counter."""

PROCESSES_PERIOD_NS = 2_000_000_000
"""Chosen: another process that matters stays for seconds; a listing reads /proc for every process on the GPU."""

RETRY_NS = 100_000_000
"""Chosen: one period of the counter (arXiv 2312.02741), so that a failed read costs one step."""

LOST_RETRY_NS = 1_000_000_000
"""Chosen: a GPU that fell off the bus comes back after a reset, in seconds if at all."""

_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_RESET_REQUIRED)
_ABSENT = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
_FIELDS = (
    pynvml.NVML_FI_DEV_POWER_INSTANT,
    pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL,
)


class GpuSource(Source):
    """One GPU: the steps of its counter, closely bracketed, and after each step whatever else is due.

    An NVML error is written as an event and the device is tried again: a GPU that fell off the bus leaves a gap in the
    readings and does not end them.
    """

    def __init__(self, handle: object, uuid: str, owners: Sequence[int], sensor: Calibration | None) -> None:
        self._handle = handle
        self._uuid = uuid
        self._owners = owners
        self._tracker = (
            TickTracker(sensor.poll_step_ns, sensor.period_ns, sensor.jitter_ns) if sensor else TickTracker()
        )
        self._counts = True
        self._absent: set[str] = set()
        self._described = False
        self._throttled: list[int | None] = []
        self._profiles: list[str] | None = None
        self._state_due_ns = 0
        self._processes_due_ns = 0
        self._error_code: int | None = None

    def poll(self, writer: SampleWriter) -> None:
        """Read the counter, or the power where there is no counter."""
        try:
            if self._counts:
                self._poll_counter(writer)
            else:
                self._poll_power(writer)
        except pynvml.NVMLError as problem:
            self._failed(writer, problem)
        else:
            self._error_code = None

    def finish(self, writer: SampleWriter) -> None:
        """Write the throttle counters, the device's state and its processes once more."""
        self._state_due_ns = 0
        try:
            self._read_fields(writer, time.monotonic_ns(), None, None)
            self._read_processes(writer)
        except pynvml.NVMLError as problem:
            self._failed(writer, problem)

    def _poll_counter(self, writer: SampleWriter) -> None:
        begin = time.monotonic_ns()
        try:
            value = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except pynvml.NVMLError as problem:
            if problem.value not in _ABSENT or self.known_until_ns > 0:
                raise
            self._counts = False
            self.due_ns = begin
            return
        end = time.monotonic_ns()
        tick = self._tracker.observe(begin, end, value)
        self.due_ns = self._tracker.due_ns
        if tick is not None:
            self.known_until_ns = tick.mid_ns
            self._read_rest(writer, tick.mid_ns, value, (tick.high_ns - tick.low_ns) // 2)
        elif not self._described:
            self._read_rest(writer, end)

    def _poll_power(self, writer: SampleWriter) -> None:
        now = time.monotonic_ns()
        self.due_ns = now + POWER_PERIOD_NS
        self.known_until_ns = now
        self._read_rest(writer, now)

    def _read_rest(
        self, writer: SampleWriter, t_ns: int, value_mj: int | None = None, bracket_ns: int | None = None
    ) -> None:
        self._read_fields(writer, t_ns, value_mj, bracket_ns)
        now = time.monotonic_ns()
        if now >= self._processes_due_ns:
            self._processes_due_ns = now + PROCESSES_PERIOD_NS
            self._read_processes(writer)

    def _read_fields(self, writer: SampleWriter, t_ns: int, value_mj: int | None, bracket_ns: int | None) -> None:
        """One NVML call for power and both throttle counters, then the slower state where it is due."""
        now = time.monotonic_ns()
        values = self._field_values()
        instant_mw = values.get(pynvml.NVML_FI_DEV_POWER_INSTANT)
        power_mw = instant_mw if instant_mw is not None else self._optional("power", pynvml.nvmlDeviceGetPowerUsage)
        self.power_w = power_mw / 1e3 if power_mw is not None else None
        if not self._described:
            self._described = True
            power = "none" if self.power_w is None else "average" if instant_mw is None else "instant"
            default_mw = self._optional("default limit", pynvml.nvmlDeviceGetPowerManagementDefaultLimit)
            default_w = default_mw / 1e3 if default_mw is not None else None
            facts: dict[str, JsonValue] = {"counter": self._counts, "power": power, "default_limit_w": default_w}
            writer.event(now, "sensor", device=self._uuid, **facts)
        throttled = [values.get(field) for field in _FIELDS[1:]]
        if throttled != self._throttled or now >= self._state_due_ns:
            self._throttled = throttled
            writer.event(now, "throttle", device=self._uuid, power_ns=throttled[0], thermal_ns=throttled[1])
        sample = Sample(t_ns, self._uuid, self.power_w, value_mj, bracket_ns=bracket_ns)
        if now >= self._state_due_ns or value_mj is None:
            self._state_due_ns = now + STATE_PERIOD_NS
            sample = sample._replace(**self._state())
            profiles = self._beside("profiles", nvml_devices.active_profiles)
            if profiles != self._profiles:
                self._profiles = profiles
                writer.event(now, "profiles", device=self._uuid, active=profiles)
        writer.sample(sample)

    def _field_values(self) -> dict[int, int]:
        if "fields" in self._absent:
            return {}
        try:
            values = pynvml.nvmlDeviceGetFieldValues(self._handle, list(_FIELDS))
        except pynvml.NVMLError as problem:
            if problem.value in _ABSENT:
                self._absent.add("fields")
                return {}
            raise
        return {int(v.fieldId): _number(v) for v in values if v.nvmlReturn == pynvml.NVML_SUCCESS}

    def _state(self) -> dict[str, Any]:
        """The fields of a sample that are read every half second."""
        temperature = self._beside("temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
        clock = self._beside("clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)
        memory_clock = self._beside("memory clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM)
        rates = self._beside("utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        memory = self._beside("memory", pynvml.nvmlDeviceGetMemoryInfo)
        limit_mw = self._beside("limit", pynvml.nvmlDeviceGetEnforcedPowerLimit)
        events = self._beside("clock events", pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        if events is None:  # a driver before 535 has the old name alone
            events = self._beside("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return {
            "temperature_c": float(temperature) if temperature is not None else None,
            "sm_clock_mhz": float(clock) if clock is not None else None,
            "utilisation": rates.gpu / 100 if rates is not None else None,
            "memory_bytes": int(memory.used) if memory is not None else None,
            "memory_clock_mhz": float(memory_clock) if memory_clock is not None else None,
            "clock_events": int(events) if events is not None else None,
            "power_limit_w": limit_mw / 1e3 if limit_mw is not None else None,
        }

    def _read_processes(self, writer: SampleWriter) -> None:
        if "processes" not in self._absent and not write_processes(writer, self._handle, self._uuid, self._owners):
            self._absent.add("processes")

    def _beside(self, what: str, function: Callable[..., Any], *more: object) -> Any:
        """A reading beside energy and power: one that fails leaves a gap in itself, and none in the counter's steps."""
        try:
            return self._optional(what, function, *more)
        except pynvml.NVMLError as problem:
            if problem.value in _GONE:
                raise
            return None

    def _optional(self, what: str, function: Callable[..., Any], *more: object) -> Any:
        """The call's result; `None` from then on once the device reports that it has no such reading."""
        if what in self._absent:
            return None
        try:
            return function(self._handle, *more)
        except pynvml.NVMLError as problem:
            if problem.value in _ABSENT:
                self._absent.add(what)
                return None
            raise

    def _failed(self, writer: SampleWriter, problem: pynvml.NVMLError) -> None:
        now = time.monotonic_ns()
        self._tracker.forget()
        self.power_w = None
        self.due_ns = now + (LOST_RETRY_NS if problem.value in _GONE else RETRY_NS)
        if problem.value != self._error_code:
            self._error_code = problem.value
            writer.event(now, "error", device=self._uuid, code=problem.value, message=str(problem))


class ProcessesSource(Source):
    """The processes of a GPU that is not metered: the server that is measured may compute there as well."""

    known_until_ns = inf

    def __init__(self, handle: object, uuid: str, owners: Sequence[int]) -> None:
        self._handle = handle
        self._uuid = uuid
        self._owners = owners

    def poll(self, writer: SampleWriter) -> None:
        """List them; a GPU that does not answer is asked again."""
        self.due_ns = time.monotonic_ns() + PROCESSES_PERIOD_NS
        with suppress(pynvml.NVMLError):
            write_processes(writer, self._handle, self._uuid, self._owners)


def write_processes(writer: SampleWriter, handle: object, uuid: str, owners: Sequence[int]) -> bool:
    """Write the event `processes` of a GPU; false where the driver does not list them."""
    pids = nvml_devices.compute_pids(handle)
    if pids is not None:
        writer.event(time.monotonic_ns(), "processes", device=uuid, **listing(pids, owners))
    return pids is not None


def open_gpus(
    uuids: Sequence[str], owners: Sequence[int], beside: Sequence[str] = (), follow_pid: int | None = None
) -> list[tuple[Source, GpuFacts | None]]:
    """The GPUs with these UUIDs (all visible ones if empty) and those beside them: the source of each, and its facts.

    Processes in the trees of `owners` are measured, all others are foreign. The GPUs with processes of the tree of
    `follow_pid`, if any, take the place of `uuids`; then the processes of all others are listed, which have no facts.
    Raises `SensorError` when NVML or a device cannot be opened.
    """
    try:
        pynvml.nvmlInit()
        followed = [] if follow_pid is None else nvml_devices.holding(follow_pid)
        leased = followed or nvml_devices.find(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        read = {gpu.uuid: gpu for gpu in leased}
        for name in beside:
            # One that does not answer is no reason against those that are leased.
            with suppress(pynvml.NVMLError):
                read |= {gpu.uuid: gpu for gpu in nvml_devices.find([name], None)}
        watched = [] if follow_pid is None else [gpu for gpu in nvml_devices.all_gpus() if gpu.uuid not in read]
    except pynvml.NVMLError as problem:
        raise SensorError(f"NVML: {problem}", nvml_devices.remedy(problem)) from None
    counted = {gpu.uuid for gpu in leased}
    sources: list[tuple[Source, GpuFacts | None]] = [
        (GpuSource(gpu.handle, gpu.uuid, owners, load(gpu.uuid, gpu.driver)), gpu.facts(leased=gpu.uuid in counted))
        for gpu in read.values()
    ]
    return sources + [(ProcessesSource(gpu.handle, gpu.uuid, owners), None) for gpu in watched]


def _number(value: pynvml.c_nvmlFieldValue_t) -> int:
    """A field value by its own type tag."""
    kind = value.valueType
    if kind == pynvml.NVML_VALUE_TYPE_DOUBLE:
        return int(value.value.dVal)
    if kind == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT:
        return int(value.value.uiVal)
    if kind == pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG:
        return int(value.value.sllVal)
    return int(value.value.ullVal)
