"""The run that a pytest process belongs to: its name, its settings, and which arguments name studies.

`plugin.py` and `session/` use it. A plain pytest run loads it: only pytest and the standard library here.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.job.files import reason
from pytest_llem.results.layout import new_run_id

if TYPE_CHECKING:
    from pytest_llem.errors import JsonValue
    from pytest_llem.job.config import AskedKind
    from pytest_llem.session.sharding import Shard
    from pytest_llem.study import Overrides, Study

STUDY_PLUGIN = "llem-session"
"""The name under which `start.StudyPlugin` is registered in pytest's plugin manager."""


@dataclass(frozen=True)
class RunIdentity:
    """The run's id and how pytest was called for it, made once in the controller and passed to the workers of xdist.

    `worker` is the name of this worker, and `pid` the controller's.
    """

    id: str
    worker: str | None
    command: tuple[str, ...]
    directory: str
    rootdir: str
    pid: int

    def for_workers(self) -> dict[str, Any]:
        """What a worker of xdist makes its own identity of, in types that execnet sends."""
        return {name: value for name, value in vars(self).items() if name != "worker"}

    @property
    def in_controller(self) -> bool:
        """Whether this process reports to the user; an xdist worker does not."""
        return self.worker is None

    @property
    def lock(self) -> Path:
        """The file that the run's processes lock to create its directory; it exists once a worker has met a study."""
        return Path(tempfile.gettempdir()) / f"llem-{self.id}.lock"


@dataclass(frozen=True)
class RunOptions:
    """The settings of this run, each from the first source that has it: see `study.settings`.

    `overrides` take precedence over a study's `execution`, which takes precedence over `execution`. `user_runners` are
    the user file's runners per engine. `meter` takes precedence over a study's where `meter_overrides`: see `meter_of`.
    `overrides.device` is the kind of device of experiments that leave it open: see `only_device`.
    """

    out: Path
    runner: tuple[str, ...]
    user_runners: Mapping[str, str]
    meter: str
    meter_overrides: bool
    device_overrides: bool
    overrides: Overrides
    execution: Mapping[str, JsonValue]
    validity: Mapping[str, float]
    percentiles: tuple[float, ...]
    resume: bool
    baseline: str | None
    baseline_dir: Path
    save_baseline: str | None
    html: Path | None
    strict: bool
    explicit: bool
    breaker: bool
    skip_preflight: bool
    collect_only: bool
    shard: Shard | None = None

    @property
    def only_device(self) -> AskedKind | None:
        """The kind of device that this run alone is for; `None` where it is for all, or the user's file alone says."""
        return self.overrides.device if self.device_overrides and self.overrides.device != "auto" else None

    def meter_of(self, study: Study) -> str:
        """The meter of a study's cycles: this run's if one was given, else the study's, else the user's or default."""
        return self.meter if self.meter_overrides or study.meter is None else study.meter


# A stash key, because xdist asks for the number of workers before pytest configures plugins.
_RUN: pytest.StashKey[RunIdentity] = pytest.StashKey()


def run_identity(config: pytest.Config) -> RunIdentity:
    """The run of this process, named by the first call in the controller."""
    if _RUN not in config.stash:
        worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
        if worker_input is not None:
            identity = RunIdentity(worker=worker_input["workerid"], **worker_input["llem_run"])
        else:
            called = config.invocation_params
            identity = RunIdentity(
                id=new_run_id(),
                worker=None,
                command=("pytest", *map(str, called.args)),
                directory=str(called.dir),
                rootdir=str(config.rootpath),
                pid=os.getpid(),
            )
        config.stash[_RUN] = identity
    return config.stash[_RUN]


@contextlib.contextmanager
def named(given: str, fix: str) -> Iterator[None]:
    """Make whatever is wrong with a setting a usage error that begins with how it was `given`."""
    try:
        yield
    except LlemError as error:
        raise pytest.UsageError(f"{given}: {error.message}\nfix: {error.fix or fix}") from None
    except (OSError, ValueError) as problem:
        raise pytest.UsageError(f"{given}: {reason(problem)}\nfix: {fix}") from None


def absolute(config: pytest.Config, name: str) -> Path:
    """A path of the command line, resolved; of a loop of symlinks, a path that cannot be opened."""
    return Path(os.path.realpath(config.invocation_params.dir / name))


def study_path(config: pytest.Config, name: str) -> Path:
    """The path of a study that the command line names; `SettingsError` for a `builtin:NAME` that there is not."""
    if not is_builtin(name):
        return absolute(config, name)
    from pytest_llem.study.shipped import study_file

    return study_file(name)


def is_builtin(argument: str) -> bool:
    """Whether a command-line argument is a study that the package ships, or a node id inside one."""
    return argument.startswith("builtin:")


def names_study(argument: str) -> bool:
    """Whether a command-line argument is a study, or a node id inside one."""
    return is_builtin(argument) or argument.partition("::")[0].endswith((".yaml", ".yml"))


def names_studies(config: pytest.Config) -> bool:
    """Whether the command line names any study."""
    return bool(config.getoption("llem_study")) or any(names_study(argument) for argument in config.args)


def study_files(config: pytest.Config, arguments: Iterable[str]) -> Iterator[Path]:
    """The study files that arguments of the command line name, those that exist."""
    for argument in filter(names_study, arguments):
        with contextlib.suppress(LlemError):
            path = study_path(config, argument.partition("::")[0])
            if os.path.isfile(path):  # noqa: PTH113 (the method of Path raises for names that are too long)
                yield path


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch off garbage collection, a fifth of the time among thousands of items; `gc.freeze` exempts them later."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
