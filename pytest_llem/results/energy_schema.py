"""The sections `energy`, `thermal` and `device` of a result, as `schema` publishes them, and how a field is described.

The modules of these names in `sections` build them. Fields may be added; what was not measured is `null`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pytest_llem.job.gpu_setting import SettingName
from pytest_llem.job.measurement import AccountedWindow, CpuEnergy

Count = Annotated[int, Field(ge=0)]


def about(description: str) -> dict[str, str]:
    """A field's description, for the published schema."""
    return {"description": description}


SENSOR_ALONE = about("k=2, of the sensor alone, without the board's gain error; null where that is unknown.")
"""On the uncertainty of one cycle's figure: scatter and state of the machine show only between cycles and runs."""


@dataclass(frozen=True, kw_only=True)
class EnergyDevice:
    """Energy of one metered device over the measure windows."""

    id: str
    name: str | None
    kind: str
    energy_j: float | None
    uncertainty_j: float | None = field(metadata=about("k=2, without the board's gain error."))
    temperature_c: float | None = field(
        default=None, metadata=about("Mean over the measure windows, in degrees Celsius.")
    )
    leased: bool = field(
        default=True, metadata=about("False for a device that was read beside the cycle's own: it enters no sum.")
    )
    counter_power_ratio: float | None = field(
        default=None, metadata=about("Energy by the counter over that by the same sensor's power readings.")
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationSection:
    """The calibration of one device's sensor that the bounds rest on."""

    device: str = field(metadata=about("The metered device's id."))
    id: str
    hash: str = field(metadata=about("SHA-256 over all that calibration found."))
    made_at: str | None = field(metadata=about("ISO 8601 in UTC."))
    valid_until: str | None = field(metadata=about("ISO 8601 in UTC."))
    expired: bool = field(metadata=about("Whether it was past that when it was used."))
    conditions: dict[str, JsonValue] = field(metadata=about("Under which it was made: board, clocks, load, ..."))


@dataclass(frozen=True, kw_only=True)
class PhaseEnergy:
    """Energy of one phase of a repeat; `method` says how it was told apart."""

    name: str
    energy_per_repeat_j: float | None
    uncertainty_j: float | None
    method: str


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of the measure windows, summed over the leased devices."""

    meter: str = field(metadata=about("The source of the readings; `none` when no energy was measured."))
    placement: Literal["host", "worker"] | None
    scope: str | None = field(metadata=about("What a joule covers: gpu_board, module, cpu_package+dram, ..."))
    measured: bool = field(metadata=about("False when a model of the hardware stands in for a sensor."))
    source: str | None = field(metadata=about("Where that model is published."))
    energy_j: float | None = field(metadata=about("Of the measure windows, less reset_energy_j."))
    uncertainty_j: float | None = field(metadata=about("k=2; leaves out the board's gain error."))
    gain_uncertainty_rel: float | None = field(metadata=about("Relative gain error of the board's sensor, per board."))
    energy_above_idle_j: float | None = field(metadata=about("energy_j minus idle power times its time."))
    energy_above_idle_uncertainty_j: float | None = field(metadata=about("k=2."))
    idle_power_w: float | None = field(metadata=about("Mean power of the idle window, model loaded."))
    idle_power_uncertainty_w: float | None = field(metadata=about("k=2."))
    idle_power_age_s: float | None = field(
        default=None,
        metadata=about("Seconds from its end to the measure window, or to the cycle's end where it was reused."),
    )
    idle_power_reused_from: str | None = field(
        default=None, metadata=about("The cycle that measured it, where another one did.")
    )
    avg_power_w: float | None = field(metadata=about("energy_j over throughput.duration_s."))
    avg_power_w_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    reset_energy_j: float | None = field(
        default=None,
        metadata=about(
            "Taken off the measure windows: idle power times timing.reset_s, in which caches were emptied between "
            "repeats. Null where nothing is known to take off: what resets drew is then in energy_j, within its bound."
        ),
    )
    reset_energy_uncertainty_j: float | None = field(
        default=None, metadata=about("k=2, part of uncertainty_j: resets may draw as much as the load.")
    )
    joules_per_output_token: float | None
    joules_per_output_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_total_token: float | None = field(metadata=about("Per input and output token together."))
    joules_per_total_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_request: float | None
    joules_per_request_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_session: float | None = field(
        default=None, metadata=about("energy_j / sessions whose every turn succeeded; null where a request is no turn.")
    )
    joules_per_session_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    wh_per_1000_queries: float | None = field(
        metadata=about("Watt-hours per 1000 requests, as AI Energy Score counts.")
    )
    wh_per_1000_queries_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    tokens_per_joule: float | None = field(metadata=about("Output tokens per joule."))
    tokens_per_joule_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    devices: tuple[EnergyDevice, ...]
    host: CpuEnergy | None
    windows: tuple[AccountedWindow, ...]
    phases: tuple[PhaseEnergy, ...]
    calibrations: tuple[CalibrationSection, ...] = field(
        default=(), metadata=about("Of the metered devices; a device that is not calibrated has none.")
    )


@dataclass(frozen=True, kw_only=True)
class ThermalSection:
    """How far the leased GPUs were from the temperature that the load keeps, which leakage and so energy depend on."""

    mode: Literal["settled", "repeatable"] = field(default="repeatable", metadata=about("What the study asked for."))
    state: Literal["settled", "unsettled", "unknown"] = field(
        default="unknown", metadata=about("What the readings show; unknown without temperatures.")
    )
    load_s: float | None = field(
        default=None, metadata=about("Seconds from the warm-up's begin to the measure window's end.")
    )
    temperature_c: float | None = field(
        default=None, metadata=about("Mean over the measure windows, of the hottest leased GPU.")
    )
    distance_c: float | None = field(
        default=None, metadata=about("Most that this may lie from the settled temperature; null where unknown.")
    )
    leakage_rel_per_c: float | None = field(
        default=None, metadata=about("Change of a repeat's energy per degree, as a share; null where unknown.")
    )
    uncertainty_rel: float | None = field(
        default=None,
        metadata=about("k=2: how far the energy may lie from that of a settled die, as a share of it."),
    )
    hot_idle_power_w: float | None = field(
        default=None, metadata=about("Idle power right after the load, while the die is still hot.")
    )
    hot_idle_power_uncertainty_w: float | None = field(default=None, metadata=about("k=2."))


@dataclass(frozen=True, kw_only=True)
class GpuSettingSection:
    """One setting of one GPU: what was asked, what the driver made of it, and what the readings show."""

    name: SettingName
    requested: float | str = field(metadata=about("What the study asks for; `default` is the board's own."))
    previous: float | str | None = field(
        default=None, metadata=about("What the driver read before it was set; null where it has no such reading.")
    )
    applied: float | str | None = field(default=None, metadata=about("What the driver read after it was set."))
    observed: float | str | None = field(
        default=None,
        metadata=about(
            "Over the measure windows: mean power under a limit, the median of a clock, active profiles; null unread."
        ),
    )
    observed_low: float | None = field(default=None, metadata=about("Least reading of it, of power or the clock."))
    observed_high: float | None = field(default=None, metadata=about("Greatest reading of it."))
    held: bool | None = field(
        default=None,
        metadata=about("Whether the readings agree with what was asked; null where none can show it."),
    )
    reached: bool | None = field(
        default=None,
        metadata=about("Whether the load came to its power limit; one that it does not reach changes nothing."),
    )


@dataclass(frozen=True, kw_only=True)
class GpuStateSection:
    """How one leased GPU was set over the measure windows, by its readings."""

    id: str
    power_limits_w: tuple[float, ...] = field(
        default=(), metadata=about("Limits in force, in order: more than one where it was changed meanwhile.")
    )
    sm_clock_mhz: float | None = field(default=None, metadata=about("Median under load."))
    memory_clock_mhz: float | None = field(default=None, metadata=about("Median under load."))
    clock_events: dict[str, float] = field(
        default_factory=dict,
        metadata=about("What held the clocks down, by NVML's names of its reasons, as a share of the readings."),
    )
    power_profiles: tuple[str, ...] | None = field(
        default=None, metadata=about("Workload power profiles in force; null where the board has none.")
    )
    settings: tuple[GpuSettingSection, ...] = field(default=(), metadata=about("Those that the study asks for."))


@dataclass(frozen=True, kw_only=True)
class DeviceSection:
    """The device that the experiment ran on, and how it was set meanwhile."""

    kind: str | None = field(default=None, metadata=about("cpu, cuda or rocm; null in results of older versions."))
    cpus: str | None = field(default=None, metadata=about("CPUs that the study allows; null is all."))
    numa_node: int | None = field(default=None, metadata=about("NUMA node that the study asks for."))
    gpus: tuple[GpuStateSection, ...] = field(default=(), metadata=about("Those that were leased."))
