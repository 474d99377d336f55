"""GPU energy through the sampler process: the meters `nvml` and `amdsmi`.

Opened by `registry`; `llem doctor` asks `NvmlMeter` whether NVML works. The measured process must not read the GPU's
sensors while it is measured: the sampler process does, and its readings are accounted after the last window.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import pynvml

from pytest_llem.energy import calibration, nvml_devices, rapl_source, validity
from pytest_llem.energy import rapl_meter as rapl
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.estimators import AVERAGING_S, from_counter, from_power, from_steady_counter
from pytest_llem.energy.idle_power import mean_temperature_c, measured_idle_power, recent_conditions
from pytest_llem.energy.protocol import (
    BOARD_GAIN_UNCERTAINTY_REL,
    Conditions,
    EnergyEstimate,
    Meter,
    MeterRequest,
    missing_package,
    window_energy,
)
from pytest_llem.energy.readings import GpuFacts, Sample, read_sample_events, read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.energy.series import ticks_from
from pytest_llem.errors import JsonValue, MeterError
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Window
from pytest_llem.job.report import Note
from pytest_llem.job.wire import encode


class SampledGpuMeter(Meter):
    """GPUs by their energy counter, read by the sampler process; CPU packages and DRAM beside them where readable."""

    gain_uncertainty_rel: ClassVar[float | None] = None
    """Relative gain error of the board's sensor, reported beside the energy and never part of its uncertainty."""

    can_calibrate: ClassVar[bool] = False
    """Whether `llem doctor --calibrate` works for these GPUs."""

    notes: ClassVar[tuple[Note, ...]] = ()
    """Notes that every report of this meter carries."""

    def __init__(self, request: MeterRequest) -> None:
        super().__init__(request)
        readable = rapl_source.domains()
        self._cpu = rapl.RaplEdges(readable if rapl.obstacle(readable) is None else ())
        self._sampler: SamplerProcess | None = None
        self._containers: set[str] = set()

    @property
    def sampler_pid(self) -> int | None:
        """The sampler's process id while it runs."""
        return self._sampler.pid if self._sampler is not None else None

    def start(self) -> None:
        """Start the sampler process; raises `MeterError` when a device cannot be opened."""
        named, leased, server = self._request.settings.uuids, self._request.devices, self._request.server
        self._sampler = SamplerProcess(
            self._request.samples_path,
            named or (leased.uuids if leased.kind == "cuda" else ()),
            self._cpu.domains,
            library=self.name,
            server_pid=server.pid if server is not None else None,
        )
        self._cpu.mark()

    def include_container(self, identity: str) -> None:
        """Count what the container with this id runs on the GPUs as measured."""
        self._containers.add(identity)

    def mark(self) -> int:
        """The time of an edge; CPU counters are read where there are any."""
        return self._cpu.mark() if self._cpu.domains else time.monotonic_ns()

    def power_w(self) -> float | None:
        """The latest power in watts, summed over the GPUs."""
        return self._sampler.power_w() if self._sampler is not None else None

    def conditions(self) -> Conditions | None:
        """Power, temperature and clock over the last readings; `None` where one of them is not known."""
        if self._sampler is None:
            return None
        samples, gpus = read_samples(self._request.samples_path), self._sampler.gpus
        drivers = " ".join(_drivers(gpus))
        return recent_conditions(samples, [gpu.uuid for gpu in gpus], drivers, time.monotonic_ns())

    def calibrations(self) -> tuple[Calibration, ...]:
        """The stored calibrations of the metered GPUs under their driver."""
        gpus = self._sampler.gpus if self._sampler is not None else ()
        stored = [calibration.load(gpu.uuid, gpu.driver) for gpu in gpus]
        return tuple(entry for entry in stored if entry is not None)

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Wait for the counter's first step after the last window, end sampling, and account every window."""
        if self._sampler is None:
            raise MeterError("the meter was stopped before it was started")
        sampler, self._sampler = self._sampler, None
        sampler.wait_until_known(max((window.end_ns for window in windows), default=0))
        self._cpu.mark()
        cpu_s = sampler.cpu_time_s()
        problem = sampler.stop()
        gpus, evidence = sampler.gpus, self._evidence(sampler.gpus, windows)
        calibrations = {gpu.uuid: calibration.load(gpu.uuid, gpu.driver) for gpu in gpus}
        accounted = tuple(
            window_energy(window, {d.uuid: _estimate(d, window, calibrations[d.uuid]) for d in evidence.devices})
            for window in windows
        )
        idle = measured_idle_power(windows, accounted, [device.samples for device in evidence.devices])
        facts: dict[str, JsonValue] = {
            "calibrated": {uuid: stored is not None for uuid, stored in calibrations.items()},
            "calibration": {uuid: stored._asdict() for uuid, stored in calibrations.items() if stored is not None},
            "calibrations": [_trace(stored) for stored in calibrations.values() if stored is not None],
            "drivers": _drivers(gpus),
            "counter_period_ns": {d.uuid: d.ticks.period_ns if d.ticks else None for d in evidence.devices},
            "sampler_cpu_s": cpu_s,
            "temperature_c": {d.uuid: mean_temperature_c(d.samples, windows) for d in evidence.devices},
            "idle": encode(idle) if idle is not None else None,
        }
        invalid = validity.check(evidence, accounted, validity.thresholds(self._request.settings.thresholds))
        if problem is not None:
            invalid.append(Note("sensor_gap", problem))
        host = self._cpu.series(self._request.samples_path) if self._cpu.domains else ()
        lost = [Note("host_not_measured", note.message) for note in rapl.faults(windows, host)]
        return EnergyReport(
            meter=self.name,
            measured=True,
            scope="module" if gpus and all(gpu.module for gpu in gpus) else "gpu_board",
            placement=self._request.settings.placement,
            devices=tuple(MeteredDevice(gpu.uuid, gpu.name, "gpu") for gpu in gpus),
            windows=accounted,
            host=rapl.cpu_energy(windows, host) if host else None,
            gain_uncertainty_rel=self.gain_uncertainty_rel,
            notes=(*self._device_notes(gpus, calibrations), *validity.remarks(evidence), *lost, *self.notes),
            invalid=tuple(invalid),
            facts=facts,
        )

    def _evidence(self, gpus: Sequence[GpuFacts], windows: Sequence[Window]) -> validity.Evidence:
        events = tuple(read_sample_events(self._request.samples_path))
        samples: dict[str, list[Sample]] = {gpu.uuid: [] for gpu in gpus}
        for sample in read_samples(self._request.samples_path):
            if sample.device in samples:
                samples[sample.device].append(sample)
        # A server was started before the meter: its memory is in use, and what was before it the runner has looked at.
        leased = self._request.devices.kind == "cuda" and self._request.server is None
        devices: list[validity.DeviceEvidence] = []
        for gpu in gpus:
            own = tuple(event for event in events if event.get("device") == gpu.uuid)
            ticks = ticks_from(samples[gpu.uuid], gpu.uuid) if _sensor(own).get("counter", True) else None
            memory = gpu.memory_used_bytes if leased else None
            devices.append(validity.DeviceEvidence(gpu.uuid, ticks, tuple(samples[gpu.uuid]), own, memory))
        placement = self._request.settings.placement
        return validity.Evidence(tuple(windows), tuple(devices), events, placement, frozenset(self._containers))

    def _device_notes(self, gpus: Sequence[GpuFacts], calibrations: Mapping[str, Calibration | None]) -> list[Note]:
        notes: list[Note] = []
        for gpu in gpus:
            stored, other = calibrations[gpu.uuid], calibration.foreign(gpu.uuid, gpu.driver)
            if stored is not None and stored.expired:
                message = f"{gpu.uuid}: calibration of {stored.made_at} is older than {calibration.VALID_DAYS} days"
                notes.append(Note("calibration_expired", f"{message}: run `llem doctor --calibrate`"))
            if other is not None:
                message = f"{gpu.uuid}, driver {gpu.driver}: the calibration in its place is {other.id}, driver"
                notes.append(Note("calibration_foreign", f"{message} {other.driver}, and was not used"))
            if stored is None:
                remedy = "run `llem doctor --calibrate`" if self.can_calibrate else "GPUs of its kind cannot be"
                message = f"{gpu.uuid}: sensor not calibrated under driver {gpu.driver}, bounds are wide: {remedy}"
                notes.append(Note("uncalibrated", message))
            if gpu.mig:
                notes.append(Note("mig_whole_gpu", f"{gpu.uuid}: energy is that of the whole GPU, not of one instance"))
            if gpu.module:
                notes.append(Note("module_scope", f"{gpu.name}: the sensor covers the module, CPU included"))
        if self._request.devices.kind == "cpu":
            notes.append(Note("meter_not_on_device", "the engine ran on the CPU; these joules are those of idle GPUs"))
        return notes


class NvmlMeter(SampledGpuMeter):
    """NVIDIA GPUs through NVML; `auto` opens it for CUDA devices."""

    name: ClassVar[str] = "nvml"
    reads_machine: ClassVar[bool] = True
    steps_visibly: ClassVar[bool] = True
    gain_uncertainty_rel: ClassVar[float | None] = BOARD_GAIN_UNCERTAINTY_REL
    can_calibrate: ClassVar[bool] = True

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why NVML cannot be used on this machine, or `None`."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as problem:
            return MeterError(f"NVML: {problem}", fix=nvml_devices.remedy(problem), details={"code": problem.value})
        try:
            if int(pynvml.nvmlDeviceGetCount()) == 0:
                return MeterError("NVML: the driver sees no GPU", fix="check `lspci | grep -i nvidia` and `dmesg`")
        finally:
            pynvml.nvmlShutdown()
        return None


class AmdSmiMeter(SampledGpuMeter):
    """AMD GPUs through `amdsmi`. Only NVIDIA GPUs can be leased, so `auto` never chooses this meter."""

    name: ClassVar[str] = "amdsmi"
    notes: ClassVar[tuple[Note, ...]] = (
        Note("not_verified", "the meter amdsmi was never compared with hardware: cross-check it with `zeus`"),
    )

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why `amdsmi` cannot be used on this machine, or `None`."""
        missing = missing_package("amdsmi", extra="amd")
        if missing is not None:
            return missing
        try:
            # Without its shared library amdsmi prints to standard output, and then fails with one of several errors.
            with contextlib.redirect_stdout(io.StringIO()):
                import_module("amdsmi")
        except (OSError, KeyError, AttributeError) as problem:
            return MeterError(
                f"amdsmi cannot load libamd_smi.so ({problem})", fix="install ROCm's amd-smi-lib (`/opt/rocm/lib`)"
            )
        return None


def _estimate(device: validity.DeviceEvidence, window: Window, calibrated: Calibration | None) -> EnergyEstimate | None:
    if device.ticks is None:
        return from_power(device.samples, window, AVERAGING_S.get(_sensor(device.events).get("power", ""), 1.0))
    steady = from_steady_counter(device.ticks, window) if window.name == "idle" else None
    return steady or from_counter(device.ticks, window, calibrated)


def _sensor(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the sampler process found of a device's sensor; empty where it never read it."""
    return next((event for event in events if event["event"] == "sensor"), {})


def _trace(stored: Calibration) -> dict[str, JsonValue]:
    """What a result states of a calibration that it rests on."""
    return {
        "device": stored.uuid,
        "id": stored.id,
        "hash": stored.hash,
        "made_at": stored.made_at,
        "valid_until": stored.valid_until,
        "expired": stored.expired,
        "conditions": stored.conditions or {},
    }


def _drivers(gpus: Sequence[GpuFacts]) -> tuple[str, ...]:
    return tuple(sorted({gpu.driver for gpu in gpus}))
