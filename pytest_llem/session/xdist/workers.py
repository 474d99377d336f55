"""How many workers of pytest-xdist a study can use: as many as there are sets of devices to measure on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import DeviceError, LlemError
from pytest_llem.machine.devices import visible_gpus
from pytest_llem.machine.preflight import gpus_needed
from pytest_llem.session.stash import CHECKED
from pytest_llem.session.xdist.scheduling import worker_count

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession
    from pytest_llem.study import Study

OWN_COUNT_VARIABLE = "PYTEST_XDIST_AUTO_NUM_WORKERS"
"""xdist's own variable: what it says is the user's answer to `-n auto`."""


@dataclass(frozen=True)
class Capacity:
    """The devices of this machine, counted in what the least demanding experiment needs.

    `gpus` is how many are visible, `smallest` and `largest` how many an experiment that can run here needs. Without
    GPUs there is one set, the CPU: measurements there would disturb each other.
    """

    gpus: int
    smallest: int = 1
    largest: int = 1

    @property
    def sets(self) -> int:
        """How many cycles can be measured at a time."""
        return max(self.gpus // self.smallest, 1)

    def __str__(self) -> str:
        if not self.gpus:
            return "no GPU is visible, and measurements on the CPU would disturb each other"
        needs = str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)} visible, an experiment needs {needs}"


def capacity(studies: Sequence[Study]) -> Capacity:
    """What this machine has for some studies. Raises `DeviceError` where the driver does not work."""
    gpus = len(visible_gpus())
    needs = {gpus_needed(experiment) for study in studies for experiment in study.experiments} if gpus else ()
    possible = [needed for needed in needs if needed <= gpus]
    return Capacity(gpus, min(possible, default=1), max(possible, default=1))


def auto_workers(config: pytest.Config) -> int | None:
    """The answer to `-n auto`; `None` where the user gave it. `pytest.UsageError` where devices cannot be counted.

    What is loaded for it is kept until the process is set up (`session.start.begin`). A study that cannot be
    loaded does not count here: collection says what is wrong with it.
    """
    if os.environ.get(OWN_COUNT_VARIABLE):
        return None
    from pytest_llem.session.start import checked

    session = config.stash[CHECKED] = checked(config)
    for path in named_studies(config):
        with contextlib.suppress(LlemError):
            session.study(path)
    try:
        return capacity(session.studies).sets
    except DeviceError as error:
        raise pytest.UsageError(f"-n auto: {error}") from None


def named_studies(config: pytest.Config) -> Iterator[Path]:
    """The study files that the command line names, those that exist."""
    from pytest_llem.plugin import names_study

    for name in (*config.getoption("llem_study"), *filter(names_study, config.args)):
        path = (config.invocation_params.dir / name.partition("::")[0]).resolve()
        if path.is_file():
            yield path


class Header:
    """Registered in the controller of xdist's workers: says how many there are, and why."""

    def __init__(self, config: pytest.Config, session: LlemSession) -> None:
        self._config = config
        self._session = session

    def pytest_report_header(self) -> str | None:
        """One line; also what it means that there are more workers than devices."""
        studies = self._session.studies
        if not studies:
            return None
        try:
            there = capacity(studies)
        except DeviceError:
            return None  # each item says so
        workers = worker_count(self._config)
        count = f"llem: {workers} worker{'s' * (workers > 1)}"
        if workers > there.sets:
            return f"{count}, of which {there.sets} can measure at a time, the others wait: {there}"
        return f"{count}: {there}"
