"""GPU energy through the sampler process: what the meters of NVIDIA's and AMD's GPUs share.

`nvml_meter` and `amdsmi_meter` derive from it. The measured process must not read the GPU's sensors while it is
measured: the sampler process does, and its readings (`samples.jsonl`) are accounted once the last window is closed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pytest_llem.energy import calibration, rapl_source, validity
from pytest_llem.energy import rapl_meter as rapl
from pytest_llem.energy.estimators import AVERAGING_S, from_counter, from_power, from_steady_counter
from pytest_llem.energy.idle_power import mean_temperature_c, measured_idle_power, recent_conditions
from pytest_llem.energy.protocol import Conditions, EnergyEstimate, Meter, MeterRequest, window_energy
from pytest_llem.energy.readings import Sample, read_sample_events, read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.energy.series import ticks_from
from pytest_llem.errors import JsonValue, MeterError
from pytest_llem.job.measurement import CpuEnergy, EnergyReport, MeteredDevice, Scope, Window, WindowEnergy
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
            calibration.default_directory(),
            server.pid if server is not None else None,
            library=self.name,
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
        gpus = _opened(self._sampler)
        return recent_conditions(
            read_samples(self._request.samples_path),
            [gpu.uuid for gpu in gpus],
            " ".join(sorted({gpu.driver for gpu in gpus})),
            time.monotonic_ns(),
        )

    def calibrations(self) -> tuple[calibration.Calibration, ...]:
        """The stored calibrations of the metered GPUs under their driver."""
        gpus = _opened(self._sampler) if self._sampler is not None else []
        stored = [calibration.load(gpu.uuid, gpu.driver) for gpu in gpus]
        return tuple(known for known in stored if known is not None)

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """Wait for the counter's first step after the last window, end sampling, and account every window."""
        if self._sampler is None:
            raise MeterError("the meter was stopped before it was started")
        sampler, self._sampler = self._sampler, None
        sampler.wait_until_known(max((window.end_ns for window in windows), default=0))
        self._cpu.mark()
        cpu_s = sampler.cpu_time_s()
        problem = sampler.stop()
        samples = self._request.samples_path
        host = rapl.cpu_energy(windows, self._cpu.series(samples)) if self._cpu.domains else None
        return Accounts(
            self._request, _opened(sampler), windows, self._containers, can_calibrate=self.can_calibrate
        ).report(
            self.name,
            self.gain_uncertainty_rel,
            host=host,
            sampler_problem=problem,
            sampler_cpu_s=cpu_s,
            notes=self.notes,
        )


@dataclass(frozen=True)
class GpuFacts:
    """A GPU as the sampler process found it when it opened it."""

    uuid: str
    name: str
    driver: str
    mig: bool
    module: bool
    memory_used_bytes: int | None

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> GpuFacts:
        """Read one entry of `gpus` in the sampler's first answer."""
        memory = data.get("memory_used_bytes")
        return cls(
            uuid=str(data["uuid"]),
            name=str(data["name"]),
            driver=str(data["driver"]),
            mig=bool(data["mig"]),
            module=bool(data["module"]),
            memory_used_bytes=memory if isinstance(memory, int) else None,
        )


class Accounts:
    """All readings of a cycle by device, and what follows from them."""

    def __init__(
        self,
        request: MeterRequest,
        gpus: Sequence[GpuFacts],
        windows: Sequence[Window],
        containers: Collection[str] = (),
        *,
        can_calibrate: bool = True,
    ) -> None:
        """`containers` hold measured processes; `can_calibrate`: whether calibration exists for such GPUs."""
        self._can_calibrate = can_calibrate
        self._request = request
        self._containers = frozenset(containers)
        self._gpus = tuple(gpus)
        self._windows = tuple(windows)
        self._events = list(read_sample_events(request.samples_path))
        self._samples: dict[str, list[Sample]] = {gpu.uuid: [] for gpu in gpus}
        for sample in read_samples(request.samples_path):
            if sample.device in self._samples:
                self._samples[sample.device].append(sample)
        self._ticks = {name: ticks_from(samples, name) for name, samples in self._samples.items()}
        self._calibrations = {gpu.uuid: calibration.load(gpu.uuid, gpu.driver) for gpu in gpus}

    def report(
        self,
        meter: str,
        gain_uncertainty_rel: float | None,
        *,
        host: CpuEnergy | None,
        sampler_problem: str | None,
        sampler_cpu_s: float | None,
        notes: Sequence[Note] = (),
    ) -> EnergyReport:
        """The energy of every window, and whether it may be used; `notes` are the meter's own."""
        accounted = tuple(
            window_energy(window, {gpu.uuid: self._estimate(gpu.uuid, window) for gpu in self._gpus})
            for window in self._windows
        )
        idle = measured_idle_power(self._windows, accounted, self._samples)
        facts: dict[str, JsonValue] = {
            "calibrated": {uuid: known is not None for uuid, known in self._calibrations.items()},
            "calibration": {uuid: known._asdict() for uuid, known in self._calibrations.items() if known is not None},
            "drivers": tuple(sorted({gpu.driver for gpu in self._gpus})),
            "counter_period_ns": {uuid: ticks.period_ns for uuid, ticks in self._ticks.items()},
            "sampler_cpu_s": sampler_cpu_s,
            "temperature_c": {
                uuid: mean_temperature_c(samples, self._windows) for uuid, samples in self._samples.items()
            },
            "idle": encode(idle) if idle is not None else None,
        }
        invalid = list(self._invalid(accounted))
        if sampler_problem is not None:
            invalid.append(Note("sensor_gap", sampler_problem))
        return EnergyReport(
            meter=meter,
            measured=True,
            scope=self._scope(),
            placement=self._request.settings.placement,
            devices=tuple(MeteredDevice(gpu.uuid, gpu.name, "gpu") for gpu in self._gpus),
            windows=accounted,
            host=host,
            gain_uncertainty_rel=gain_uncertainty_rel,
            notes=(*self._notes(), *notes),
            invalid=tuple(invalid),
            facts=facts,
        )

    def _estimate(self, uuid: str, window: Window) -> EnergyEstimate | None:
        sensor = next((event for event in self._events if _is(event, "sensor", uuid)), {})
        if sensor.get("counter") is False:
            return from_power(self._samples[uuid], window, AVERAGING_S.get(str(sensor.get("power")), 1.0))
        steady = from_steady_counter(self._ticks[uuid], window) if window.name == "idle" else None
        return steady or from_counter(self._ticks[uuid], window, self._calibrations[uuid])

    def _scope(self) -> Scope:
        return "module" if self._gpus and all(gpu.module for gpu in self._gpus) else "gpu_board"

    def _notes(self) -> list[Note]:
        notes: list[Note] = []
        for gpu in self._gpus:
            if self._calibrations[gpu.uuid] is None:
                notes.append(
                    Note(
                        "uncalibrated",
                        f"{gpu.uuid}: sensor not calibrated under driver {gpu.driver}, bounds are wide: "
                        + ("run `llem doctor --calibrate`" if self._can_calibrate else "GPUs of its kind cannot be"),
                    )
                )
            if gpu.mig:
                notes.append(Note("mig_whole_gpu", f"{gpu.uuid}: energy is that of the whole GPU, not of one instance"))
            if gpu.module:
                notes.append(Note("module_scope", f"{gpu.name}: the sensor covers the module, CPU included"))
        if self._request.devices.kind == "cpu":
            notes.append(Note("meter_not_on_device", "the engine ran on the CPU; these joules are those of idle GPUs"))
        notes.extend(validity.remarks(self._evidence()))
        return notes

    def _invalid(self, accounted: Sequence[WindowEnergy]) -> list[Note]:
        thresholds = validity.thresholds(self._request.settings.thresholds)
        return validity.check(self._evidence(), accounted, thresholds)

    def _evidence(self) -> validity.Evidence:
        # A server was started before the meter: its memory is in use, and what was before it the runner has looked at.
        leased = self._request.devices.kind == "cuda" and self._request.server is None
        return validity.Evidence(
            windows=self._windows,
            devices=tuple(
                validity.DeviceEvidence(
                    uuid=gpu.uuid,
                    ticks=self._ticks[gpu.uuid] if self._counts(gpu.uuid) else None,
                    samples=tuple(self._samples[gpu.uuid]),
                    events=tuple(event for event in self._events if event.get("device") == gpu.uuid),
                    memory_before_bytes=gpu.memory_used_bytes if leased else None,
                )
                for gpu in self._gpus
            ),
            events=tuple(self._events),
            placement=self._request.settings.placement,
            containers=self._containers,
        )

    def _counts(self, uuid: str) -> bool:
        return len(self._ticks[uuid]) > 0 or not any(
            _is(event, "sensor", uuid) and event.get("counter") is False for event in self._events
        )


def _opened(sampler: SamplerProcess) -> list[GpuFacts]:
    gpus = sampler.facts.get("gpus")
    return [GpuFacts.from_json(gpu) for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []


def _is(event: Mapping[str, JsonValue], name: str, device: str) -> bool:
    return event.get("event") == name and event.get("device") == device
