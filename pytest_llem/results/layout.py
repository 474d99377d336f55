"""File names in a run's directory, and the run directories of a results folder.

`results` and the session use it. The layout is published (docs/results.md) and stays.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.job.files import read_json, slug

MANIFEST = "run.json"
STATE = "state.json"
RESULT = "result.json"
SEARCH = "search.json"
OPTIMIZE = "optimize.json"
CONFIRM = "confirm"
"""The directory in an experiment's with the cycles that were measured because a gate failed (`execution.confirm`)."""
STUDIES = "studies"
"""The directory of a package of `llem publish` that has the studies."""
HASH_LENGTH = 8
"""Chosen: 32 bits distinguish the configurations of a study, and the name stays readable."""


@dataclass(frozen=True, order=True)
class CycleKey:
    """One cycle of one experiment of one study, within a run.

    One that `confirms` a failed gate lies apart, where nothing that takes means of cycles finds it.
    """

    study: str
    experiment_id: str
    config_hash: str
    cycle: int
    confirms: bool = field(default=False, kw_only=True)

    @property
    def directory(self) -> Path:
        """The cycle's directory, relative to the run's."""
        experiment = Path(slug(self.study)) / experiment_directory(self.experiment_id, self.config_hash)
        return experiment / (CONFIRM if self.confirms else "") / f"c{self.cycle}"

    @property
    def item_id(self) -> str:
        """The id of what is measured, without its cycle: that of the experiment."""
        return self.experiment_id

    def __str__(self) -> str:
        return f"{self.study}[{self.item_id}-c{self.cycle}]"


@dataclass(frozen=True, order=True)
class WindowKey(CycleKey):
    """One window (from 1) of the search that a cycle is: its files lie below the cycle's."""

    step: int

    @property
    def directory(self) -> Path:
        """The window's directory, relative to the run's."""
        return super().directory / f"search-{self.step}"

    @property
    def item_id(self) -> str:
        """The id of the window's own item, without its cycle."""
        return window_id(self.experiment_id, self.step)


def window_id(search_id: str, step: int) -> str:
    """The id of a search's window."""
    return f"{search_id}-{step}"


def experiment_directory(experiment_id: str, config_hash: str) -> str:
    """An experiment's directory name: a slug of its id and 8 hex digits of its hash."""
    return f"{slug(experiment_id)}-{slug(config_hash[:HASH_LENGTH])}"


def cycle_directories(run_dir: Path, having: Sequence[str] = (STATE,)) -> Iterator[Path]:
    """The directory of each cycle that was started, or that has one of other files, sorted by name and cycle."""
    return _numbered(path.parent for name in having for path in run_dir.glob(f"*/*/c*/{name}"))


def confirming_directories(run_dir: Path) -> Iterator[Path]:
    """Those of the cycles that were started because a gate failed, in the same order."""
    return _numbered(path.parent for path in run_dir.glob(f"*/*/{CONFIRM}/c*/{STATE}"))


def _numbered(paths: Iterable[Path]) -> Iterator[Path]:
    directories = [path for path in {*paths} if path.name[1:].isdecimal()]  # not a user's copy
    yield from sorted(directories, key=lambda path: (path.parent, int(path.name[1:])))


def run_directories(out: Path) -> list[Path]:
    """The runs of a results folder, newest first: by their ids, which sort by when they began."""
    return sorted((path.parent for path in out.glob(f"*/{MANIFEST}")), key=_by_id, reverse=True)


def _by_id(run_dir: Path) -> tuple[str, str]:
    """A run's id, that of its manifest if the directory was renamed; then the name, so that copies differ."""
    if started_at(run_dir.name) is not None:
        return run_dir.name, run_dir.name
    try:
        return str(read_json(run_dir / MANIFEST).get("run_id") or ""), run_dir.name
    except StoreError:
        return "", run_dir.name  # whoever reads the run says what is wrong with it


def runs_at(path: Path) -> list[Path]:
    """The run that `path` is, or whose `run.json` it is, else the runs in it, newest first; none where it has none."""
    root = path.parent if path.name == MANIFEST else path
    return [root] if (root / MANIFEST).exists() else run_directories(root)


def new_run_id() -> str:
    """The id of a run that begins now: the second, then hex digits of the nanoseconds beyond it, and two drawn bits.

    Ids sort by when their runs began, also within a second.
    """
    seconds, beyond_ns = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y%m%dT%H%M%SZ}-{beyond_ns << 2 | secrets.randbits(2):08x}"


def started_at(run_id: str) -> str | None:
    """When a run began, ISO 8601, by the time that its id begins with; `None` for an id of another form."""
    try:
        moment = datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return None
    return moment.replace(tzinfo=timezone.utc).isoformat()


def repeatability_file(study: str, directory: Path) -> Path:
    """Where a study's repeatability lies among the baselines."""
    return directory / f"{slug(study)}.aa.json"


def registration_file(study: Path) -> Path:
    """Where the registration of a study's file lies: beside it."""
    return study.with_name(f"{study.stem}.registration.json")


def study_in_package(study: str) -> str:
    """Where a package of `llem publish` has a study's file, relative to the package."""
    return f"{STUDIES}/{slug(study)}.yaml"
