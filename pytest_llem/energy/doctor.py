"""Findings about this machine's energy sensors and meters, each problem with its fix.

Only `llem doctor` calls it. It must change nothing on the machine; fields of `Finding` are keys of `--json`: keep them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pynvml

from pytest_llem.energy import amdsmi_devices, calibration, nvml_devices, rapl_meter, rapl_source
from pytest_llem.energy.cpu_estimate_meter import thread_power
from pytest_llem.energy.gpu_meter import NvmlMeter
from pytest_llem.energy.registry import obstacles

Level = Literal["ok", "absent", "warn", "problem"]


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    `absent` is something optional, `warn` something that makes figures worse, `problem` a meter or an engine that is
    installed and fails.
    """

    level: Level
    subject: str
    message: str
    fix: str | None = None


def describe() -> list[Finding]:
    """Every finding about GPUs, their sensors, RAPL, and the other meters."""
    amd = list(_amd_gpus())
    return [*_gpus(others=any(finding.level == "ok" for finding in amd)), *amd, *_rapl(), *_estimate(), *_others()]


def gpu_uuids() -> list[str]:
    """UUIDs of the GPUs that can be calibrated; empty without NVML."""
    if NvmlMeter.obstacle() is not None:
        return []
    try:
        with nvml_devices.nvml():
            return [gpu.uuid for gpu in nvml_devices.find((), os.environ.get("CUDA_VISIBLE_DEVICES"))]
    except pynvml.NVMLError:
        return []


def _gpus(*, others: bool) -> Iterator[Finding]:
    """NVIDIA's; that there is no driver is nothing to mend beside `others`."""
    obstacle = NvmlMeter.obstacle()
    if obstacle is not None:
        missing = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        level: Level = "problem"
        if obstacle.details.get("code") in missing:
            level = "absent" if others else "warn"
        yield Finding(level, "nvml", obstacle.message, obstacle.fix)
        return
    try:
        with nvml_devices.nvml():
            for gpu in nvml_devices.find((), None):
                yield Finding("ok", gpu.uuid, f"{gpu.name}, driver {gpu.driver}")
                yield from _sensors(gpu)
                yield from _state(gpu)
    except pynvml.NVMLError as problem:
        yield Finding("problem", "nvml", f"NVML: {problem}", nvml_devices.remedy(problem))


def _sensors(gpu: nvml_devices.Gpu) -> Iterator[Finding]:
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
    except pynvml.NVMLError as problem:
        if problem.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        yield Finding("warn", gpu.uuid, "no energy counter: energy is integrated from power readings, with wide bounds")
        return
    stored = calibration.load(gpu.uuid, gpu.driver)
    if stored is None:
        yield Finding(
            "warn",
            gpu.uuid,
            f"energy counter, not calibrated under driver {gpu.driver}: bounds are wide",
            "llem doctor --calibrate (while the GPU is idle, about a minute)",
        )
        return
    late = f"late by {stored.ramp_ns / 1e6:.1f} ms at the end of load" if stored.ramp_ns is not None else "lag unknown"
    level: Level = "ok" if stored.counter_type == "accumulating" and not stored.expired else "warn"
    fix = None
    if stored.rise_ns is None:
        fix = "calibrate again where torch can load the GPU, for narrower bounds"
    elif stored.expired:
        fix = "calibrate again: it has expired"
    yield Finding(
        level,
        gpu.uuid,
        f"energy counter calibrated on {stored.made_at} ({stored.hash[:12]}, valid until {stored.valid_until}): "
        f"a step every {stored.period_ns / 1e6:.1f} ms (jitter {stored.jitter_ns / 1e6:.1f} ms), "
        f"{stored.counter_type}, {late}, one read takes {stored.call_latency_ns / 1e3:.0f} us, "
        f"polled every {stored.poll_step_ns / 1e6:.1f} ms around a step",
        fix,
    )


def _state(gpu: nvml_devices.Gpu) -> Iterator[Finding]:
    if gpu.mig:
        yield Finding("warn", gpu.uuid, "MIG is on: energy is that of the whole GPU, not of one instance")
    if _optional(pynvml.nvmlDeviceGetPersistenceMode, gpu.handle) == 0:
        yield Finding(
            "warn",
            gpu.uuid,
            "persistence mode is off: the driver unloads between processes, and counters start anew",
            f"sudo nvidia-smi -i {gpu.position} -pm 1",
        )
    ecc = _optional(pynvml.nvmlDeviceGetEccMode, gpu.handle)
    if ecc and not ecc[0]:
        yield Finding("warn", gpu.uuid, "ECC is off: not comparable with GPUs that have it on")
    processes = _optional(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu.handle)
    if processes:
        yield _others_compute(gpu.uuid, [process.pid for process in processes])


def _amd_gpus() -> Iterator[Finding]:
    try:
        smi = amdsmi_devices.library()
    except amdsmi_devices.UNLOADABLE:
        return  # said of the meter
    try:
        with amdsmi_devices.all_gpus() as gpus:
            for gpu in gpus:
                yield from _amd_state(gpu)
    except smi.AmdSmiException as problem:
        if amdsmi_devices.no_driver(smi, problem):
            yield Finding("absent", "amdsmi", f"no AMD GPU: {problem}")
        else:
            yield Finding("problem", "amdsmi", f"amdsmi: {problem}", amdsmi_devices.REMEDY)


def _amd_state(gpu: amdsmi_devices.AmdGpu) -> Iterator[Finding]:
    cap = "" if gpu.power_cap_w is None else f", power cap {gpu.power_cap_w:g} W"
    place = "" if gpu.hip_index is None else f", HIP's number {gpu.hip_index}"
    yield Finding("ok", gpu.uuid, f"{gpu.name}, driver {gpu.driver}{cap}{place}; not verified on hardware")
    if gpu.shared is not None:
        text = f"{gpu.shared}, which share one energy counter: it cannot be leased"
        yield Finding("warn", gpu.uuid, text, amdsmi_devices.MAKE_WHOLE)
    elif gpu.hip_index is None:
        text = "amdsmi does not tell HIP's number of it: it cannot be leased"
        yield Finding("warn", gpu.uuid, text, "update ROCm and amdsmi (6.4 or later)")
    if gpu.ask("amdsmi_get_energy_count") is None:
        yield Finding("warn", gpu.uuid, "no energy counter: its energy cannot be measured")
    if gpu.processes:
        yield _others_compute(gpu.uuid, gpu.processes)


def _others_compute(uuid: str, pids: Iterable[int]) -> Finding:
    named = ", ".join(map(str, islice(pids, 5)))
    message = f"other processes compute on this GPU (pid {named}): results will be invalid"
    return Finding("warn", uuid, message, "end them")


def _rapl() -> Iterator[Finding]:
    domains = rapl_source.domains()
    obstacle = rapl_meter.obstacle(domains)
    if obstacle is None:
        yield Finding("ok", "rapl", f"readable: {', '.join(domain.id for domain in domains)}")
    else:
        yield Finding("problem" if domains else "warn", "rapl", obstacle.message, obstacle.fix)


def _estimate() -> Iterator[Finding]:
    power = thread_power()
    figure = f"{power.processor}: {power.watts:.2f} W per thread"
    if power.generation is None:
        yield Finding("warn", "estimate", f"{figure}, the table's median, as the table does not hold this processor")
    else:
        yield Finding("ok", "estimate", f"{figure} ({power.generation})")


def _others() -> Iterator[Finding]:
    for name, obstacle in obstacles().items():
        if name in ("nvml", "rapl", "estimate"):
            continue
        if obstacle is not None:
            yield Finding("absent", name, obstacle.message, obstacle.fix)
        elif name == "amdsmi":
            yield Finding("ok", name, "works here, but its figures were never compared with hardware")
        else:
            yield Finding("ok", name, "works here")


def _optional(function: Callable[[object], Any], handle: object) -> Any:
    with suppress(pynvml.NVMLError):
        return function(handle)
    return None
