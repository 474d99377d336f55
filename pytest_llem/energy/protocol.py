"""The base class of energy meters, and how all of them report the energy of one window.

The worker, the container runner and `llem_meter` drive a `Meter`; all meters derive from it, those of other packages
too. An optional method added here needs a default answer, so that registered meters keep working.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import hypot, inf
from pathlib import Path
from typing import ClassVar, Protocol

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.series import PLAUSIBLE_W
from pytest_llem.errors import MeterError
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import DeviceEnergy, EnergyReport, Window, WindowEnergy

BOARD_GAIN_UNCERTAINTY_REL = 0.05
"""Gain error of an NVIDIA board's power sensor: about 5 %, different for each board (arXiv 2312.02741)."""


class ServerTree(Protocol):
    """A server whose processes count as measured."""

    @property
    def pid(self) -> int | None:
        """The root of its process tree on this machine, `None` where unknown."""


@dataclass(frozen=True)
class MeterRequest:
    """What a meter is opened for: settings, devices, the directory for `samples.jsonl`, and the server, if any."""

    settings: MeterSettings
    devices: DeviceSet
    out_dir: Path
    server: ServerTree | None = None

    @property
    def samples_path(self) -> Path:
        """The raw readings of this cycle."""
        return self.out_dir / "samples.jsonl"


@dataclass(frozen=True)
class Conditions:
    """The devices' state at one moment: power in watts over all, mean temperature and SM clock, and their driver."""

    power_w: float
    temperature_c: float
    sm_clock_mhz: float
    driver: str


class Meter(ABC):
    """One source of energy readings, for one cycle: `start` once, then `stop` once with every window."""

    name: ClassVar[str]

    reads_machine: ClassVar[bool] = False
    """Whether it reads sensors of the machine, and so can measure a container from the host."""

    steps_visibly: ClassVar[bool] = False
    """Whether it finds the single steps of an energy counter, so that padding around a window narrows the bounds."""

    plausible_w: float = PLAUSIBLE_W
    """The most that one of its devices can draw, in watts: more than that is `implausible_power`."""

    sees_standstill: ClassVar[bool] = False
    """Whether it finds a sensor that stands still; else `checked` looks whether it moves after the last window."""

    update_s: float = 0.1
    """The longest time between two updates of its sensor, in seconds."""

    failed_edge: str | None = None
    """Why an edge could not be read, once one could not (`checked`)."""

    def __init__(self, request: MeterRequest) -> None:
        """Prepare, without reading yet."""
        self._request = request

    @staticmethod
    def obstacle() -> MeterError | None:
        """Why this meter cannot be used on this machine, with the remedy; `None` when it can."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Begin reading. Raises `MeterError`, with the remedy, when the source cannot be read."""

    @abstractmethod
    def mark(self) -> int:
        """Mark the edge of a window: read the source where needed, and return CLOCK_MONOTONIC in nanoseconds."""

    @abstractmethod
    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        """End reading and account the energy of every window."""

    def account_again(self, report: EnergyReport, windows: Sequence[Window]) -> EnergyReport:
        """Account other windows of the stored readings of a `report`, instead of `start` and `stop`."""
        raise MeterError(
            f"the meter {self.name} stores no readings from which another window could be accounted",
            fix="measure with nvml, amdsmi, rapl or estimate",
        )

    def power_w(self) -> float | None:
        """The latest power in watts, for settling and convergence; `None` without such a reading."""
        return None

    def include_container(self, identity: str) -> None:  # noqa: B027 (optional)
        """Count the processes of the container with this id as measured."""

    def conditions(self) -> Conditions | None:
        """The devices' present state; `None` where a sensor is missing or too few readings were made."""
        return None

    def calibrations(self) -> tuple[Calibration, ...]:
        """The calibrations of the metered devices, once started; devices without one are left out."""
        return ()


def missing_package(package: str, extra: str | None = None) -> MeterError | None:
    """The obstacle of the meter that is named like its package, where that is not installed; else `None`."""
    try:
        version(package)
    except PackageNotFoundError:
        fix = f"pip install 'pytest-llem[{extra or package}]'"
        return MeterError(f"the meter `{package}` needs the package {package}", fix=fix)
    return None


@dataclass(frozen=True)
class EnergyEstimate:
    """A device's energy in one window, in joules, with its k=2 uncertainty (infinite: not stated) and its parts.

    `estimator` names the method, `samples` counts the readings that it rests on.
    """

    energy_j: float
    uncertainty_j: float
    estimator: str
    samples: int
    terms: Mapping[str, float] = field(default_factory=dict)


BIASES = ("shape", "ramp")
"""Terms that may be attained in full: they add to the others instead of entering in quadrature."""

SHARED = (*BIASES, "counter_type", "aliasing")
"""Terms that err to the same side on every device, because one load begins, ends and repeats itself on all of them."""


def expanded(terms: Mapping[str, float]) -> float:
    """The k=2 uncertainty of an energy from its parts."""
    noise = hypot(*(value for name, value in terms.items() if name not in BIASES))
    return noise + sum(terms.get(name, 0.0) for name in BIASES)


def combined(parts: Sequence[EnergyEstimate]) -> EnergyEstimate:
    """The energy of several devices in one window: `SHARED` terms add up, the other ones add in quadrature."""
    terms: dict[str, float] = {}
    for name in sorted({name for part in parts for name in part.terms}):
        values = [part.terms.get(name, 0.0) for part in parts]
        terms[name] = sum(values) if name in SHARED else hypot(*values)
    # What a meter states without parts is independent as well.
    unexplained = hypot(*(part.uncertainty_j for part in parts if not part.terms))
    return EnergyEstimate(
        energy_j=sum(part.energy_j for part in parts),
        uncertainty_j=expanded({**terms, "": unexplained}) if len(parts) > 1 else parts[0].uncertainty_j,
        estimator="+".join(sorted({part.estimator for part in parts})),
        samples=min(part.samples for part in parts),
        terms=terms,
    )


def window_energy(
    window: Window, parts: Mapping[str, EnergyEstimate | None], beside: Collection[str] = ()
) -> WindowEnergy:
    """A window's energy summed over the devices (by id); `None` in it unless every device was measured.

    Those `beside` the leased devices are stated and not summed.
    """
    summed = [part for name, part in parts.items() if name not in beside]
    measured = [part for part in summed if part is not None]
    total = combined(measured) if measured and len(measured) == len(summed) else None
    devices = tuple(
        DeviceEnergy(name, part.energy_j if part else None, _finite(part.uncertainty_j) if part else None)
        for name, part in parts.items()
    )
    window_of = (window.name, window.index, window.start_ns, window.end_ns)
    if total is None:
        return WindowEnergy(*window_of, None, None, None, devices=devices)
    uncertainty_j = _finite(total.uncertainty_j)
    return WindowEnergy(*window_of, total.energy_j, uncertainty_j, total.estimator, total.samples, total.terms, devices)


def _finite(uncertainty: float) -> float | None:
    return None if uncertainty == inf else uncertainty
