"""How many workers of pytest-xdist a study can use: as many as cycles can be measured at a time.

`LlemSession` asks it for `-n auto`, `Reporting` for pytest's header. It must not allow more: they would only wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llem.machine.devices import asked_kind, gpus_needed, visible_if_any
from pytest_llem.study import Study


@dataclass(frozen=True)
class WorkerLimit:
    """How many workers this machine's devices can serve, by the least demanding experiment.

    `gpus` is how many are visible, `smallest` and `largest` how many an experiment that can run here needs. On the CPU
    the limit is one: measurements there would disturb each other. `no_gpus` says why there are none to share.
    """

    gpus: int
    smallest: int = 1
    largest: int = 1
    no_gpus: str = "no GPU is visible"

    @property
    def workers(self) -> int:
        """How many cycles can be measured at a time."""
        return max(self.gpus // self.smallest, 1)

    def __str__(self) -> str:
        if not self.gpus:
            return f"{self.no_gpus}, and measurements on the CPU would disturb each other"
        needs = str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)} visible, an experiment needs {needs}"


def worker_limit(studies: Sequence[Study]) -> WorkerLimit:
    """The limit of this machine for some studies. Raises `DeviceError` where the driver does not work."""
    kinds = {asked_kind(experiment) for study in studies for experiment in study.experiments} or {"auto"}
    if kinds == {"cpu"}:
        return WorkerLimit(0, no_gpus="no experiment asks for a GPU")
    gpus = max(len(visible_if_any(kind)) for kind in kinds)
    needs = {gpus_needed(experiment) for study in studies for experiment in study.experiments} if gpus else ()
    possible = [needed for needed in needs if 0 < needed <= gpus]
    return WorkerLimit(gpus, min(possible, default=1), max(possible, default=1))
