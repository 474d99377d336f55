"""Loads a study for a run: with the run's settings, and checked against its isolation, runners and servers.

`LlemSession.study` imports it for the first study that this process loads itself; workers of xdist get loaded studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pytest_llem.errors import StudyError
from pytest_llem.servers.plan import require_possible_servers
from pytest_llem.session.run import RunOptions
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.study import Study, load_study

DEFAULT_LIMIT = "5%"
"""Change of the headline metric that fails where a baseline is given without any limit. Chosen: well above the spread
of valid cycles on one machine, and the limit that the documentation uses throughout."""


def load_for_run(
    path: Path, options: RunOptions, others: Iterable[Study], runner_plans: RunnerPlans, *, distributed: bool
) -> Study:
    """Load a study beside the `others` of the run. Raises `StudyError` when it is wrong, or has the name of another."""
    overrides, execution = options.overrides, options.execution
    study = load_study(path, overrides=overrides, execution=execution)
    if options.baseline and not any(experiment.compare for experiment in study.experiments):
        limits = {study.execution.headline: DEFAULT_LIMIT}
        study = load_study(path, overrides=replace(overrides, fail_if=limits), execution=execution)
    for other in others:
        if other.name == study.name:
            raise StudyError(
                f"{path}:1:1: another study of this run has the name {study.name!r}: {other.path}",
                fix="give one of them another `name:`",
            )

    def runner_of(engine: str) -> str:
        return runner_plans.spec(engine, study).name

    _require_possible(study, runner_of, distributed=distributed)
    require_possible_servers(study, runner_of)
    return study


class IsolationError(StudyError):
    """A study's isolation or runner does not go with its order, with each other, or with the way pytest was called."""

    category = "isolation"


def _require_possible(study: Study, runner_of: Callable[[str], str], *, distributed: bool) -> None:
    """Raise `IsolationError` for what cannot be combined.

    An engine cannot stay loaded where other cycles would need its devices, and Ray cannot be used with xdist.
    `runner_of` gives the name of an engine's runner; `distributed` says whether xdist runs the items.
    """
    engines = dict.fromkeys(experiment.engine for experiment in study.experiments)
    if distributed and any(runner_of(engine) == "ray" for engine in engines):
        raise IsolationError(
            f"{study.locate('runners')}: the runner ray cannot be combined with -n (pytest-xdist): Ray runs cycles "
            "side by side already, and each worker of xdist would hold a part of the study back from it",
            fix="leave -n out (ray.max_in_flight bounds what is submitted at a time), or use the runner local",
        )
    isolation = study.execution.isolation
    if isolation == "process":
        return
    conflict = f"{study.locate('execution.isolation')}: execution.isolation: {isolation} cannot be combined with"
    if study.execution.order != "sequential":
        raise IsolationError(
            f"{conflict} execution.order: {study.execution.order}", fix="use order: sequential, or isolation: process"
        )
    if distributed:
        raise IsolationError(f"{conflict} -n (pytest-xdist)", fix="leave -n out, or use isolation: process")
    for engine in engines:
        runner = runner_of(engine)
        if runner != "local":
            raise IsolationError(f"{conflict} the runner {runner}", fix="use the runner local, or isolation: process")
