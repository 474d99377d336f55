"""From a cycle's raw GPU readings to its energy report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.energy import calibration, validity
from pytest_llem.energy.estimators import AVERAGING_S, Estimate, combined, from_counter, from_power, from_steady_counter
from pytest_llem.energy.idle import idle_facts, mean_temperature_c
from pytest_llem.energy.protocol import MeterRequest
from pytest_llem.energy.readings import Sample, read_sample_events, read_samples
from pytest_llem.energy.series import TickSeries, ticks_from
from pytest_llem.errors import JsonValue
from pytest_llem.job.measurement import (
    CpuEnergy,
    DeviceEnergy,
    EnergyReport,
    MeteredDevice,
    Scope,
    Window,
    WindowEnergy,
)
from pytest_llem.job.report import Note

GAIN_UNCERTAINTY_REL = 0.05
"""Gain error of the board's power sensor, different for each board (arXiv 2312.02741)."""


@dataclass(frozen=True)
class GpuFacts:
    """What the sampler process said about a GPU when it opened it."""

    uuid: str
    name: str
    driver: str
    mig: bool
    module: bool
    memory_used_bytes: int | None

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> GpuFacts:
        """Read one entry of the sampler's first answer."""
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
    """All readings of a cycle, sorted by device."""

    def __init__(
        self,
        setup: MeterRequest,
        gpus: Sequence[GpuFacts],
        windows: Sequence[Window],
        containers: Collection[str] = (),
        *,
        calibrates: bool = True,
    ) -> None:
        """`containers` are those whose processes are measured; `calibrates`: whether such GPUs can be calibrated."""
        self._calibrates = calibrates
        self._setup = setup
        self._containers = frozenset(containers)
        self._gpus = tuple(gpus)
        self._windows = tuple(windows)
        self._events = list(read_sample_events(setup.samples_path))
        self._samples: dict[str, list[Sample]] = {gpu.uuid: [] for gpu in gpus}
        for sample in read_samples(setup.samples_path):
            if sample.device in self._samples:
                self._samples[sample.device].append(sample)
        self._ticks = {name: ticks_from(samples, name) for name, samples in self._samples.items()}
        self._known = {gpu.uuid: calibration.load(gpu.uuid, gpu.driver) for gpu in gpus}

    def report(
        self, *, host: CpuEnergy | None, sampler_problem: str | None, sampler_cpu_s: float | None
    ) -> EnergyReport:
        """The energy of every window, and whether it may be used."""
        accounted = tuple(self._account(window) for window in self._windows)
        facts: dict[str, JsonValue] = {
            "calibrated": {uuid: known is not None for uuid, known in self._known.items()},
            "calibration": {uuid: known._asdict() for uuid, known in self._known.items() if known is not None},
            "drivers": tuple(sorted({gpu.driver for gpu in self._gpus})),
            "counter_period_ns": {uuid: ticks.period_ns for uuid, ticks in self._ticks.items()},
            "sampler_cpu_s": sampler_cpu_s,
            "temperature_c": {
                uuid: mean_temperature_c(samples, self._windows) for uuid, samples in self._samples.items()
            },
            "idle": idle_facts(self._windows, accounted, self._samples),
        }
        invalid = list(self._invalid(accounted))
        if sampler_problem is not None:
            invalid.append(Note("sensor_gap", sampler_problem))
        return EnergyReport(
            meter="nvml",
            measured=True,
            scope=self._scope(),
            placement=self._setup.settings.placement,
            devices=tuple(MeteredDevice(gpu.uuid, gpu.name, "gpu") for gpu in self._gpus),
            windows=accounted,
            host=host,
            gain_uncertainty_rel=GAIN_UNCERTAINTY_REL,
            notes=tuple(self._notes()),
            invalid=tuple(invalid),
            facts=facts,
        )

    def _account(self, window: Window) -> WindowEnergy:
        parts = {gpu.uuid: self._estimate(gpu.uuid, window) for gpu in self._gpus}
        known = [part for part in parts.values() if part is not None]
        complete = bool(known) and len(known) == len(parts)
        whole = combined(known) if complete else None
        return WindowEnergy(
            name=window.name,
            index=window.index,
            start_ns=window.start_ns,
            end_ns=window.end_ns,
            energy_j=whole.energy_j if whole else None,
            uncertainty_j=whole.uncertainty_j if whole else None,
            estimator=whole.estimator if whole else None,
            samples=whole.samples if whole else 0,
            terms=whole.terms if whole else {},
            devices=tuple(
                DeviceEnergy(uuid, None, None)
                if part is None
                else DeviceEnergy(uuid, part.energy_j, part.uncertainty_j)
                for uuid, part in parts.items()
            ),
        )

    def _estimate(self, uuid: str, window: Window) -> Estimate | None:
        sensor = next((event for event in self._events if _is(event, "sensor", uuid)), {})
        if sensor.get("counter") is False:
            return from_power(self._samples[uuid], window, AVERAGING_S.get(str(sensor.get("power")), 1.0))
        steady = from_steady_counter(self._ticks[uuid], window) if window.name == "idle" else None
        return steady or from_counter(self._ticks[uuid], window, self._known[uuid])

    def _scope(self) -> Scope:
        return "module" if self._gpus and all(gpu.module for gpu in self._gpus) else "gpu_board"

    def _notes(self) -> list[Note]:
        notes: list[Note] = []
        for gpu in self._gpus:
            if self._known[gpu.uuid] is None:
                notes.append(
                    Note(
                        "uncalibrated",
                        f"{gpu.uuid}: sensor not calibrated under driver {gpu.driver}, bounds are wide: "
                        + ("run `llem doctor --calibrate`" if self._calibrates else "GPUs of its kind cannot be"),
                    )
                )
            if gpu.mig:
                notes.append(Note("mig_whole_gpu", f"{gpu.uuid}: energy is that of the whole GPU, not of one instance"))
            if gpu.module:
                notes.append(Note("module_scope", f"{gpu.name}: the sensor covers the module, CPU included"))
        if self._setup.devices.kind == "cpu":
            notes.append(Note("meter_not_on_device", "the engine ran on the CPU; these joules are those of idle GPUs"))
        notes.extend(validity.remarks(self._evidence()))
        return notes

    def _invalid(self, accounted: Sequence[WindowEnergy]) -> list[Note]:
        thresholds = validity.thresholds(self._setup.settings.thresholds)
        return validity.check(self._evidence(), accounted, thresholds)

    def _evidence(self) -> validity.Evidence:
        # A server was started before the meter: its memory is in use, and what was before it the runner has looked at.
        leased = self._setup.devices.kind == "cuda" and self._setup.server is None
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
            placement=self._setup.settings.placement,
            containers=self._containers,
        )

    def _counts(self, uuid: str) -> bool:
        ticks: TickSeries = self._ticks[uuid]
        return len(ticks) > 0 or not any(
            _is(event, "sensor", uuid) and event.get("counter") is False for event in self._events
        )


def _is(event: Mapping[str, JsonValue], name: str, device: str) -> bool:
    return event.get("event") == name and event.get("device") == device
