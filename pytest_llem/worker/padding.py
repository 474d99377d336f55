"""What happens before and after the measure window, so that its edges can be told from a stepping counter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.protocol import Calibrated, Meter
from pytest_llem.engines.protocol import Engine
from pytest_llem.job.job import Job


class Arrangement:
    """The sides of a cycle's windows: of interest on a GPU only, and for a meter whose counter steps."""

    def __init__(self, job: Job, meter: Meter | None) -> None:
        """`meter` is `None` where it runs on the host: then only its name is known, and no calibration."""
        self._relevant = job.devices.kind == "cuda" and job.meter.name != "none"
        self._name = meter.name if meter is not None else "nvml" if job.meter.name == "auto" else job.meter.name
        self._known = meter.calibrations() if isinstance(meter, Calibrated) else ()

    @property
    def quiet_s(self) -> float:
        """How long the device rests on each side of a short window; 0 where that gains nothing."""
        return sides_for(self._name, 0.0, self._known).seconds if self._relevant else 0.0

    def of(self, engine: Engine, window_s: float, repeat_s: float | None) -> Sides:
        """The sides of a window of about this length that holds whole repeats; asks the engine to come to rest."""
        if not self._relevant:
            return NO_SIDES
        synchronised = engine.quiesce() == "synchronized"
        expected_s = max(window_s, repeat_s or 0.0)
        return sides_for(self._name, expected_s, self._known, can_synchronise=synchronised, repeat_s=repeat_s)


SHORT_WINDOW_S = 3.0

QUIET_STEPS = 5

ASSUMED_PERIOD_S = 0.1

MAX_QUIET_S = 3.0

MAX_LEAD_REPEAT_S = 5.0
"""Repeats are whole: one that takes longer costs more before and after a window than quiet sides do."""


@dataclass(frozen=True)
class Sides:
    """What to do before and after a window, for `seconds` on each side.

    `quiet`: leave the device idle, confirmed synchronised. `same_load`: run the measured load without measuring it.
    `none`: nothing, the meter reads its sensor at the edges.
    """

    kind: Literal["quiet", "same_load", "none"]
    seconds: float


NO_SIDES = Sides("none", 0.0)


def sides_for(
    meter: str,
    window_s: float,
    known: Sequence[Calibration] = (),
    *,
    can_synchronise: bool = True,
    repeat_s: float | None = None,
) -> Sides:
    """The sides that pay for a window of about this length.

    Only a stepping counter needs any. Quiet sides cost idle seconds and give an exact edge, so they are for windows
    under 3 s of an engine that can be synchronised; longer ones lose little by an edge inside the load, and clocks and
    temperature stay those of the load. `repeat_s` is how long one repeat of the load takes, where that is known.
    """
    if meter != "nvml":
        return NO_SIDES
    period_s = max((one.period_ns / 1e9 for one in known), default=ASSUMED_PERIOD_S)
    too_long = repeat_s is not None and repeat_s > MAX_LEAD_REPEAT_S
    if can_synchronise and (window_s < SHORT_WINDOW_S or too_long):
        return Sides("quiet", min(MAX_QUIET_S, QUIET_STEPS * period_s))
    return NO_SIDES if too_long else Sides("same_load", 2 * period_s)
