"""What isolation and runners of a study cannot be combined with, checked when the study is loaded."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llem.errors import StudyError
from pytest_llem.study import Study


class IsolationError(StudyError):
    """A study's isolation or runner does not go with its order, with each other, or with the way pytest was called."""

    category = "isolation"


def require_possible(study: Study, runner_of: Callable[[str], str], *, distributed: bool) -> None:
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
    said = f"{study.locate('execution.isolation')}: execution.isolation: {isolation} cannot be combined with"
    if study.execution.order != "sequential":
        raise IsolationError(
            f"{said} execution.order: {study.execution.order}", fix="use order: sequential, or isolation: process"
        )
    if distributed:
        raise IsolationError(f"{said} -n (pytest-xdist)", fix="leave -n out, or use isolation: process")
    for engine in engines:
        runner = runner_of(engine)
        if runner != "local":
            raise IsolationError(f"{said} the runner {runner}", fix="use the runner local, or isolation: process")
