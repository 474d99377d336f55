"""How many workers of pytest-xdist a study can use: as many as cycles can be measured at a time.

`start.py` asks it for `-n auto`, and registers `WorkerHeader` in the controller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import DeviceError, LlemError
from pytest_llem.machine.devices import visible_gpus
from pytest_llem.machine.preflight import gpus_needed
from pytest_llem.session.run import names_study
from pytest_llem.session.xdist.scheduling import worker_count

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession
    from pytest_llem.study import Study


@dataclass(frozen=True)
class WorkerLimit:
    """How many workers this machine's devices can serve, by the least demanding experiment.

    `gpus` is how many are visible, `smallest` and `largest` how many an experiment that can run here needs. Without
    GPUs the limit is one: measurements on the CPU would disturb each other.
    """

    gpus: int
    smallest: int = 1
    largest: int = 1

    @property
    def workers(self) -> int:
        """How many cycles can be measured at a time."""
        return max(self.gpus // self.smallest, 1)

    def __str__(self) -> str:
        if not self.gpus:
            return "no GPU is visible, and measurements on the CPU would disturb each other"
        needs = str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)} visible, an experiment needs {needs}"


def worker_limit(studies: Sequence[Study]) -> WorkerLimit:
    """The limit of this machine for some studies. Raises `DeviceError` where the driver does not work."""
    gpus = len(visible_gpus())
    needs = {gpus_needed(experiment) for study in studies for experiment in study.experiments} if gpus else ()
    possible = [needed for needed in needs if needed <= gpus]
    return WorkerLimit(gpus, min(possible, default=1), max(possible, default=1))


def auto_workers(config: pytest.Config, session: LlemSession) -> int:
    """The answer to `-n auto`. Raises `pytest.UsageError` where devices cannot be counted.

    A study that cannot be loaded does not count: collection says what is wrong with it.
    """
    for path in study_files(config, (*config.getoption("llem_study"), *filter(names_study, config.args))):
        with contextlib.suppress(LlemError):
            session.study(path)
    try:
        return worker_limit(session.studies).workers
    except DeviceError as error:
        raise pytest.UsageError(f"-n auto: {error}") from None


def study_files(config: pytest.Config, arguments: Iterable[str]) -> Iterator[Path]:
    """The study files that arguments of the command line name, those that exist."""
    for argument in arguments:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if path.is_file():
            yield path


class WorkerHeader:
    """Prints how many workers there are, and why, in the controller."""

    def __init__(self, config: pytest.Config, session: LlemSession) -> None:
        self._config = config
        self._session = session

    def pytest_report_header(self) -> str | None:
        """One line; it says so where there are more workers than devices."""
        studies = self._session.studies
        if not studies:
            return None
        try:
            limit = worker_limit(studies)
        except DeviceError:
            return None  # each item says so
        workers = worker_count(self._config)
        count = f"llem: {workers} worker{'s' * (workers > 1)}"
        if workers > limit.workers:
            return f"{count}, of which {limit.workers} can measure at a time, the others wait: {limit}"
        return f"{count}: {limit}"
