"""GPU energy through the sampler process: the meters `nvml` and `amdsmi`.

Opened by `registry`; `llem doctor` asks `NvmlMeter` whether NVML works. The measured process must not read the GPU's
sensors while it is measured: the sampler process does, and its readings are accounted after the last window.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pynvml

from pytest_llem.energy import amdsmi_devices, calibration, nvml_devices, rapl_source, validity
from pytest_llem.energy import rapl_meter as rapl
from pytest_llem.energy.attribution import Attribution, attribute
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.estimators import AVERAGING_S, from_counter, from_power, from_steady_counter
from pytest_llem.energy.idle_power import HOT_IDLE, IDLE, mean_temperature_c, measured_idle_power, recent_conditions
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
from pytest_llem.job.config import GpuKind, Thresholds
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Window, WindowEnergy
from pytest_llem.job.report import Note
from pytest_llem.job.wire import encode


class SampledGpuMeter(Meter):
    """GPUs by their energy counter, read by the sampler process; CPU packages and DRAM beside them where readable."""

    gain_uncertainty_rel: ClassVar[float | None] = None
    """Relative gain error of the board's sensor, reported beside the energy and never part of its uncertainty."""

    sees_standstill: ClassVar[bool] = True

    can_calibrate: ClassVar[bool] = False
    """Whether `llem doctor --calibrate` works for these GPUs."""

    kind: ClassVar[GpuKind]
    """The kind of device that its GPUs are."""

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
        """Start the sampler process and wait, bounded, for its first reading: a window has an edge from then on.

        Raises `MeterError` when a device cannot be opened.
        """
        settings, devices, server = self._request.settings, self._request.devices, self._request.server
        on_gpu, named = devices.kind == self.kind, settings.uuids
        self._sampler = SamplerProcess(
            self._request.samples_path,
            devices.uuids if on_gpu else named,
            self._cpu.domains,
            library=self.name,
            beside=named if on_gpu else (),
            server_pid=server.pid if server is not None else None,
            follow_server=server is not None and on_gpu and not settings.named_gpus,
        )
        self._sampler.wait_until_known(time.monotonic_ns())
        self._cpu.mark()

    def include_container(self, identity: str) -> None:
        """Count what the container with this id runs on the GPUs as measured."""
        self._containers.add(identity)

    def mark(self) -> int:
        """The time of an edge; CPU counters are read where there are any."""
        return self._cpu.mark() if self._cpu.domains else time.monotonic_ns()

    def power_w(self) -> float | None:
        """The latest power in watts, summed over the cycle's GPUs."""
        return self._sampler.power_w() if self._sampler is not None else None

    def conditions(self) -> Conditions | None:
        """Power, temperature and clock over the last readings; `None` where one of them is not known."""
        if self._sampler is None:
            return None
        samples, gpus = read_samples(self._request.samples_path), [g for g in self._sampler.gpus if g.leased]
        drivers = " ".join(_drivers(gpus))
        return recent_conditions(samples, [gpu.uuid for gpu in gpus], drivers, time.monotonic_ns())

    def calibrations(self) -> tuple[Calibration, ...]:
        """The stored calibrations of the metered GPUs under their driver."""
        gpus = self._sampler.gpus if self._sampler is not None else ()
        stored = [calibration.load(gpu.uuid, gpu.driver) for gpu in gpus if gpu.leased]
        return tuple(entry for entry in stored if entry is not None)

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Wait for the counter's first step after the last window, end sampling, and account every window."""
        if self._sampler is None:
            raise MeterError("the meter was stopped before it was started")
        sampler, self._sampler = self._sampler, None
        sampler.wait_until_known(max((window.end_ns for window in windows), default=0))
        self._cpu.finish()
        cpu_s = sampler.cpu_time_s()
        problem = sampler.stop()
        events = tuple(read_sample_events(self._request.samples_path))
        attribution = attribute(self._request, self.kind, sampler.gpus, events, frozenset(self._containers))
        calibrations = {gpu.uuid: calibration.load(gpu.uuid, gpu.driver) for gpu in sampler.gpus}
        return self._accounted(windows, sampler.gpus, events, attribution, calibrations, cpu_s, problem)

    def account_again(self, report: EnergyReport, windows: Sequence[Window]) -> EnergyReport:
        """Account other windows of a report's readings, with the GPUs and calibrations of then."""
        stated: Any = report.facts
        # What their memory held before the cycle was judged then, and may be a server's, which is not known here.
        gpus = tuple(GpuFacts(**facts)._replace(memory_used_bytes=None) for facts in stated["gpus"])
        stored = {uuid: Calibration(**facts) for uuid, facts in stated["calibration"].items()}
        of_server = tuple(note for note in report.notes if note.code.startswith("server_gpu"))
        own = Attribution(frozenset(device.id for device in report.devices if device.leased), notes=of_server)
        self._cpu = rapl.RaplEdges.stored(report)
        events = tuple(read_sample_events(self._request.samples_path))
        return self._accounted(windows, gpus, events, own, {gpu.uuid: stored.get(gpu.uuid) for gpu in gpus})

    def _accounted(
        self,
        windows: Sequence[Window],
        metered: Sequence[GpuFacts],
        events: tuple[Mapping[str, Any], ...],
        attribution: Attribution,
        calibrations: Mapping[str, Calibration | None],
        cpu_s: float | None = None,
        problem: str | None = None,
    ) -> EnergyReport:
        """The report of the readings in `samples.jsonl`: of these GPUs, those of the attribution summed."""
        containers = frozenset(self._containers)
        read = self._read(metered, events)
        own = [device for device in read if device.uuid in attribution.gpus]
        evidence = validity.Evidence(tuple(windows), tuple(own), events, self._request.settings.placement, containers)
        gpus = tuple(gpu for gpu in metered if gpu.uuid in attribution.gpus)
        used = calibrations

        def accounted_for(window: Window) -> WindowEnergy:
            parts = {device.uuid: _estimate(device, window, used[device.uuid]) for device in read}
            return window_energy(window, parts, beside=parts.keys() - attribution.gpus)

        accounted = tuple(accounted_for(window) for window in windows)
        calibrations = {gpu.uuid: calibrations[gpu.uuid] for gpu in gpus}
        idle = measured_idle_power(windows, accounted, [device.samples for device in own])
        measured = [window for window in windows if window.name == "measure"]
        ratios = {device.uuid: validity.counter_ratio(device, measured) for device in read}
        facts: dict[str, JsonValue] = {
            "calibrated": {uuid: stored is not None for uuid, stored in calibrations.items()},
            "calibration": {uuid: stored._asdict() for uuid, stored in calibrations.items() if stored is not None},
            "calibrations": [stored.trace() for stored in calibrations.values() if stored is not None],
            "drivers": _drivers(gpus),
            "gpus": [gpu._asdict() for gpu in metered],
            "domains": self._cpu.facts,
            "counter_period_ns": {device.uuid: device.ticks.period_ns if device.ticks else None for device in read},
            "counter_power_ratio": {uuid: ratio.value if ratio else None for uuid, ratio in ratios.items()},
            "sampler_cpu_s": cpu_s,
            "temperature_c": {device.uuid: mean_temperature_c(device.samples, windows) for device in read},
            "idle": encode(idle) if idle is not None else None,
        }
        limits = Thresholds.of(self._request.settings.thresholds)
        invalid = [*attribution.invalid, *validity.check(evidence, accounted, limits)]
        if problem is not None:
            invalid.append(Note("sensor_gap", problem))
        for uuid, stored in calibrations.items():
            if stored is not None and stored.counter_type == "lossy":
                message = f"{uuid}: calibration {stored.id} saw the counter lose energy, or power rise too slowly"
                invalid.append(Note("counter_loses_energy", message))
        host = self._cpu.series(self._request.samples_path) if self._cpu.domains else ()
        lost = [Note("host_not_measured", note.message) for note in rapl.faults(windows, host)]
        notes = (*attribution.notes, *self._device_notes(gpus, calibrations), *validity.remarks(evidence))
        return EnergyReport(
            meter=self.name,
            measured=True,
            scope="module" if gpus and all(gpu.module for gpu in gpus) else "gpu_board",
            placement=self._request.settings.placement,
            devices=tuple(MeteredDevice(gpu.uuid, gpu.name, "gpu", gpu.uuid in attribution.gpus) for gpu in metered),
            windows=accounted,
            host=rapl.cpu_energy(windows, host) if host else None,
            gain_uncertainty_rel=self.gain_uncertainty_rel,
            notes=(*notes, *lost, *self.notes),
            invalid=tuple(invalid),
            facts=facts,
        )

    def _read(self, gpus: Sequence[GpuFacts], events: Sequence[Mapping[str, Any]]) -> list[validity.DeviceEvidence]:
        """Readings and events of every GPU, the cycle's own or not."""
        samples: dict[str, list[Sample]] = {gpu.uuid: [] for gpu in gpus}
        for sample in read_samples(self._request.samples_path):
            if sample.device in samples:
                samples[sample.device].append(sample)
        # A server was started before the meter: its memory is in use, and what was before it the runner has looked at.
        leased = self._request.devices.kind == self.kind and self._request.server is None
        devices: list[validity.DeviceEvidence] = []
        for gpu in gpus:
            of_gpu = tuple(event for event in events if event.get("device") == gpu.uuid)
            ticks = ticks_from(samples[gpu.uuid], gpu.uuid) if _sensor(of_gpu).get("counter", True) else None
            memory = gpu.memory_used_bytes if leased else None
            readings = tuple(samples[gpu.uuid])
            devices.append(validity.DeviceEvidence(gpu.uuid, ticks, readings, of_gpu, memory, gpu.power_limit_w))
        return devices

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
        return notes


class NvmlMeter(SampledGpuMeter):
    """NVIDIA GPUs through NVML; `auto` opens it for CUDA devices."""

    name: ClassVar[str] = "nvml"
    reads_machine: ClassVar[bool] = True
    steps_visibly: ClassVar[bool] = True
    gain_uncertainty_rel: ClassVar[float | None] = BOARD_GAIN_UNCERTAINTY_REL
    kind: ClassVar[GpuKind] = "cuda"
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
    """AMD GPUs through `amdsmi`; `auto` opens it for ROCm devices. Never compared with hardware, which reports say."""

    name: ClassVar[str] = "amdsmi"
    kind: ClassVar[GpuKind] = "rocm"
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
            amdsmi_devices.library()
        except amdsmi_devices.UNLOADABLE as problem:
            return MeterError(
                f"amdsmi cannot load libamd_smi.so ({problem})", fix="install ROCm's amd-smi-lib (`/opt/rocm/lib`)"
            )
        return None


def _estimate(device: validity.DeviceEvidence, window: Window, calibrated: Calibration | None) -> EnergyEstimate | None:
    if device.ticks is None:
        return from_power(device.samples, window, AVERAGING_S.get(_sensor(device.events).get("power", ""), 1.0))
    steady = from_steady_counter(device.ticks, window) if window.name in (IDLE, HOT_IDLE) else None
    return steady or from_counter(device.ticks, window, calibrated)


def _sensor(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the sampler process found of a device's sensor; empty where it never read it."""
    return next((event for event in events if event["event"] == "sensor"), {})


def _drivers(gpus: Sequence[GpuFacts]) -> tuple[str, ...]:
    return tuple(sorted({gpu.driver for gpu in gpus}))
