"""Loads a study for a run: with the run's settings, and with what its isolation, runners and servers must fit.

`LlemSession.study` imports it for the first study that this process loads itself; workers of xdist get loaded studies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pytest_llem.errors import StudyError
from pytest_llem.servers.plan import require_possible_servers
from pytest_llem.session.isolation import require_possible
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

    require_possible(study, runner_of, distributed=distributed)
    require_possible_servers(study, runner_of)
    return study
