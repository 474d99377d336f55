"""What happens before and after the measure window, so that its edges can be told from a stepping counter."""

from __future__ import annotations

from pytest_llem.energy.protocol import Calibrated, Meter
from pytest_llem.energy.sides import NO_SIDES, Sides, sides_for
from pytest_llem.engines.protocol import Engine
from pytest_llem.job import Job


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
