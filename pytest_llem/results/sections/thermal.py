"""The section `thermal` of a result: what the readings say of the GPUs' temperature, and idle power while still hot.

`attempts` calls it with the cycle's samples, and `derive` asks it what must be said of the state. Without temperatures
the state is unknown, never settled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pytest_llem.energy.idle_power import HOT_IDLE
from pytest_llem.energy.readings import read_sample_events, read_samples
from pytest_llem.energy.thermal import ThermalReading, thermal_reading
from pytest_llem.job.job import Job
from pytest_llem.job.measurement import EnergyReport, Measurement
from pytest_llem.job.report import Note
from pytest_llem.results.energy_schema import ThermalSection
from pytest_llem.results.sections.energy import total


def derive_thermal(job: Job, measurement: Measurement, samples: Path) -> ThermalSection:
    """The section; the state of the leased GPUs as far as `samples` has readings of them."""
    energy = measurement.energy
    reading = ThermalReading()
    if energy is not None and energy.measured and job.devices.on_gpu:
        gpus = {device.id for device in energy.devices if device.kind == "gpu" and device.leased}
        events = list(read_sample_events(samples))
        reading = thermal_reading(read_samples(samples), events, gpus, measurement.warmup_repeats, measurement.repeats)
    hot_w, hot_uncertainty_w = _hot_idle_power(energy)
    return ThermalSection(
        mode=job.config.measurement.warmup.thermal,
        hot_idle_power_w=hot_w,
        hot_idle_power_uncertainty_w=hot_uncertainty_w,
        **asdict(reading),
    )


def thermal_notes(thermal: ThermalSection, energy: EnergyReport | None) -> Iterator[Note]:
    """`not_thermally_settled`, of a figure from a sensor, where the study asked for settled or the readings deny it."""
    if energy is None or not energy.measured or thermal.state == "settled":
        return
    if thermal.state == "unknown":
        if thermal.mode == "settled":
            yield Note("not_thermally_settled", "no temperature was read, so nothing shows that the device had settled")
        return
    load = "" if thermal.load_s is None else f" after {thermal.load_s:.0f} s of load"
    most = "" if thermal.uncertainty_rel is None else f": sustained power may differ by {thermal.uncertainty_rel:.1%}"
    yield Note("not_thermally_settled", f"the GPU had not settled{load}{most}")


def _hot_idle_power(energy: EnergyReport | None) -> tuple[float | None, float | None]:
    windows = [window for window in energy.windows if window.name == HOT_IDLE] if energy is not None else []
    measured, seconds = total(windows), sum(window.end_ns - window.start_ns for window in windows) / 1e9
    if measured is None or not seconds:
        return None, None
    uncertainty_w = measured.uncertainty / seconds
    return measured.value / seconds, uncertainty_w if uncertainty_w < float("inf") else None
