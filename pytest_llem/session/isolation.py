"""What `execution.isolation` cannot be combined with: found before anything runs, and told as a usage error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import LlemError, StudyError

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession
    from pytest_llem.study import Study


class IsolationError(StudyError):
    """A study's isolation or runner does not go with its order, with each other, or with the way pytest was called."""

    category = "isolation"


def refuse_combinations(config: pytest.Config, session: LlemSession) -> None:
    """Raise `pytest.UsageError` for a study of the command line whose isolation does not go with the rest.

    A study that cannot be loaded is left to collection, which says what is wrong and where.
    """
    from pytest_llem.plugin import names_study

    for argument in config.args:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if names_study(argument) and path.is_file():
            try:
                session.study(path)
            except IsolationError as error:
                raise pytest.UsageError(str(error)) from None
            except LlemError:
                continue


def require_possible(study: Study, session: LlemSession) -> None:
    """Raise `IsolationError` for what cannot be combined.

    Engines that stay loaded cannot be had where others would need their devices, nor a cluster beside xdist.
    """
    option = session.config.getoption
    asked = option("dist", "no") != "no" or bool(option("numprocesses", None))
    distributed = session.run.worker is not None or asked
    engines = dict.fromkeys(experiment.engine for experiment in study.experiments)
    if distributed and any(session.runner_spec(engine, study).name == "ray" for engine in engines):
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
        runner = session.runner_spec(engine, study).name
        if runner != "local":
            raise IsolationError(f"{said} the runner {runner}", fix="use the runner local, or isolation: process")
